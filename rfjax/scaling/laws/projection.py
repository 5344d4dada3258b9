# SPDX-License-Identifier: Apache-2.0
"""Variable projection: for given exponents the rest of the law is linear.

E, A and B follow from the exponents by non-negative least squares, so only the
exponents are searched, on a grid: two dimensions rather than five, and no initial
values to guess (Golub and Pereyra 1973; for scaling laws Czech et al. 2026,
arXiv:2603.22339).
"""

from __future__ import annotations

import itertools

import numpy as np


def nonnegative_least_squares(
    design: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises |design z - target|^2 over z >= 0, for a batch of designs.

    With at most three unknowns every set of positive unknowns can be tried.

    Args:
      design: [G, n, k] with k <= 3.
      target: [n].

    Returns: z [G, k] and the residual sum of squares [G].
    """
    num_designs, _, num_unknowns = design.shape
    gram = design.transpose(0, 2, 1) @ design
    moment = design.transpose(0, 2, 1) @ target
    best = np.zeros((num_designs, num_unknowns))
    best_sum = np.full(num_designs, target @ target)
    for support in itertools.product([False, True], repeat=num_unknowns):
        free = np.flatnonzero(support)
        if not free.size:
            continue
        ridge = 1e-13 * np.einsum("gii->gi", gram)[:, free, None] * np.eye(free.size)
        solution = np.zeros_like(best)
        solution[:, free] = np.linalg.solve(
            gram[:, free][:, :, free] + ridge, moment[:, free, None]
        )[..., 0]
        residual = (design @ solution[..., None])[..., 0] - target
        residual_sum = (residual**2).sum(-1)
        better = (solution >= 0).all(-1) & (residual_sum < best_sum)
        best = np.where(better[:, None], solution, best)
        best_sum = np.where(better, residual_sum, best_sum)
    return best, best_sum


def project_starts(
    log_inputs: np.ndarray,
    loss: np.ndarray,
    *,
    exponents: np.ndarray,
    num_starts: int,
) -> np.ndarray:
    """The best laws on a grid of exponents, to start the joint fit from.

    Args:
      log_inputs: [n, J] log inputs over their centre.
      loss: [n] measured losses, positive.
      exponents: [m] values that each exponent is tried at.
      num_starts: how many of the m^J grid points to return, best first.

    Returns: theta [num_starts, 1 + 2 J].
    """
    num_inputs = log_inputs.shape[1]
    grid = np.array(list(itertools.product(exponents, repeat=num_inputs)))
    terms = np.exp(-grid[:, None, :] * log_inputs)
    floor = np.ones((*terms.shape[:2], 1))
    # Dividing by the loss makes the residuals relative, as those of log-loss are.
    design = np.concatenate([floor, terms], axis=-1) / loss[:, None]
    linear, residual_sum = nonnegative_least_squares(design, np.ones_like(loss))
    best = np.argsort(residual_sum)[:num_starts]
    smallest = 1e-3 * loss.min()  # a coefficient of zero has no logarithm
    coefficients = np.maximum(linear[best, 1:], smallest)
    return np.concatenate([linear[best, :1], np.log(coefficients), grid[best]], axis=1)
