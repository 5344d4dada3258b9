# SPDX-License-Identifier: Apache-2.0
"""How uncertain the parameters of a law are: bootstrap and profile likelihood.

The bootstrap redraws the data and fits again; everything derived from the law
(predictions, frontier, compute-optimal size) takes its interval from these fits.
The profile holds one parameter at a value, fits the others, and keeps the values whose
objective is not significantly worse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rfjax.scaling.laws import huber
from rfjax.scaling.laws.noise import Noise


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate between its bounds; a bound is infinite where the data set none."""

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def map(self, increasing: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the estimate."""
        return Interval(*(float(increasing(v)) for v in dataclasses.astuple(self)))


# --- Bootstrap ---------------------------------------------------------------------


def redraw_residuals(
    log_fitted: np.ndarray,
    log_loss: np.ndarray,
    *,
    noise: Noise,
    generator: np.random.Generator,
    num_draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The same points with new residuals, run by run; works with few runs."""
    return log_fitted + noise.draw(generator, num_draws), np.ones(1)


def redraw_runs(
    log_fitted: np.ndarray,
    log_loss: np.ndarray,
    *,
    noise: Noise,
    generator: np.random.Generator,
    num_draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Whole runs with replacement, each with all of its points (cluster bootstrap)."""
    num_runs = noise.run_of_point.max() + 1
    counts = generator.multinomial(
        num_runs, np.full(num_runs, 1 / num_runs), size=num_draws
    )
    return log_loss, counts[:, noise.run_of_point].astype(np.float64)


def redraw_points(
    log_fitted: np.ndarray,
    log_loss: np.ndarray,
    *,
    noise: Noise,
    generator: np.random.Generator,
    num_draws: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Points with replacement, as if each came from its own run."""
    num_points = len(log_loss)
    counts = generator.multinomial(
        num_points, np.full(num_points, 1 / num_points), size=num_draws
    )
    return log_loss, counts.astype(np.float64)


# name -> function that returns (log_loss [n] or [R, n], weights broadcast to [R, n])
RESAMPLING = {
    "residuals": redraw_residuals,
    "runs": redraw_runs,
    "points": redraw_points,
}


def bias_corrected_interval(
    value: float, draws: np.ndarray, *, confidence: float, degrees_of_freedom: int
) -> Interval:
    """Percentiles of the draws, corrected for their median bias (Efron 1981).

    The tails are those of Student's t: with few points the plain percentiles are
    too narrow (Hesterberg 2015, section 3.3.1).

    Args:
      value: the estimate.
      draws: [R] the same estimate on R resamples.
      confidence: such as 0.95.
      degrees_of_freedom: points minus fitted parameters.
    """
    below = np.mean(draws < value) + 0.5 * np.mean(draws == value)
    shift = stats.norm.ppf(np.clip(below, 0.01, 0.99))
    tail = stats.t.ppf((1 + confidence) / 2, degrees_of_freedom)
    levels = stats.norm.cdf(2 * shift + np.array([-tail, tail]))
    low, high = np.quantile(draws, levels)
    return Interval(float(value), float(low), float(high))


# --- Profile likelihood --------------------------------------------------------------

# Distances from the minimum, in standard errors, at which a profile is evaluated.
_LADDER = np.array([1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 30.0, 100.0])
_REFINEMENT = 6  # further evaluations inside the bracket that holds the crossing


def profile_cutoff(
    *,
    delta: float,
    scale: float,
    num_residuals: int,
    num_parameters: int,
    confidence: float,
) -> float:
    """How much worse than the minimum the Huber objective may be.

    Twice the rise of the objective over E[psi^2] / E[psi'] is F-distributed with
    (1, n - p) degrees of freedom (Schrader and Hettmansperger 1980); both
    expectations are taken under normal residuals of the given scale, psi being
    the derivative of the Huber loss.
    """
    if scale == 0:
        return 0.0
    turn = delta / scale
    inside = 2 * stats.norm.cdf(turn) - 1
    mean_square = scale**2 * (inside - 2 * turn * stats.norm.pdf(turn)) + (
        delta**2 * (1 - inside)
    )
    quantile = stats.f.ppf(confidence, 1, num_residuals - num_parameters)
    return float(0.5 * quantile * mean_square / inside)


def covariance(
    jacobian: np.ndarray, *, run_of_point: np.ndarray, run_correlation: float
) -> np.ndarray:
    """Covariance of theta over the noise variance, with correlation within runs.

    W^-1 ((1 - rho) W + rho sum_runs s s^T) W^-1, W = J^T J, s = the sum of J of a run.
    """
    bread = np.linalg.pinv(jacobian.T @ jacobian, hermitian=True, rcond=1e-14)
    run_sums = np.zeros((run_of_point.max() + 1, jacobian.shape[1]))
    np.add.at(run_sums, run_of_point, jacobian)
    filling = (1 - run_correlation) * (jacobian.T @ jacobian) + run_correlation * (
        run_sums.T @ run_sums
    )
    return bread @ filling @ bread


def profile_intervals(
    log_inputs: np.ndarray,
    log_loss: np.ndarray,
    *,
    theta: np.ndarray,
    indices: Sequence[int],
    lower: np.ndarray,
    upper: np.ndarray,
    noise: Noise,
    delta: float,
    confidence: float,
) -> list[Interval]:
    """Ranges of some entries of theta that the data do not reject.

    Args:
      log_inputs: [n, J] about the centre for which the entries are the wanted
        parameters (centre one for A and B).
      log_loss: [n].
      theta: [p] the minimum.
      indices: the entries.
      lower: [p] lower bounds of the fit.
      upper: [p] upper bounds of the fit.
      noise: its scale sets the cut-off, its run correlation raises it.
      delta: where the Huber loss turns linear.
      confidence: such as 0.95.

    Returns: one interval per index; where nothing is rejected, the bound of the fit.
    """
    data = {"lower": lower, "upper": upper, "delta": delta}
    _, jacobian = huber.log_loss_jacobian(theta[None], log_inputs)
    runs = noise.run_of_point
    independent = covariance(jacobian[0], run_of_point=runs, run_correlation=0.0)
    clustered = covariance(
        jacobian[0], run_of_point=runs, run_correlation=noise.run_correlation
    )
    design_effect = np.diag(clustered) / np.diag(independent)
    cutoff = design_effect * profile_cutoff(
        delta=delta,
        scale=noise.scale,
        num_residuals=len(log_loss),
        num_parameters=len(theta),
        confidence=confidence,
    )
    standard_error = noise.scale * np.sqrt(np.diag(clustered))

    # One side of one parameter is one search for a crossing; all run together.
    side_index = np.repeat(indices, 2)
    sign = np.tile([-1.0, 1.0], len(indices))

    def rise(values: np.ndarray) -> np.ndarray:
        """Rise of the objective along every search, at values [S, K]."""
        return _profile_rise(
            side_index, values, log_inputs, log_loss, theta, independent, data
        )

    bounds = _crossings(
        rise,
        start=theta[side_index],
        step=sign * standard_error[side_index],
        wall=np.where(sign < 0, lower[side_index], upper[side_index]),
        cutoff=cutoff[side_index],
    ).reshape(-1, 2)
    return [
        Interval(float(theta[index]), float(low), float(high))
        for index, (low, high) in zip(indices, bounds, strict=True)
    ]


def _profile_rise(
    index: np.ndarray,
    values: np.ndarray,
    log_inputs: np.ndarray,
    log_loss: np.ndarray,
    theta: np.ndarray,
    covariance_: np.ndarray,
    data: Mapping[str, Any],
) -> np.ndarray:
    """Rise [S, K] of the objective with theta[index[s]] held at values[s, k]."""
    index = np.repeat(index, values.shape[1])
    held = np.clip(values.reshape(-1), data["lower"][index], data["upper"][index])
    # The valley of the objective to first order: how the others follow as one moves.
    valley = covariance_[:, index].T / covariance_[index, index][:, None]
    rows = np.arange(len(held))
    lower = np.tile(data["lower"], (len(held), 1))
    upper = np.tile(data["upper"], (len(held), 1))
    lower[rows, index] = upper[rows, index] = held
    found = huber.minimise(
        log_inputs,
        log_loss,
        start=theta + (held - theta[index])[:, None] * valley,
        lower=lower,
        upper=upper,
        delta=data["delta"],
        max_iterations=200,
        tolerance=1e-6,  # of the objective; the cut-off is a thousand times larger
    )
    minimum = huber.huber_objective(
        theta[None], log_inputs, log_loss, weights=1.0, delta=data["delta"]
    )
    return (found.objective - minimum).reshape(values.shape)


def _crossings(
    rise: Callable[[np.ndarray], np.ndarray],
    *,
    start: np.ndarray,
    step: np.ndarray,
    wall: np.ndarray,
    cutoff: np.ndarray,
) -> np.ndarray:
    """Where each profile [S] first meets its cut-off, going from start by steps."""
    if not cutoff.any():
        return start
    rows = np.arange(len(start))
    values = start[:, None] + step[:, None] * _LADDER
    for _ in range(2):  # a coarse search, then a fine one inside its bracket
        rises = np.maximum(rise(values), 0)
        values = np.column_stack([start, values])
        rises = np.column_stack([np.zeros_like(start), rises])
        outside = rises > cutoff[:, None]
        outer = np.maximum(outside.argmax(axis=1), 1)
        ends = values[rows, outer - 1], values[rows, outer]
        values = np.linspace(*ends, _REFINEMENT, axis=1)
    # The square root of the rise is nearly linear in between.
    roots = np.sqrt(rises[rows, outer - 1]), np.sqrt(rises[rows, outer])
    share = (np.sqrt(cutoff) - roots[0]) / np.maximum(roots[1] - roots[0], 1e-300)
    bounds = ends[0] + np.clip(share, 0, 1) * (ends[1] - ends[0])
    bounds = np.where(outside.any(axis=1), bounds, wall)
    return np.where(step < 0, np.maximum(bounds, wall), np.minimum(bounds, wall))
