# SPDX-License-Identifier: Apache-2.0
"""Minimises the summed Huber loss of log-residuals, for many data sets at once.

    minimise over theta:  sum_i w_i Huber_delta(log L(x_i; theta) - log L_i)

subject to box bounds. The sum matters: with the mean of the same losses, stock
optimisers meet their tolerance after a few iterations and stop at biased exponents
(Besiroglu et al. 2024, arXiv:2404.10102). All R problems (starts of a grid,
resamples of a bootstrap, values of a profile) advance together, so a thousand
resamples take about as long as a few problems in a Python loop.

Each iteration tries two damped steps and keeps the better: iteratively reweighted
least squares, which majorises the Huber loss and so descends from anywhere, and a
Newton step, which converges quickly near the minimum. Bounds are met by an active
set; equal bounds hold a parameter fixed, which is all that a profile likelihood needs.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rfjax.scaling.laws.law import loss_terms, predict_loss

# Damping is relative to the diagonal of the curvature: below the first value it has no
# effect, above the second the step is too short to gain anything.
_MIN_DAMPING, _MAX_DAMPING = 1e-7, 1e3
# A problem is done after this many consecutive iterations that gain almost nothing.
_QUIET_ITERATIONS = 4


@dataclasses.dataclass(frozen=True)
class Minimum:
    """Results of R minimisations: theta [R, p] and objective [R]."""

    theta: np.ndarray
    objective: np.ndarray

    def best(self) -> Minimum:
        """The lowest of the R minima, as a batch of one."""
        lowest = [int(np.argmin(self.objective))]
        return Minimum(self.theta[lowest], self.objective[lowest])


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 inside delta, delta (|r| - delta / 2) outside."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def huber_objective(
    theta: np.ndarray,
    log_inputs: np.ndarray,
    log_loss: np.ndarray,
    *,
    weights: np.ndarray | float,
    delta: float,
) -> np.ndarray:
    """The summed objective [R] of theta [R, p]; see `minimise` for shapes."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        residuals = np.log(predict_loss(theta, log_inputs)) - log_loss
        objective = (weights * huber(residuals, delta)).sum(-1)
    return np.where(np.isfinite(objective), objective, np.inf)


