# SPDX-License-Identifier: Apache-2.0
"""Every field of a config file, explained."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from rfjax import config_files
from rfjax.commands.flags import AnyFields
from rfjax.config_fields import MISSING, FieldInfo, describe
from rfjax.errors import UserError

WIDTH = 88


@dataclasses.dataclass(frozen=True)
class ConfigDescription:
    """The fields of a config, with what they are.

    Attributes:
      kind: whose config it is.
      fields: sections before their fields.
    """

    kind: config_files.Kind
    fields: Sequence[FieldInfo]

    def __str__(self) -> str:
        lines = [f"the config of {self.kind.name}, for `{self.kind.command}`"]
        for field in self.fields:
            if field.is_section:
                note = f" ({field.type})" if field.type != "section" else ""
                lines += ["", f"{field.name}: {field.text}{note}"]
                continue
            value = "not set" if field.value is MISSING else repr(field.value)
            note = f"{field.type}, must be set"
            if field.default is not MISSING:
                note = f"{field.type}, default {field.default!r}"
            lines.append(f"{field.name} = {value}")
            lines += textwrap.wrap(
                f"{field.text} ({note})",
                WIDTH,
                initial_indent="    ",
                subsequent_indent="    ",
            )
        return "\n".join(lines)


def describe_config(config: AnyFields) -> ConfigDescription:
    """Lists every field of a config file with its value, type, default and meaning.

    Takes the config of a run, a sweep or a data set.

    Args:
      config: fields of the config.

    Raises:
      UserError: it is the config of nothing, or has fields that do not exist.

    Example:
      rfjax config configs/emoji.py --config.model.depth=6
    """
    kind = config_files.kind_of(config)
    if kind is None:
        names = ", ".join(kind.name for kind in config_files.KINDS)
        raise UserError(
            f"--config must be the config of {names}, and has no known field."
        )
    return ConfigDescription(kind, tuple(describe(kind.fields, config)))
