# SPDX-License-Identifier: Apache-2.0
"""Whether training steps move activations alike at every depth."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
from cyclopts import Parameter

from rfjax import whole_files
from rfjax.commands.flags import RunConfig
from rfjax.commands.job import (
    make_stream,
    read_manifest,
)
from rfjax.commands.memory import check_memory
from rfjax.errors import UserError
from rfjax.flow import formulations
from rfjax.parallel.mesh import MeshConfig, make_mesh
from rfjax.scaling.transfer.coordinates import check_coordinates, fit_slopes
from rfjax.train.parameterisation import PARAMETERISATIONS
from rfjax.value_types import Bounds, LocalPath, OneOf, PositiveInt, checked

COORDINATES_FILE = "coordinates.json"
PICTURE_FILE = "coordinates.png"
_WHY_3 = "before the third step the inside of the blocks does not move"


def _read_depths(_: type, tokens: Sequence[Any]) -> list[int]:
    text = tokens[0].value
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text):
        raise UserError(
            f"--depths must be whole numbers as in 1,2,4, got {text!r}; write them so."
        )
    return [int(depth) for depth in text.split(",")]


_DEPTHS = Parameter(
    converter=_read_depths, n_tokens=1, accepts_keys=False, metavar="INT,INT,..."
)


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """How far training steps move activations, depth by depth.

    Attributes:
      slopes: parameterisation -> activation -> slope of log change over log width.
      picture: file with the changes behind the slopes.
    """

    slopes: Mapping[str, Mapping[str, float]]
    picture: Path

    def __str__(self) -> str:
        slopes = self.slopes
        lines = [f"{'slope over width':<18}" + "".join(f"{n:>10}" for n in slopes)]
        for activation in next(iter(slopes.values())):
            row = (f"{by_name[activation]:>10.2f}" for by_name in slopes.values())
            lines.append(f"{activation:<18}" + "".join(row))
        return "\n".join([*lines, f"figure: {self.picture}"])


@checked
def coordinates(
    config: RunConfig,
    *,
    depths: Annotated[Sequence[PositiveInt], _DEPTHS] = (1, 2, 4),
    num_steps: Annotated[
        PositiveInt, Bounds(3, remedy=_WHY_3), Parameter(name="--steps")
    ] = 4,
    parameterisation: Annotated[str, OneOf((*PARAMETERISATIONS, "both"))] = "both",
    out: LocalPath,
) -> Coordinates:
    """Checks whether training steps move activations alike at every depth.

    Args:
      config: the resolved config; its depth is replaced, its peak rate is used.
      depths: at least two, separated by commas; the smallest is the base depth if the
        config has none.
      num_steps: training steps, on the run's first batch.
      parameterisation: standard, mup, or both to compare them.
      out: folder to write coordinates.json and coordinates.png into; made if missing.

    Raises:
      UserError: a wrong setting, or a file in the way that `coordinates` did not write;
        nothing was computed then.

    Example:
      rfjax coordinates --config=configs/debug.py --depths=1,2,4 --out=reports/rates
    """
    from rfjax.scaling.transfer import coordinate_figure

    read_manifest(config)
    largest = dataclasses.replace(config.model, depth=max(depths))
    check_memory(
        dataclasses.replace(config, model=largest),
        mesh=make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    )
    picture = Path(out) / PICTURE_FILE
    for file in (Path(out) / COORDINATES_FILE, picture):
        whole_files.check_writable(file, field="--out")
    _check_replaceable(Path(out) / COORDINATES_FILE)
    base_depth = config.optimizer.base_depth or min(depths)
    names = PARAMETERISATIONS if parameterisation == "both" else (parameterisation,)
    optimizers = [
        dataclasses.replace(
            config.optimizer, parameterisation=name, base_depth=base_depth
        )
        for name in names
    ]
    stream = make_stream(config)
    batch = next(stream)
    stream.close()
    points = [
        point
        for optimizer in optimizers
        for point in check_coordinates(
            batch,
            model=config.model,
            optimizer=optimizer,
            formulation=formulations.parse(config.objective),
            shift=config.shift,
            depths=depths,
            num_steps=num_steps,
            seed=config.seed,
        )
    ]
    slopes = fit_slopes(points)
    result = {
        "base_depth": base_depth,
        "learning_rate": config.optimizer.learning_rate,
        "num_steps": num_steps,
        "slopes": slopes,
        "points": [dataclasses.asdict(point) for point in points],
    }
    whole_files.write_json(Path(out) / COORDINATES_FILE, result)
    with whole_files.replacing(picture) as partial:
        coordinate_figure.draw_coordinates(points).savefig(partial)
    return Coordinates(slopes, picture)


def _check_replaceable(path: Path) -> None:
    """Raises UserError if a file is there that `coordinates` did not write."""
    if not path.is_file():
        return
    try:
        is_ours = "slopes" in json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        is_ours = False
    if not is_ours:
        raise UserError(
            f"out {path.parent} holds a {path.name} that `rfjax coordinates` did not "
            "write; choose another folder."
        )
