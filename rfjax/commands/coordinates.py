# SPDX-License-Identifier: Apache-2.0
"""Whether training steps move activations alike at every depth."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rfjax import whole_files
from rfjax.commands.job import (
    make_stream,
    read_manifest,
)
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.flow import formulations
from rfjax.scaling.transfer.coordinates import check_coordinates, fit_slopes
from rfjax.train.parameterisation import PARAMETERISATIONS

COORDINATES_FILE = "coordinates.json"


def coordinates(
    config: Config,
    *,
    depths: Sequence[int],
    num_steps: int,
    parameterisation: str,
    out: Path | str,
) -> dict[str, dict[str, float]]:
    """Checks whether training steps move activations alike at every depth.

    Writes `coordinates.json` and `coordinates.png`.

    Args:
      config: the resolved config; its depth is replaced, its peak rate is used.
      depths: of the models; the smallest is the base depth if the config has none.
      num_steps: training steps, on the run's first batch.
      parameterisation: "standard", "mup", or "both" to compare them.
      out: folder to write into; made if missing.

    Returns:
      parameterisation -> activation -> slope of log change over log width.

    Raises:
      UserError: a wrong setting, or a file of somebody else's in the place of the
        result, before anything is computed.
    """
    from rfjax.scaling.transfer import coordinate_figure

    read_manifest(config)
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
    with whole_files.replacing(Path(out) / "coordinates.png") as partial:
        coordinate_figure.draw_coordinates(points).savefig(partial)
    return slopes


def _check_replaceable(path: Path) -> None:
    """Raises UserError if a file is there that `coordinates` did not write."""
    if not path.exists():
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
