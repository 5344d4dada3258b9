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

from rfjax.scaling.laws.depth import depth_of_size
from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.law import CannotFit, recentre
from rfjax.scaling.laws.points import size_of

if TYPE_CHECKING:
    import pandas as pd


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
class Optimum:
    """The best way to spend a budget, with intervals.

    Attributes:
      flops: the budget in training FLOPs.
      size: the best size, in the size measure of the fit.
      samples: the best number of training samples.
      loss: the loss that they reach by the law.
      depth: the depth of that size, None if the table has no depths.
    """

    flops: float
    size: Interval
    samples: Interval
    loss: Interval
    depth: Interval | None


def cost_of(table: pd.DataFrame, *, size_measure: str) -> Cost:
    """The cost of training, from the FLOPs in a runs table, else 6 N D."""
    if size_measure == "flops":
        return Cost(1.0, 1.0, "size is training FLOPs per sample, so C = N D")
    if "train_flops" not in table or not (table["train_flops"] > 0).all():
        return Cost(6.0, 1.0, "assumed: the table has no train_flops, so C = 6 N D")
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

    depth = None
    if table is not None and "depth" in table:
        depth = with_interval(depth_of_size(table, sizes, size_measure=size_measure))
    return Optimum(
        flops=float(flops),
        size=with_interval(sizes),
        samples=with_interval(samples),
        loss=with_interval(losses),
        depth=depth,
    )


def _optimal_size(about_one: np.ndarray, flops: float, cost: Cost) -> np.ndarray:
    """N_opt [R] of laws (E, log A, log B, alpha, beta) [R, 5]."""
    _, log_a, log_b, alpha, beta = about_one.T
    log_balance = np.log(alpha / (cost.omega * beta)) + log_a - log_b
    log_flops = np.log(flops / cost.kappa)
    return np.exp((log_balance + beta * log_flops) / (alpha + cost.omega * beta))
