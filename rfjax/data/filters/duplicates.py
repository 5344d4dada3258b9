# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates: descriptors in clusters, of which each is searched alone.

As for Stable Diffusion 3 (https://arxiv.org/abs/2403.03206, section 5.1 and appendix
E), the first of the pictures within a distance stays. Two things are exact here. A
cluster is searched for a picture whenever one within the distance could be in it, so no
pair is missed at the borders. And all products are whole numbers below 2^24, so neither
threads nor the number of clusters change the result.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rfjax.data.filters.descriptors import LENGTH
from rfjax.errors import MissingPackageError

_BLOCK = 2048  # pictures that are compared at a time
_ROUNDS = 10  # of k-means
_TRAINING = 256  # pictures for each centre, at most


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Which pictures look like an earlier one.

    Attributes:
      of: [N] int64, row of the most similar picture that stays, the first of several;
        -1: the picture itself stays.
      similarity: [N] float32, cosine with that picture; 0 where there is none.
    """

    of: np.ndarray
    similarity: np.ndarray


def find_repeated(
    descriptors: np.ndarray, similarity: float, *, cluster_size: int = 16384
) -> Repeated:
    """Goes through pictures in order; one stays unless it looks like one that stays.

    Args:
      descriptors: [N, D] int16, of the length `descriptors.LENGTH`.
      similarity: cosine from which on two pictures look the same.
      cluster_size: descriptors in a cluster, on average; time grows with it, memory
        does not. It does not change the result.

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
        best, row = clusters.search(block)
        within = block @ block.T
        stays = np.zeros(len(block), bool)
        for i in range(len(block)):
            here = np.where(stays[:i], within[i, :i], -np.inf)
            j = int(np.argmax(here)) if i else 0
            if i and here[j] > best[i]:
                best[i], row[i] = here[j], start + j
            stays[i] = best[i] < least
        of[start : start + len(block)] = np.where(stays, -1, row)
        products[start : start + len(block)] = np.where(stays, 0, best)
        clusters.add(block[stays], start + np.flatnonzero(stays))
    return Repeated(of, np.minimum(products / LENGTH**2, 1))


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
        """The largest product of each descriptor with one that stays, and its row.

        Where x belongs to the centre a, x (b - a) <= 0 for every centre b. So y can be
        within a distance of x only if y (b - a) <= distance |b - a|.
        """
        best = np.full(len(block), -np.inf, np.float32)
        row = np.full(len(block), -1)
        products = (block @ self._centres.T).astype(np.float64)
        nearest = np.argmax(products, axis=1)
        excess = np.max(products, axis=1, keepdims=True) - products
        reached = excess <= self._margins[nearest]
        for cluster, index in enumerate(self._indices):
            asking = np.flatnonzero(reached[:, cluster])
            if not index.ntotal or not len(asking):
                continue
            found, place = (each[:, 0] for each in index.search(block[asking], 1))
            at = self._rows[cluster][place]
            better = (found > best[asking]) | (
                (found == best[asking]) & (at < row[asking])
            )
            best[asking[better]] = found[better]
            row[asking[better]] = at[better]
        return best, row

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


def _import_faiss():
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError(
            "filters.near_duplicates needs the package faiss-cpu, which is not "
            "installed; pip install faiss-cpu, or leave the filter out."
        ) from error
    return faiss
