# SPDX-License-Identifier: Apache-2.0
"""From the size of a model to its depth and back, by the models of a runs table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rfjax.scaling.laws.law import CannotFit
from rfjax.scaling.laws.points import size_of

if TYPE_CHECKING:
    import pandas as pd


def depth_of_size(
    table: pd.DataFrame, sizes: np.ndarray, *, size_measure: str
) -> np.ndarray:
    """Depths [m] (possibly fractional) of models of the given sizes [m].

    Interpolates log depth over log size linearly between the models of the table, and
    extrapolates the outermost lines: size grows roughly as depth cubed.

    Raises: CannotFit if the table has fewer than two depths.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"depth": [1, 2, 4], "params": [1e6, 8e6, 64e6]})
      >>> depth_of_size(table, np.array([27e6]), size_measure="params").round(6)
      array([3.])
    """
    log_depth, log_size = _known_models(table, size_measure)
    return np.exp(_interpolate(np.log(sizes), log_size, log_depth))


def size_of_depth(
    table: pd.DataFrame, depths: np.ndarray, *, size_measure: str
) -> np.ndarray:
    """Sizes [m] of models of the given depths [m]; see `depth_of_size`."""
    log_depth, log_size = _known_models(table, size_measure)
    return np.exp(_interpolate(np.log(depths), log_depth, log_size))


def _known_models(
    table: pd.DataFrame, size_measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Log depths and log mean sizes of the models in a table, by rising depth."""
    sizes = size_of(table, size_measure=size_measure).groupby(table["depth"]).mean()
    if len(sizes) < 2:
        raise CannotFit(
            f"depth must take at least 2 values to relate it to {size_measure}, "
            f"got {len(sizes)}; add runs of another depth."
        )
    return np.log(sizes.index.to_numpy(float)), np.log(sizes.to_numpy(float))


def _interpolate(x: np.ndarray, known_x: np.ndarray, known_y: np.ndarray) -> np.ndarray:
    """Piecewise linear, with the outermost pieces extrapolated."""
    piece = np.clip(np.searchsorted(known_x, x) - 1, 0, len(known_x) - 2)
    slope = np.diff(known_y)[piece] / np.diff(known_x)[piece]
    return known_y[piece] + slope * (x - known_x[piece])
