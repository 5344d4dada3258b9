# SPDX-License-Identifier: Apache-2.0
"""Fits a power law to a runs table, with intervals, and predicts from it.

1. points      the rows of the table as (log inputs, log loss), checked
2. starts      variable projection on a grid of exponents
3. minimum     summed Huber loss of log-residuals, all parameters together
4. noise       scale of the residuals, and how correlated those of one run are
5. intervals   profile likelihood for the parameters, bootstrap for the rest
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rfjax.scaling.laws import huber, intervals
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.law import (
    CannotFit,
    Law,
    get_law,
    natural_parameters,
    predict_loss,
    recentre,
    rescale,
)
from rfjax.scaling.laws.noise import Noise, estimate_noise
from rfjax.scaling.laws.points import Points, select_points
from rfjax.scaling.laws.projection import project_starts

if TYPE_CHECKING:
    import pandas as pd

MIN_BOOTSTRAPS = 100
# A and B are unbounded: a factor of exp(100) either way only guards the arithmetic.
_LOG_ANY_FACTOR = 100.0
# Closer than this to a bound of theta is on it; of a floor, in units of the mean loss.
_TRACE = 1e-9


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How a law is fitted.

    Attributes:
      delta: where the Huber loss of log-residuals turns from quadratic to linear;
        1e-3 makes it nearly the absolute residual, so outliers hardly matter.
      confidence: confidence level of every interval.
      num_bootstraps: resamples for predictions and the compute-optimal frontier.
      resampling: what a resample redraws: "residuals" (run by run, same design),
        "runs" (whole runs, with replacement) or "points" (as if independent).
      seed: seed of the resamples.
      exponent_range: range in which exponents are searched; a minimum on its edge is
        an error.
      grid_size: exponents per axis of the grid of starts.
      num_starts: grid points from which the joint fit starts.
    """

    delta: float = 1e-3
    confidence: float = 0.95
    num_bootstraps: int = 1000
    resampling: str = "residuals"
    seed: int = 0
    exponent_range: tuple[float, float] = (0.01, 4.0)
    grid_size: int = 16
    num_starts: int = 8

    def __post_init__(self):
        if self.delta <= 0:
            raise CannotFit(f"delta must be positive, got {self.delta}.")
        if not 0 < self.confidence < 1:
            raise CannotFit(
                f"confidence must lie between 0 and 1, got {self.confidence}; "
                "choose a level such as 0.95."
            )
        if self.num_bootstraps < MIN_BOOTSTRAPS:
            raise CannotFit(
                f"num_bootstraps must be at least {MIN_BOOTSTRAPS}, got "
                f"{self.num_bootstraps}; fewer do not reach the tails of an interval."
            )
        if self.resampling not in intervals.RESAMPLING:
            raise CannotFit(
                f"resampling must be one of {', '.join(intervals.RESAMPLING)}, "
                f"got {self.resampling!r}."
            )


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      law: form of the law.
      theta: [p] its parameters about the centre.
      log_centre: [J] mean log inputs of the points.
      parameters: name -> natural parameter with its profile-likelihood interval.
      bootstrap_parameters: name -> the same with its bootstrap interval.
      draws: [R, p] theta fitted to each resample.
      points: the fitted points.
      noise: the residuals, analysed.
      options: how it was fitted.
      notes: what a reader should know before using it.
    """

    law: Law
    theta: np.ndarray
    log_centre: np.ndarray
    parameters: dict[str, Interval]
    bootstrap_parameters: dict[str, Interval]
    draws: np.ndarray
    points: Points
    noise: Noise
    options: FitOptions
    notes: tuple[str, ...]

    @property
    def values(self) -> dict[str, float]:
        """Natural parameters by name."""
        return {name: interval.value for name, interval in self.parameters.items()}

    @property
    def degrees_of_freedom(self) -> int:
        """Points minus parameters."""
        return len(self.points) - self.law.num_parameters

    @property
    def residuals(self) -> np.ndarray:
        """[n] measured minus fitted log-loss."""
        fitted = self.predict_many(np.exp(self.points.log_inputs))
        return self.points.log_loss - np.log(fitted)

    def predict_many(self, inputs: np.ndarray) -> np.ndarray:
        """The law's loss [m] at inputs [m, J]."""
        return predict_loss(self.theta[None], np.log(inputs) - self.log_centre)[0]

    def predict_draws(self, inputs: np.ndarray) -> np.ndarray:
        """Losses [R, m] of the resampled laws at inputs [m, J]."""
        return predict_loss(self.draws, np.log(inputs) - self.log_centre)

    def interval(self, value: float, draws: np.ndarray) -> Interval:
        """Bootstrap interval of any quantity derived from the law.

        Args:
          value: the quantity by the fit.
          draws: [R] the quantity by each resampled law.
        """
        return intervals.bias_corrected_interval(
            value,
            draws,
            confidence=self.options.confidence,
            degrees_of_freedom=self.degrees_of_freedom,
        )

    def predict(self, **inputs: float) -> Interval:
        """The law's loss at one point, as in `fit.predict(size=1e9, samples=1e10)`.

        Raises: CannotFit if the inputs are not those of the law.
        """
        point = self._point(inputs)
        return self.interval(
            self.predict_many(point)[0], self.predict_draws(point)[:, 0]
        )

    def predict_outcome(self, **inputs: float) -> Interval:
        """The loss that one new run will measure: the law's, and the noise of a run."""
        point = self._point(inputs)
        generator = np.random.default_rng(self.options.seed + 1)
        noise = self.noise.draw_new(generator, len(self.draws))
        outcomes = self.predict_draws(point)[:, 0] * np.exp(noise)
        tail = (1 - self.options.confidence) / 2
        low, high = np.quantile(outcomes, [tail, 1 - tail])
        return Interval(float(self.predict_many(point)[0]), float(low), float(high))

    def _point(self, inputs: Mapping[str, float]) -> np.ndarray:
        """The inputs as [1, J], in the order of the law."""
        if set(inputs) != set(self.law.inputs):
            raise CannotFit(
                f"{self.law.formula} is a function of {', '.join(self.law.inputs)}, "
                f"got {', '.join(inputs) or 'nothing'}."
            )
        return np.array([[inputs[name] for name in self.law.inputs]], dtype=float)


