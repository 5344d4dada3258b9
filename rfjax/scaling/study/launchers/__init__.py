# SPDX-License-Identifier: Apache-2.0
"""Where the cells of a sweep are trained: one file per kind of machine, one table.

base        what a launcher is given, and what it must do
local       in this process, one cell after the other
"""

from rfjax.scaling.study.launchers.base import Launch, Launcher, make_jobs
from rfjax.scaling.study.launchers.local import LocalLauncher

__all__ = ["LAUNCHERS", "Launch", "Launcher", "make_jobs"]

LAUNCHERS: dict[str, type[Launcher]] = {  # launcher.kind, --launcher -> its fields
    "local": LocalLauncher,
}
