# SPDX-License-Identifier: Apache-2.0
"""From the size of a model to its depth and back, by the models of a runs table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rfjax.scaling.laws.law import CannotFit
from rfjax.scaling.laws.points import size_of

if TYPE_CHECKING:
    import pandas as pd

_ONE_SIZE = 1.01  # sizes of one model, by any measure, differ by less than this ratio


def depth_of_size(
    table: pd.DataFrame, sizes: np.ndarray, *, size_measure: str
) -> np.ndarray:
    """Depths [m] (possibly fractional) of models of the given sizes [m].

    Interpolates log depth over log size linearly between the models of the table, and
    extrapolates the outermost lines: size grows roughly as depth cubed.

    Raises: CannotFit if the depths of the table do not order its sizes; see
      `why_no_depths`.

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


def why_no_depths(table: pd.DataFrame, *, size_measure: str) -> str:
    """Why the depths of a table do not give its sizes; empty if they do.

    They do if there are two depths or more, each depth has one size, and deeper models
    are larger. Rows without a depth do not matter.
    """
    if "depth" not in table:
        return "the table has no column depth"
    known = table[table["depth"] > 0]
    sizes = size_of(known, size_measure=size_measure).groupby(known["depth"])
    if len(sizes) < 2:
        return (
            f"depth must take at least 2 values to relate it to {size_measure}, "
            f"got {len(sizes)}"
        )
    for depth, of_depth in sizes:
        if of_depth.max() > _ONE_SIZE * of_depth.min():
            return (
                f"models of one depth must have one {size_measure}, those of depth "
                f"{depth:g} have {of_depth.min():.4g} to {of_depth.max():.4g}"
            )
    if not sizes.mean().is_monotonic_increasing:
        return f"{size_measure} must rise with the depth"
    return ""


def _known_models(
    table: pd.DataFrame, size_measure: str
) -> tuple[np.ndarray, np.ndarray]:
    """Log depths and log mean sizes of the models in a table, by rising depth."""
    if reason := why_no_depths(table, size_measure=size_measure):
        raise CannotFit(f"{reason}; give a size instead of a depth.")
    known = table[table["depth"] > 0]
    sizes = size_of(known, size_measure=size_measure).groupby(known["depth"]).mean()
    return np.log(sizes.index.to_numpy(float)), np.log(sizes.to_numpy(float))


def _interpolate(x: np.ndarray, known_x: np.ndarray, known_y: np.ndarray) -> np.ndarray:
    """Piecewise linear, with the outermost pieces extrapolated."""
    piece = np.clip(np.searchsorted(known_x, x) - 1, 0, len(known_x) - 2)
    slope = np.diff(known_y)[piece] / np.diff(known_x)[piece]
    return known_y[piece] + slope * (x - known_x[piece])