def fit_law(
    table: pd.DataFrame,
    *,
    law: str = "chinchilla",
    size_measure: str = "params",
    loss: str = "loss",
    options: FitOptions | None = None,
) -> Fit:
    """Fits a law to every row of a runs table.

    Args:
      table: columns as `load_runs` names them; choose rows with `quality.fitted_rows`.
      law: a name in `law.LAWS`.
      size_measure: what N is: params, params_without_adaln, or flops (training
        FLOPs per sample).
      loss: column of the loss.
      options: how to fit.

    Raises: CannotFit with the reason if the points do not determine the law.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame(
      ...     {"params": n, "samples": d, "loss": 0.5 + 40 / n**0.4 + 10 / d**0.3}
      ...     for n in (1e6, 1e7, 1e8)
      ...     for d in (1e5, 1e6, 1e7)
      ... )
      >>> fit = fit_law(table, options=FitOptions(num_bootstraps=100))
      >>> {name: round(float(value), 3) for name, value in fit.values.items()}
      {'E': 0.5, 'A': 40.0, 'B': 10.0, 'alpha': 0.4, 'beta': 0.3}
      >>> round(fit.predict(size=1e9, samples=1e8).value, 3)
      0.55
    """
    chosen = get_law(law)
    points = select_points(table, law=chosen, size_measure=size_measure, loss=loss)
    return fit_points(points, law=chosen, options=options or FitOptions())