def log_loss_jacobian(
    theta: np.ndarray, log_inputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The logarithm of L [R, n] and its derivative in theta [R, n, p]."""
    terms = loss_terms(theta, log_inputs)
    loss = theta[:, :1] + terms.sum(-1)
    shares = terms / loss[..., None]
    jacobian = np.concatenate(
        [1 / loss[..., None], shares, -log_inputs * shares], axis=-1
    )
    return np.log(loss), jacobian


def minimise(
    log_inputs: np.ndarray,
    log_loss: np.ndarray,
    *,
    start: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    weights: np.ndarray | float = 1.0,
    delta: float = 1e-3,
    max_iterations: int = 500,
    tolerance: float = 1e-12,
) -> Minimum:
    """Minimises the summed Huber loss from every start.

    Args:
      log_inputs: [n, J] log inputs over their centre.
      log_loss: [n] or [R, n] log of the measured losses.
      start: [R, p] first guess of theta; moved into the bounds.
      lower: [p] or [R, p] lower bounds.
      upper: [p] or [R, p] upper bounds; equal to `lower` where theta is held fixed.
      weights: scalar, [n] or [R, n], weight of each point.
      delta: where the Huber loss turns from quadratic to linear, in log-loss.
      max_iterations: a limit far beyond what a well-posed problem needs.
      tolerance: relative gain of the objective that counts as none.

    Returns: theta [R, p] and the objective [R].
    """
    num_problems = start.shape[0]
    data_shape = (num_problems, log_inputs.shape[0])
    log_loss = np.broadcast_to(log_loss, data_shape)
    weights = np.broadcast_to(weights, data_shape)
    lower = np.broadcast_to(lower, start.shape)
    upper = np.broadcast_to(upper, start.shape)

    theta = np.clip(start, lower, upper).astype(np.float64)
    objective = huber_objective(
        theta, log_inputs, log_loss, weights=weights, delta=delta
    )
    damping = np.full((len(_MODELS), num_problems), 1e-3)
    quiet = np.zeros(num_problems, dtype=int)
    active = np.arange(num_problems)
    for _ in range(max_iterations):
        if not active.size:
            break
        here, before = theta[active], objective[active]
        data = {"weights": weights[active], "delta": delta}
        slope = _Slope(here, log_inputs, log_loss[active], **data)
        best_theta, best_objective = here, before
        for model, damp in zip(_MODELS, damping, strict=True):
            candidate = _bounded_step(
                here,
                slope,
                curvature=model(slope),
                damping=damp[active],
                lower=lower[active],
                upper=upper[active],
            )
            value = huber_objective(candidate, log_inputs, log_loss[active], **data)
            damp[active] *= np.where(value < before, 0.2, 10.0)
            better = value < best_objective
            best_theta = np.where(better[:, None], candidate, best_theta)
            best_objective = np.where(better, value, best_objective)

        # A problem without gain ends only when even the shortest steps bring none.
        gain = before - best_objective
        stuck = (gain <= 0) & (damping[:, active] > _MAX_DAMPING).all(axis=0)
        slow = (gain > 0) & (gain <= tolerance * best_objective)
        quiet[active] = np.where(slow, quiet[active] + 1, quiet[active] * (gain <= 0))
        damping = damping.clip(_MIN_DAMPING, _MAX_DAMPING)
        theta[active], objective[active] = best_theta, best_objective
        active = active[~stuck & (quiet[active] < _QUIET_ITERATIONS)]
    return Minimum(theta, objective)


class _Slope:
    """First and second derivatives of the objective at theta [R, p]."""

    def __init__(
        self,
        theta: np.ndarray,
        log_inputs: np.ndarray,
        log_loss: np.ndarray,
        *,
        weights: np.ndarray,
        delta: float,
    ):
        log_predicted, jacobian = log_loss_jacobian(theta, log_inputs)
        residuals = log_predicted - log_loss
        size = np.abs(residuals)
        self.inside = weights * (size <= delta)
        self.influence = weights * delta / np.maximum(size, delta)
        self.pull = self.influence * residuals
        self.log_inputs = log_inputs
        self.jacobian = jacobian
        self.gradient = (self.pull[:, None] @ jacobian)[:, 0]
        self.reweighted = self.product(self.influence)
        self.scale = np.einsum("rpp->rp", self.reweighted)

    def product(self, weights: np.ndarray) -> np.ndarray:
        """J^T diag(weights) J [R, p, p]."""
        return (self.jacobian.transpose(0, 2, 1) * weights[:, None]) @ self.jacobian


def _reweighted_curvature(slope: _Slope) -> np.ndarray:
    """The curvature of the quadratic that touches the Huber loss from above."""
    return slope.reweighted


def _newton_curvature(slope: _Slope) -> np.ndarray:
    """The Hessian: J^T J of the points inside delta, and the curvature of log L."""
    num_inputs = slope.log_inputs.shape[1]
    curvature = slope.product(slope.inside - slope.pull)
    for j in range(num_inputs):
        factor, exponent = 1 + j, 1 + num_inputs + j
        x = slope.log_inputs[:, j]
        pulled_share = slope.pull * slope.jacobian[:, :, factor]
        curvature[:, factor, factor] += pulled_share.sum(-1)
        curvature[:, factor, exponent] -= pulled_share @ x
        curvature[:, exponent, factor] -= pulled_share @ x
        curvature[:, exponent, exponent] += pulled_share @ x**2
    return curvature


_MODELS = (_reweighted_curvature, _newton_curvature)


def _bounded_step(
    theta: np.ndarray,
    slope: _Slope,
    *,
    curvature: np.ndarray,
    damping: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Levenberg-Marquardt step; parameters that would leave the box go to its edge."""
    identity = np.eye(theta.shape[1])
    tiny = 1e-14 * slope.scale.max(axis=1, keepdims=True) + 1e-300
    diagonal = damping[:, None] * slope.scale + tiny
    system = curvature + diagonal[:, :, None] * identity
    step = np.linalg.solve(system, -slope.gradient[..., None])[..., 0]

    # Compared in theta: rounding of the step would pin parameters that are free.
    pinned = (theta + step < lower) | (theta + step > upper)
    if pinned.any():
        wall = np.clip(theta + step, lower, upper)
        system = np.where(pinned[:, :, None], identity, system)
        right_side = np.where(pinned, wall - theta, -slope.gradient)
        step = np.linalg.solve(system, right_side[..., None])[..., 0]
    return np.clip(theta + step, lower, upper)
