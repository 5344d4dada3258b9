# SPDX-License-Identifier: Apache-2.0
"""Types of parameters that several commands share: how each is written in a shell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rfjax.config import Config, from_config_dict
from rfjax.config_files import DATA_SET, RUN, SWEEP, Reader

# For a notebook only.
_NO_FLAG = Parameter(parse=False)
Report = Annotated[Callable[[str], None], _NO_FLAG]  # where a command says what it does
Progress = Annotated[bool, _NO_FLAG]

# The file is read after all flags are known, since overrides are among them.
_CONFIG = Parameter(
    name="--config",
    converter=lambda _, tokens: tokens[0].value,
    n_tokens=1,
    accepts_keys=False,
    metavar="FILE[:ARG]",
    help="config file, as configs/NAME.py or configs/NAME.py:ARG, or a run's "
    "config.json. --config.SECTION.FIELD=VALUE sets a field of it; `rfjax config FILE` "
    "lists them.",
)
RunConfig = Annotated[Config, Reader(RUN, build=from_config_dict), _CONFIG]
RunFields = Annotated[Mapping[str, Any], Reader(RUN), _CONFIG]
SweepFields = Annotated[Mapping[str, Any], Reader(SWEEP), _CONFIG]
DataSetFields = Annotated[Mapping[str, Any], Reader(DATA_SET), _CONFIG]
AnyFields = Annotated[Mapping[str, Any], Reader(None), _CONFIG]

JsonFile = Annotated[Path | str | None, Parameter(name="--json")]