def fit_points(points: Points, *, law: Law, options: FitOptions) -> Fit:
    """Fits a law to points; see `fit_law`."""
    # In units of their mean, losses are of order one, as all that the solver compares:
    # the fit is the same in every unit of the loss.
    log_unit = points.log_loss.mean()
    in_units = dataclasses.replace(points, log_loss=points.log_loss - log_unit)
    log_centre = points.log_inputs.mean(axis=0)
    log_inputs = points.log_inputs - log_centre
    lower, upper = _bounds(in_units, law=law, options=options)
    box = {"lower": lower, "upper": upper, "delta": options.delta}

    minimum = _minimise(log_inputs, in_units, options=options, box=box)
    theta = _without_traces(minimum.theta[0])
    notes = _check_interior(theta, law=law, lower=lower, upper=upper)
    noise = estimate_noise(
        in_units.log_loss - np.log(predict_loss(minimum.theta, log_inputs)[0]),
        runs=points.runs,
        num_parameters=law.num_parameters,
    )
    how = {"noise": noise, "options": options, "box": box}
    draws = _without_traces(_bootstrap(log_inputs, in_units, minimum=minimum, **how))
    by_profile = _profile(in_units, theta=theta, law=law, **how)

    theta, draws = (rescale(laws, log_unit=log_unit) for laws in (theta, draws))
    by_bootstrap = _bootstrap_intervals(
        *(
            natural_parameters(t, law=law, log_centre=log_centre)
            for t in (theta, draws)
        ),
        law=law,
        options=options,
        degrees_of_freedom=len(points) - law.num_parameters,
    )
    for name in by_profile.keys() & law.names[: 1 + law.num_inputs]:
        by_profile[name] = by_profile[name].map(lambda v: v * np.exp(log_unit))
    parameters = by_bootstrap | by_profile
    notes += _check_bounded(parameters, law=law, options=options)
    return Fit(
        law=law,
        theta=theta,
        log_centre=log_centre,
        parameters=parameters,
        bootstrap_parameters=by_bootstrap,
        draws=draws,
        points=points,
        noise=noise,
        options=options,
        notes=tuple(notes),
    )


def _minimise(
    log_inputs: np.ndarray,
    points: Points,
    *,
    options: FitOptions,
    box: Mapping[str, Any],
) -> huber.Minimum:
    """The lowest minimum from the best points of a grid of exponents."""
    starts = project_starts(
        log_inputs,
        np.exp(points.log_loss),
        exponents=np.geomspace(0.05, 2.5, options.grid_size),
        num_starts=options.num_starts,
    )
    return huber.minimise(log_inputs, points.log_loss, start=starts, **box).best()


def _bootstrap_intervals(
    values: np.ndarray,
    draws: np.ndarray,
    *,
    law: Law,
    options: FitOptions,
    degrees_of_freedom: int,
) -> dict[str, Interval]:
    """Bootstrap intervals by name, of natural parameters [p] and their draws [R, p]."""
    return {
        name: intervals.bias_corrected_interval(
            value,
            draws[:, index],
            confidence=options.confidence,
            degrees_of_freedom=degrees_of_freedom,
        )
        for index, (name, value) in enumerate(zip(law.names, values, strict=True))
    }


