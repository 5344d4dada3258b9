# SPDX-License-Identifier: Apache-2.0
"""Power laws fitted to tables of losses: pure mathematics, independent of rfjax.

law, points             the laws, and what they are fitted to
projection, huber       where a fit starts, and its minimum
noise, intervals, fit   the residuals, the uncertainty of parameters, all together
optimum, frontier       what to train on a budget, and two cross-checks
depth, backtest         sizes as depths; would the law have predicted the largest?
"""

from rfjax.scaling.laws.backtest import BackTest, hold_out_largest
from rfjax.scaling.laws.depth import depth_of_size, size_of_depth
from rfjax.scaling.laws.fit import Fit, FitOptions, fit_law
from rfjax.scaling.laws.frontier import frontier, isoflop_parabolas
from rfjax.scaling.laws.intervals import Interval
from rfjax.scaling.laws.law import LAWS, CannotFit, Law, get_law
from rfjax.scaling.laws.optimum import Cost, Optimum, cost_of, optimum

__all__ = [
    "LAWS",
    "BackTest",
    "CannotFit",
    "Cost",
    "Fit",
    "FitOptions",
    "Interval",
    "Law",
    "Optimum",
    "cost_of",
    "depth_of_size",
    "fit_law",
    "frontier",
    "get_law",
    "hold_out_largest",
    "isoflop_parabolas",
    "optimum",
    "size_of_depth",
]
