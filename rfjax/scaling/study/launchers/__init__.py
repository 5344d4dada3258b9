# SPDX-License-Identifier: Apache-2.0
"""Where the cells of a sweep are trained: one file per kind of machine, one table.

base        what a launcher is given, and what it must do
local       in this process, one cell after the other
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from rfjax import schema
from rfjax.errors import UserError
from rfjax.scaling.study.launchers.base import Launch, Launcher, make_jobs
from rfjax.scaling.study.launchers.local import LocalLauncher

# --launcher=KIND -> its dataclass, whose fields are the section launchers.KIND of a
# sweep config.
LAUNCHERS: dict[str, type[Launcher]] = {
    "local": LocalLauncher,
}

__all__ = ["LAUNCHERS", "Launch", "Launcher", "make_jobs", "make_launcher"]


def make_launcher(kind: str, sections: Mapping[str, Any]) -> Launcher:
    """The launcher of a kind, with its fields from the sections of all launchers.

    Args:
      kind: a key of `LAUNCHERS`.
      sections: kind -> fields; those of other kinds are for other machines.

    Raises:
      UserError: a kind is unknown, or a field of the launcher is wrong.
    """
    for name, value in ((kind, "launcher"), *((s, "launchers") for s in sections)):
        if name not in LAUNCHERS:
            near = difflib.get_close_matches(name, LAUNCHERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(
                f"{value} must be one of {', '.join(LAUNCHERS)}, got {name!r}{hint}"
            )
    fields = sections.get(kind, {})
    return schema.build(LAUNCHERS[kind], fields, prefix=f"launchers.{kind}.")