def _bounds(
    points: Points, *, law: Law, options: FitOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of theta; wide where they only keep the arithmetic finite."""
    largest = np.exp(points.log_loss.max())
    ones = np.ones(law.num_inputs)
    smallest_exponent, largest_exponent = options.exponent_range
    log_smallest = np.log(1e-6) + points.log_loss.min()
    lower = np.concatenate([[0.0], log_smallest * ones, smallest_exponent * ones])
    upper = np.concatenate(
        [[largest], (np.log(1e3 * largest)) * ones, largest_exponent * ones]
    )
    return lower, upper


def _without_traces(theta: np.ndarray) -> np.ndarray:
    """Laws [..., p] in units of the mean loss, with a floor that is none set to 0."""
    theta = theta.copy()
    theta[..., 0] = np.where(theta[..., 0] <= _TRACE, 0.0, theta[..., 0])
    return theta


def _check_interior(
    theta: np.ndarray, *, law: Law, lower: np.ndarray, upper: np.ndarray
) -> list[str]:
    """Raises CannotFit if the minimum is on the edge of the box; notes a zero floor."""
    at_edge = (theta <= lower + _TRACE) | (theta >= upper - _TRACE)
    for index in np.flatnonzero(at_edge[1:]) + 1:
        is_exponent = index > law.num_inputs
        name = law.names[index]
        raise CannotFit(
            f"the minimum lies on the edge of the search: {name} "
            + (
                f"= {theta[index]:.3g}, searched from {lower[index]:.3g} to "
                f"{upper[index]:.3g}"
                if is_exponent
                else "vanishes, so its exponent is meaningless"
            )
            + "; the runs do not show this term; widen their range or choose a "
            "law without it."
        )
    if at_edge[0]:
        return ["The floor E is at its bound 0: these runs do not show one."]
    return []


def _check_bounded(
    parameters: Mapping[str, Interval], *, law: Law, options: FitOptions
) -> list[str]:
    """Raises CannotFit for an exponent that may take any value; notes open ends."""
    notes = []
    smallest, largest = options.exponent_range
    for name in law.names[1 + law.num_inputs :]:
        interval = parameters[name]
        open_ends = [interval.low <= smallest, interval.high >= largest]
        if all(open_ends):
            raise CannotFit(
                f"{name} is not identified: every value from {smallest} to {largest} "
                f"fits within the noise ({options.confidence:.0%}); widen the range "
                "of the runs or add seeds."
            )
        if any(open_ends):
            notes.append(f"The interval of {name} has no bound on one side.")
    return notes


def _bootstrap(
    log_inputs: np.ndarray,
    points: Points,
    *,
    minimum: huber.Minimum,
    noise: Noise,
    options: FitOptions,
    box: Mapping[str, Any],
) -> np.ndarray:
    """Fits R resamples, each from the minimum; returns theta [R, p]."""
    log_fitted = np.log(predict_loss(minimum.theta, log_inputs)[0])
    log_loss, weights = intervals.RESAMPLING[options.resampling](
        log_fitted,
        points.log_loss,
        noise=noise,
        generator=np.random.default_rng(options.seed),
        num_draws=options.num_bootstraps,
    )
    starts = np.repeat(minimum.theta, options.num_bootstraps, axis=0)
    # Resamples need their minimum to a small part of the interval, not exactly.
    return huber.minimise(
        log_inputs,
        log_loss,
        weights=weights,
        start=starts,
        max_iterations=100,
        tolerance=1e-7,
        **box,
    ).theta


def _profile(
    points: Points,
    *,
    theta: np.ndarray,
    law: Law,
    noise: Noise,
    options: FitOptions,
    box: Mapping[str, Any],
) -> dict[str, Interval]:
    """Profile intervals by name: E and exponents about the centre, factors about one.

    A scale such as C0 is not an entry of theta about any fixed centre and has none.
    """
    num_inputs = law.num_inputs
    log_centre = points.log_inputs.mean(axis=0)
    how = {"noise": noise, "delta": options.delta, "confidence": options.confidence}
    around_centre = [0, *range(1 + num_inputs, law.num_parameters)]
    found = intervals.profile_intervals(
        points.log_inputs - log_centre,
        points.log_loss,
        theta=theta,
        indices=around_centre,
        lower=box["lower"],
        upper=box["upper"],
        **how,
    )
    by_name = {law.names[i]: f for i, f in zip(around_centre, found, strict=True)}
    if law.scale_coefficients:
        return by_name
    factors = list(range(1, 1 + num_inputs))
    about_one = recentre(theta, shift=log_centre)
    lower, upper = box["lower"].copy(), box["upper"].copy()
    lower[factors] = about_one[factors] - _LOG_ANY_FACTOR
    upper[factors] = about_one[factors] + _LOG_ANY_FACTOR
    found = intervals.profile_intervals(
        points.log_inputs,
        points.log_loss,
        theta=about_one,
        indices=factors,
        lower=lower,
        upper=upper,
        **how,
    )
    for index, log_factor in zip(factors, found, strict=True):
        factor = log_factor.map(np.exp)
        if log_factor.low <= lower[index]:
            factor = dataclasses.replace(factor, low=0.0)
        if log_factor.high >= upper[index]:
            factor = dataclasses.replace(factor, high=np.inf)
        by_name[law.names[index]] = factor
    return by_name
