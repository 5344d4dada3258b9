# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: descriptors in clusters, of which only some are searched.

As for Stable Diffusion 3 (https://arxiv.org/abs/2403.03206, section 5.1 and appendix
E), k-means parts the descriptors, a cluster is searched for each picture, and of the
pictures that are similar the first stays. Two things are exact here. A cluster is
searched whenever one within the distance could be in it, so none is missed at the
borders. And all products are whole numbers below 2^24, so neither threads nor the
number of clusters change the result.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable

import numpy as np

from rfjax.data.filters.descriptors import LENGTH
from rfjax.packages import import_package

_BLOCK = 2048  # pictures that are compared at a time
_CANDIDATES = 8  # of the most similar pictures, for each
_ROUNDS = 10  # of k-means
_TRAINING = 256  # pictures for each centre, at most


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Which pictures repeat an earlier one.

    Attributes:
      of: [N] int64, row of the picture that stays instead; -1: the picture stays.
      similarity: [N] float32, cosine with that picture; 0 where there is none.
    """

    of: np.ndarray
    similarity: np.ndarray


def find_repeated(
    descriptors: np.ndarray,
    similarity: float,
    *,
    is_same: Callable[[int, int], bool] = lambda row, earlier: True,
    cluster_size: int = 16384,
) -> Repeated:
    """Goes through pictures in order; one stays unless it repeats one that stays.

    Args:
      descriptors: [N, D] int16, of the length `descriptors.LENGTH`.
      similarity: cosine from which on two pictures may be the same.
      is_same: whether they are, by their rows; asked of the 8 most similar pictures
        that stay, the most similar first.
      cluster_size: descriptors in a cluster, on average. It does not change the result.

    Raises:
      MissingPackageError: faiss is not installed.
    """
    least = np.float32(similarity * LENGTH**2)
    centres = _find_centres(descriptors, math.ceil(len(descriptors) / cluster_size))
    clusters = _Clusters(centres, _largest_distance(descriptors, least))
    of = np.full(len(descriptors), -1)
    products = np.zeros(len(descriptors), np.float32)
    for start in range(0, len(descriptors), _BLOCK):
        block = descriptors[start : start + _BLOCK].astype(np.float32)
        before, rows_before = clusters.search(block)
        within = np.tril(block @ block.T, -1)
        stays = np.zeros(len(block), bool)
        for i in range(len(block)):
            here = np.flatnonzero(stays & (within[i] >= least))
            near, rows = _nearest(
                np.append(before[i], within[i, here]),
                np.append(rows_before[i], start + here),
            )
            for product, row in zip(near, rows, strict=True):
                if product >= least and is_same(start + i, int(row)):
                    of[start + i], products[start + i] = row, product
                    break
            stays[i] = of[start + i] < 0
        clusters.add(block[stays], start + np.flatnonzero(stays))
    return Repeated(of, np.minimum(products / LENGTH**2, 1))


def _nearest(products: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest products of each line, and their rows; of equal ones the first."""
    order = np.lexsort((rows, -products), axis=-1)[..., :_CANDIDATES]
    return tuple(np.take_along_axis(each, order, axis=-1) for each in (products, rows))


class _Clusters:
    """Descriptors of pictures that stay, each with the centre that is nearest to it."""

    def __init__(self, centres: np.ndarray, distance: float):
        """`centres`: [C, D] float32, whole numbers; `distance`: of two that match."""
        faiss = _import_faiss()
        self._centres = centres
        self._indices = [faiss.IndexFlatIP(centres.shape[1]) for _ in centres]
        self._rows = [np.zeros(0, np.int64) for _ in centres]
        products = (centres @ centres.T).astype(np.float64)
        squares = np.diag(products)
        gaps = np.sqrt(squares[:, None] + squares - 2 * products)
        self._margins = distance * gaps

    def search(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The largest products of each descriptor with those that stay, and their rows.

        Where x belongs to the centre a, x (b - a) <= 0 for every centre b. So y can be
        within a distance of x only if y (b - a) <= distance |b - a|.

        Returns:
          [B, 8] float32, -inf where there are fewer, and [B, 8] int64.
        """
        best = np.full((len(block), _CANDIDATES), -np.inf, np.float32)
        best_rows = np.full(best.shape, -1)
        products = (block @ self._centres.T).astype(np.float64)
        nearest = np.argmax(products, axis=1)
        excess = np.max(products, axis=1, keepdims=True) - products
        reached = excess <= self._margins[nearest]
        for cluster, index in enumerate(self._indices):
            asking = np.flatnonzero(reached[:, cluster])
            if index.ntotal and len(asking):
                found, places = index.search(block[asking], _CANDIDATES)
                found = np.where(places < 0, -np.inf, found)
                best[asking], best_rows[asking] = _nearest(
                    np.concatenate([best[asking], found], axis=1),
                    np.concatenate([best_rows[asking], self._rows[cluster][places]], 1),
                )
        return best, best_rows

    def add(self, block: np.ndarray, rows: np.ndarray) -> None:
        """Adds descriptors that stay, with their rows."""
        nearest = np.argmax(block @ self._centres.T, axis=1)
        for cluster in np.unique(nearest):
            chosen = nearest == cluster
            self._indices[cluster].add(block[chosen])
            self._rows[cluster] = np.append(self._rows[cluster], rows[chosen])


def _largest_distance(descriptors: np.ndarray, least: float) -> float:
    """Between descriptors whose product is at least `least`."""
    squares = [
        np.sum(descriptors[start : start + _BLOCK].astype(np.float64) ** 2, axis=1)
        for start in range(0, len(descriptors), _BLOCK)
    ]
    return math.sqrt(2 * np.max(np.concatenate(squares)) - 2 * least)


def _find_centres(descriptors: np.ndarray, num_centres: int) -> np.ndarray:
    """K-means on the sphere, over some of the descriptors; [C, D] float32."""
    faiss = _import_faiss()
    step = max(1, len(descriptors) // (num_centres * _TRAINING))
    points = descriptors[::step].astype(np.float32)
    centres = points[:: math.ceil(len(points) / num_centres)]
    for _ in range(_ROUNDS if num_centres > 1 else 0):
        index = faiss.IndexFlatIP(points.shape[1])
        index.add(centres)
        nearest = index.search(points, 1)[1][:, 0]
        sums = np.zeros(centres.shape)
        np.add.at(sums, nearest, points)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.rint(sums * (LENGTH / np.maximum(lengths, 1))).astype(np.float32)
        centres = np.where(lengths > 0, moved, centres)
    return centres


def _import_faiss() -> types.ModuleType:
    return import_package("faiss", use="filters.near_duplicates")
