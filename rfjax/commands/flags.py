# SPDX-License-Identifier: Apache-2.0
"""Types of parameters that several commands share: how each is written in a shell."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rfjax.config import Config, from_config_dict
from rfjax.config_files import DATA_SET, RUN, SWEEP, Reader
from rfjax.errors import UserError

# For a notebook only.
_NO_FLAG = Parameter(parse=False)
Report = Annotated[Callable[[str], None], _NO_FLAG]  # where a command says what it does
Progress = Annotated[bool, _NO_FLAG]


# The file is read after all flags are known, since overrides are among them.
def _config(*, example: str) -> Parameter:
    return Parameter(
        name="--config",
        converter=lambda _, tokens: tokens[0].value,
        n_tokens=1,
        accepts_keys=False,
        metavar="FILE[:ARG]",
        help=f"config file, as {example}; ARG is for the file. "
        "--config.SECTION.FIELD=VALUE sets a field; `rfjax config FILE` lists them.",
    )


_RUN = _config(example="configs/NAME.py or a run's config.json")
_SWEEP = _config(example="configs/sweeps/NAME.py")
_DATA_SET = _config(example="configs/data/NAME.py")
RunConfig = Annotated[Config, Reader(RUN, build=from_config_dict), _RUN]
RunFields = Annotated[Mapping[str, Any], Reader(RUN), _RUN]
SweepFields = Annotated[Mapping[str, Any], Reader(SWEEP), _SWEEP]
DataSetFields = Annotated[Mapping[str, Any], Reader(DATA_SET), _DATA_SET]
AnyFields = Annotated[Mapping[str, Any], Reader(None), _RUN]


def _read_int(_: type, tokens: Sequence[Any]) -> int:
    text = tokens[0].value
    if not re.fullmatch(r"[+-]?\d+", text):
        flag = tokens[0].keyword or "the value"
        raise UserError(f"{flag} must be a whole number, got {text!r}.")
    return int(text)


def whole_number(name: str | None = None) -> Parameter:
    """A flag of a whole number: cyclopts would round 2.5."""
    return Parameter(name=name, converter=_read_int, n_tokens=1, accepts_keys=False)


Int = Annotated[int, whole_number()]
OptionalInt = Annotated[int | None, whole_number()]

# What pictures may be called: figures, and sheets of pictures.
FIGURES = (".png", ".svg", ".pdf")
SHEETS = (".png", ".jpg", ".jpeg", ".webp")

JsonFile = Annotated[Path | str | None, Parameter(name="--json")]
