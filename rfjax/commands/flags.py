# SPDX-License-Identifier: Apache-2.0
"""Types of parameters that several commands share: how each is written in a shell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from rfjax import checkpoint
from rfjax.config import Config, from_config_dict
from rfjax.config_files import DATA_SET, RUN, SWEEP, Reader
from rfjax.models import BACKBONES
from rfjax.value_types import LocalPath, NaturalInt, OneOf

# For a notebook only.
_NO_FLAG = Parameter(parse=False)
Report = Annotated[Callable[[str], None], _NO_FLAG]  # where a command says what it does
Warn = Annotated[Callable[[str], None] | None, _NO_FLAG]  # and what went wrong
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

# What pictures may be called: figures, and sheets of pictures.
FIGURES = (".png", ".svg", ".pdf")
SHEETS = (".png", ".jpg", ".jpeg", ".webp")

# Where the data of a run is now, if it was moved.
RunData = Annotated[LocalPath | None, Parameter(name="--data")]
# Folders where the weights of its encoders are now.
RunEncoders = Annotated[Sequence[LocalPath], Parameter(name="--encoders")]
JsonFile = Annotated[LocalPath | None, Parameter(name="--json")]

Step = NaturalInt | None  # of a checkpoint; imported weights are step 0
Weights = Annotated[str, OneOf(checkpoint.WEIGHTS)]
TorchLayout = Annotated[
    str,
    OneOf(sorted({n for b in BACKBONES.values() if b.torch for n in b.torch.layouts})),
    Parameter(name="--format"),
]
