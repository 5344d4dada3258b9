# SPDX-License-Identifier: Apache-2.0
"""How two pictures differ once one is laid on the other.

Two pictures of which one is slightly cropped differ at every line, though they are the
same; two road signs differ in a small part, though they are not. So the second picture
is first stretched and moved onto the first, and then the tile counts that differs most,
as in the audit of memorised pictures of Stable Diffusion 3
(https://arxiv.org/abs/2403.03206, appendix E).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from rfjax.data.filters.descriptors import THUMBNAIL

_TILE = 8  # pixels of a side
_BLUR = 1.0  # pixels; what is finer differs between two resizings of one picture
_LEAST_CONTRAST = 0.15  # of a picture that is nearly of one colour
_SEARCH_BLURS = (3.0, 3.0, 3.0, 3.0, 1.5, 1.5, 1.5, 1.5)  # of each step of the search
_MOST_STRETCH = 1.18
_MOST_SHIFT = 0.1  # of the side

_PLACES = (np.arange(THUMBNAIL) + 0.5) / THUMBNAIL - 0.5


def difference(first: np.ndarray, second: np.ndarray, *, enough: float = 0) -> float:
    """How far two pictures are apart in the tile, of 8 x 8, that differs most.

    Args:
      first: [64, 64, 3] uint8, a thumbnail.
      second: the same of another picture.
      enough: a difference that is small enough: no smaller one is looked for.

    Returns:
      Root mean square of the colours' difference over the tile, divided by the standard
      deviation of the tile that has most in either picture. It is 0 for the same
      picture, and near 1 where one has what the other lacks. Of the pictures as they
      are, or of `second` laid on `first`; what lies outside of `second` then does not
      count.
    """
    planes = [np.moveaxis(each / 255.0, -1, 0) for each in (first, second)]
    contrast = max(_LEAST_CONTRAST, *map(_contrast, planes))
    as_they_are = _largest(*planes, _Fit()) / contrast
    if as_they_are <= enough:
        return as_they_are
    return min(as_they_are, _largest(*planes, _lay_on(*planes)) / contrast)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Where the second picture is read for each place of the first: scale * x + shift.

    Attributes:
      down, right: (scale, shift) of rows and columns; places are in [-1/2, 1/2].
    """

    down: tuple[float, float] = (1.0, 0.0)
    right: tuple[float, float] = (1.0, 0.0)


def _lay_on(first: np.ndarray, second: np.ndarray) -> _Fit:
    """The fit of least squares, by Gauss and Newton's method from coarse to fine."""
    fit = _Fit()
    for blur in _SEARCH_BLURS:
        smooth = _blur(blur)
        moved, inside = _read(second, fit, blur)
        missing = (smooth @ first @ smooth.T - moved) * inside
        down, right = np.gradient(moved, 1 / THUMBNAIL, axis=(1, 2))
        down, right = down / fit.down[0], right / fit.right[0]
        columns = [down * _PLACES[:, None], down, right * _PLACES, right]
        slopes = np.stack([(each * inside).ravel() for each in columns])
        squares = slopes @ slopes.T
        squares += np.eye(4) * (2.5e-4 * np.trace(squares) + 1e-6)
        step = np.linalg.solve(squares, slopes @ missing.ravel())
        fit = _Fit(_bounded(fit.down, step[:2]), _bounded(fit.right, step[2:]))
    return fit


def _bounded(axis: tuple[float, float], step: np.ndarray) -> tuple[float, float]:
    scale = np.clip(axis[0] + step[0], 1 / _MOST_STRETCH, _MOST_STRETCH)
    return float(scale), float(np.clip(axis[1] + step[1], -_MOST_SHIFT, _MOST_SHIFT))


def _largest(first: np.ndarray, second: np.ndarray, fit: _Fit) -> float:
    """The largest root mean square difference of a tile."""
    smooth = _blur(_BLUR)
    moved, inside = _read(second, fit, _BLUR)
    squares = np.mean((smooth @ first @ smooth.T - moved) ** 2, axis=0) * inside
    return float(np.sqrt(_tiles(squares).mean(axis=(-3, -1)).max()))


def _contrast(planes: np.ndarray) -> float:
    """The largest standard deviation of a tile."""
    smooth = _blur(_BLUR)
    variances = _tiles(smooth @ planes @ smooth.T).var(axis=(-3, -1))
    return float(np.sqrt(variances.mean(axis=0).max()))


def _tiles(plane: np.ndarray) -> np.ndarray:
    """[..., 64, 64] to [..., 8, 8, 8, 8]: rows of tiles and pixels, then columns."""
    tiles = THUMBNAIL // _TILE
    return plane.reshape(*plane.shape[:-2], tiles, _TILE, tiles, _TILE)


def _read(planes: np.ndarray, fit: _Fit, blur: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture, blurred and read by a fit, and which places are inside of it."""
    smooth = _blur(blur)
    rows, row_inside = _interpolation(*fit.down)
    columns, column_inside = _interpolation(*fit.right)
    moved = (rows @ smooth) @ planes @ (columns @ smooth).T
    return moved, row_inside[:, None] & column_inside


def _interpolation(scale: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [64, 64] that read a line at scale * x + shift; what is inside of it."""
    at = (scale * _PLACES + shift + 0.5) * THUMBNAIL - 0.5
    inside = (at >= -0.5) & (at <= THUMBNAIL - 0.5)
    at = np.clip(at, 0, THUMBNAIL - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(THUMBNAIL))), inside


@functools.cache
def _blur(sigma: float) -> np.ndarray:
    """Weights [64, 64] of a Gaussian along a line; its ends continue beyond it."""
    reach = int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    source = np.clip(np.arange(THUMBNAIL)[:, None] + offsets, 0, THUMBNAIL - 1)
    weights = np.zeros((THUMBNAIL, THUMBNAIL))
    rows = np.arange(THUMBNAIL)[:, None]
    np.add.at(weights, (rows, source), kernel / kernel.sum())
    return weights
