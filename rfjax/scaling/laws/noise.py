# SPDX-License-Identifier: Apache-2.0
"""The residuals: their scale, and how correlated those of one run are.

The points of one run (branches cooled down from one constant-rate trunk) share its
initialisation and its data order, so their residuals are not independent:

    log L_measured - log L_fitted  =  u_run + v_point
"""

from __future__ import annotations

import dataclasses

import numpy as np

_NORMAL_MAD = 0.6744897501960817  # median of |z|, z standard normal
_WINSOR = 3.0  # deviations at which residuals are clipped in the scale


@dataclasses.dataclass(frozen=True)
class Noise:
    """Residuals of a fit, split into effects of runs and of points.

    Attributes:
      run_of_point: [n] int, which run each point belongs to.
      run_effects: [G] one per run, with the variance estimated for u; zeros where
        runs have one point each or correlate no more than by chance.
      point_effects: [m] residuals within runs, with the variance estimated for v.
      scale: standard deviation of one log-residual, robust, corrected for p
        fitted parameters.
      run_correlation: share of the variance that the points of a run have in common.
    """

    run_of_point: np.ndarray
    run_effects: np.ndarray
    point_effects: np.ndarray
    scale: float
    run_correlation: float

    def draw(self, generator: np.random.Generator, num_draws: int) -> np.ndarray:
        """New residuals [num_draws, n] of the same points, run by run."""
        runs = _smoothed_draw(
            self.run_effects, (num_draws, len(self.run_effects)), generator
        )
        points = _smoothed_draw(
            self.point_effects, (num_draws, len(self.run_of_point)), generator
        )
        return runs[:, self.run_of_point] + points

    def draw_new(self, generator: np.random.Generator, num_draws: int) -> np.ndarray:
        """Residuals [num_draws] of one point of a new run."""
        return _smoothed_draw(
            self.run_effects, (num_draws,), generator
        ) + _smoothed_draw(self.point_effects, (num_draws,), generator)


def robust_scale(residuals: np.ndarray, *, num_parameters: int) -> float:
    """Standard deviation of residuals, with outliers clipped, for p fitted parameters.

    A fit of absolute residuals passes through about p points, so the p smallest
    residuals say nothing about the noise; the median is taken over the others.
    """
    size = np.sort(np.abs(residuals))
    median_scale = np.median(size[num_parameters:]) / _NORMAL_MAD
    clipped = np.minimum(size, _WINSOR * median_scale)
    return float(np.sqrt((clipped**2).sum() / (len(size) - num_parameters)))


def estimate_noise(
    residuals: np.ndarray, *, runs: np.ndarray, num_parameters: int
) -> Noise:
    """Splits residuals [n] into run and point effects (one-way variance components).

    Args:
      residuals: [n] measured minus fitted log-loss.
      runs: [n] labels; points with one label belong to one run.
      num_parameters: number p of fitted parameters, p < n.
    """
    labels, run_of_point = np.unique(runs, return_inverse=True)
    num_points, num_runs = len(residuals), len(labels)
    scale = robust_scale(residuals, num_parameters=num_parameters)
    if num_runs == num_points:
        kept = np.sort(np.argsort(np.abs(residuals))[num_parameters:])
        point_effects = residuals[kept] - np.median(residuals[kept])
        return Noise(run_of_point, np.zeros(num_runs), point_effects, scale, 0.0)

    sizes = np.bincount(run_of_point)
    means = np.bincount(run_of_point, residuals) / sizes
    within = residuals - means[run_of_point]
    within_variance = (within**2).sum() / (num_points - num_runs)
    between_variance = max(
        0.0, means.var(ddof=1) - within_variance * np.mean(1 / sizes)
    )
    # Corrects for the fitted parameters, in equal measure for both parts.
    inflation = num_points / (num_points - num_parameters)
    total = within_variance + between_variance
    return Noise(
        run_of_point=run_of_point,
        run_effects=_rescaled(means, inflation * between_variance),
        point_effects=_rescaled(
            within[sizes[run_of_point] > 1], inflation * within_variance
        ),
        scale=scale,
        run_correlation=float(between_variance / total) if total > 0 else 0.0,
    )


def _rescaled(values: np.ndarray, variance: float) -> np.ndarray:
    """The values centred on zero and scaled to the given variance."""
    centred = values - values.mean()
    spread = centred.std()
    return centred * (np.sqrt(variance) / spread if spread > 0 else 0.0)


def _smoothed_draw(
    values: np.ndarray, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """Draws with replacement, smoothed a little with the variance preserved.

    Without smoothing, a bootstrap of absolute residuals is inconsistent to second
    order: it needs the density at zero (De Angelis, Hall and Young 1993). The
    bandwidth is Silverman's rule.
    """
    spread = values.std()
    robust_spread = np.median(np.abs(values)) / _NORMAL_MAD
    bandwidth = 0.9 * min(spread, robust_spread) * len(values) ** -0.2
    smoothed = generator.choice(values, size=shape) + bandwidth * (
        generator.standard_normal(shape)
    )
    shrink = spread / np.hypot(spread, bandwidth) if spread > 0 else 0.0
    return smoothed * shrink
