# SPDX-License-Identifier: Apache-2.0
"""What to train on a budget: the compute-optimal size, samples and loss.

With a training cost of C = kappa N^omega D the best split of C follows in closed form
from L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 4, is the case
kappa = 6, omega = 1):

    N_opt^(alpha + omega beta) = alpha A / (omega beta B) * (C / kappa)^beta
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rfjax.scaling.laws.depth import depth_of_size, size_of_depth, why_no_depths
from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.law import CannotFit, recentre
from rfjax.scaling.laws.points import size_of

if TYPE_CHECKING:
    import pandas as pd

_INSIDE = 1.05  # rounding of sizes and samples is not worth a word


@dataclasses.dataclass(frozen=True)
class Cost:
    """Training FLOPs C = kappa size^omega samples, and the source of that formula."""

    kappa: float
    omega: float
    source: str

    def flops(self, size: ArrayLike, samples: ArrayLike) -> ArrayLike:
        """Training FLOPs of a number of samples at a size."""
        return self.kappa * size**self.omega * samples

    def samples(self, size: ArrayLike, flops: ArrayLike) -> ArrayLike:
        """Training samples that a number of FLOPs allows at a size."""
        return flops / (self.kappa * size**self.omega)


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The best model of a whole depth for a budget.

    Attributes:
      depth: number of blocks.
      size: its size, in the size measure of the fit.
      samples: the training samples that the budget allows it.
      loss: the loss that they reach by the law.
    """

    depth: int
    size: float
    samples: float
    loss: Interval


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best way to spend a budget, with intervals.

    Attributes:
      flops: the budget in training FLOPs.
      size: the best size, in the size measure of the fit.
      samples: the best number of training samples.
      loss: the loss that they reach by the law.
      depth: the depth of that size, between two models; None if the table's depths do
        not give its sizes.
      trainable: the better of the two whole depths around it; None without a depth.
      beyond: how far size and samples lie outside those of the fitted points, in
        words; empty if they lie inside.
    """

    flops: float
    size: Interval
    samples: Interval
    loss: Interval
    depth: Interval | None
    trainable: Trainable | None
    beyond: str


def has_flops(table: pd.DataFrame) -> bool:
    """Whether every row of a runs table says what its training cost."""
    return "train_flops" in table and bool((table["train_flops"] > 0).all())


def cost_of(table: pd.DataFrame, *, size_measure: str) -> Cost:
    """The cost of training, from the FLOPs in a runs table, else 6 N D."""
    if size_measure == "flops":
        return Cost(1.0, 1.0, "size is training FLOPs per sample, so C = N D")
    if not has_flops(table):
        missing = "the table has no train_flops"
        if "train_flops" in table:
            count = int((~(table["train_flops"] > 0)).sum())
            missing = f"{count} of {len(table)} rows have no train_flops"
        return Cost(6.0, 1.0, f"assumed: {missing}, so C = 6 N D")
    log_size = np.log(size_of(table, size_measure=size_measure))
    log_flops = np.log(table["train_flops"] / table["samples"])
    omega, log_kappa = np.polyfit(log_size, log_flops, 1)
    return Cost(
        float(np.exp(log_kappa)),
        float(omega),
        "a power law through the training FLOPs per sample of these runs",
    )


def allocation_exponent(fit: Fit, *, cost: Cost) -> Interval:
    """The power a of N_opt ~ C^a, with its interval."""

    def exponent(theta: np.ndarray) -> np.ndarray:
        """Of laws (E, log A, log B, alpha, beta), about any centre."""
        return theta[..., 4] / (theta[..., 3] + cost.omega * theta[..., 4])

    return fit.interval(exponent(fit.theta), exponent(fit.draws))


def optimum(
    fit: Fit,
    *,
    flops: float,
    cost: Cost,
    table: pd.DataFrame | None = None,
    size_measure: str = "params",
) -> Optimum:
    """The compute-optimal size, samples, loss and depth for a budget.

    Args:
      fit: a fit of the law "chinchilla".
      flops: the budget in training FLOPs.
      cost: the cost of a sample at a size, see `cost_of`.
      table: runs with depths, to convert the size into a depth.
      size_measure: the size measure of the fit.

    Raises: CannotFit if the law does not have both inputs.

    Example:
      >>> import pandas as pd
      >>> from rfjax.scaling.laws.fit import FitOptions, fit_law
      >>> table = pd.DataFrame(
      ...     {"params": n, "samples": d, "loss": 0.5 + 40 / n**0.4 + 10 / d**0.3}
      ...     for n in (1e6, 1e7, 1e8)
      ...     for d in (1e5, 1e6, 1e7)
      ... )
      >>> fit = fit_law(table, options=FitOptions(num_bootstraps=100))
      >>> best = optimum(fit, flops=1e16, cost=cost_of(table, size_measure="params"))
      >>> f"{best.size.value:.1e} parameters, {best.samples.value:.1e} samples"
      '3.6e+07 parameters, 4.6e+07 samples'
    """
    if fit.law.inputs != ("size", "samples"):
        raise CannotFit(
            f"a compute-optimal split needs a law of size and samples, got "
            f"{fit.law.formula}; fit law=chinchilla."
        )
    thetas = np.vstack([fit.theta, fit.draws])
    sizes = _optimal_size(recentre(thetas, shift=fit.log_centre), flops, cost)
    samples = cost.samples(sizes, flops)
    log_inputs = np.log(np.stack([sizes, samples], axis=1)) - fit.log_centre
    exponents = thetas[:, 3:]
    losses = thetas[:, 0] + np.exp(thetas[:, 1:3] - exponents * log_inputs).sum(1)

    def with_interval(values: np.ndarray) -> Interval:
        """The first value, with the interval of the others."""
        return fit.interval(values[0], values[1:])

    depth, trainable = None, None
    if table is not None and not why_no_depths(table, size_measure=size_measure):
        depth = with_interval(depth_of_size(table, sizes, size_measure=size_measure))
        shallower = max(1, int(depth.value))
        around = np.array([shallower, shallower + 1])
        sizes_around = size_of_depth(table, around, size_measure=size_measure)
        models = [
            Trainable(
                depth=int(whole),
                size=float(size),
                samples=float(cost.samples(size, flops)),
                loss=fit.predict(size=size, samples=cost.samples(size, flops)),
            )
            for whole, size in zip(around, sizes_around, strict=True)
        ]
        trainable = min(models, key=lambda model: model.loss.value)
    return Optimum(
        flops=float(flops),
        size=with_interval(sizes),
        samples=with_interval(samples),
        loss=with_interval(losses),
        depth=depth,
        trainable=trainable,
        beyond=", ".join(
            part
            for part in (
                _beyond("FLOPs", flops, cost.flops(*np.exp(fit.points.log_inputs).T)),
                beyond_points(fit, size=sizes[0], samples=samples[0]),
            )
            if part
        ),
    )


def beyond_points(fit: Fit, **inputs: float) -> str:
    """How far inputs of a law lie outside its fitted points, in words.

    Returns: such as "samples 8 times the largest"; empty if they lie inside.
    """
    seen = np.exp(fit.points.log_inputs).T
    parts = (
        _beyond(name, inputs[name], v)
        for name, v in zip(fit.law.inputs, seen, strict=True)
    )
    return ", ".join(part for part in parts if part)


def _beyond(name: str, value: float, seen: np.ndarray) -> str:
    """How far a value lies outside of those seen; empty if inside."""
    if value > _INSIDE * seen.max():
        return f"{name} {_ratio(value / seen.max())} times the largest"
    if value * _INSIDE < seen.min():
        return f"{name} 1/{_ratio(seen.min() / value)} of the smallest"
    return ""


def _ratio(value: float) -> str:
    return f"{value:.0f}" if 10 <= value < 1e6 else f"{value:.2g}"


def _optimal_size(about_one: np.ndarray, flops: float, cost: Cost) -> np.ndarray:
    """N_opt [R] of laws (E, log A, log B, alpha, beta) [R, 5]."""
    _, log_a, log_b, alpha, beta = about_one.T
    log_balance = np.log(alpha / (cost.omega * beta)) + log_a - log_b
    log_flops = np.log(flops / cost.kappa)
    return np.exp((log_balance + beta * log_flops) / (alpha + cost.omega * beta))
