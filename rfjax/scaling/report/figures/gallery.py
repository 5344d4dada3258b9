# SPDX-License-Identifier: Apache-2.0
"""Every figure of a study, with its caption."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
from matplotlib.figure import Figure

from rfjax.scaling.laws.backtest import BackTest
from rfjax.scaling.laws.fit import Fit
from rfjax.scaling.report.analysis import Study
from rfjax.scaling.report.figures import checks, law, losses
from rfjax.scaling.style import STYLE


def draw_all(study: Study) -> Iterator[tuple[str, str, Figure]]:
    """Every figure that the study has the data for, as (name, caption, figure)."""
    level = f"{study.fit.options.confidence:.0%}"
    with mpl.rc_context(STYLE):
        if "samples" in study.table:
            yield (
                "loss_curves",
                "Validation loss along training. A line follows one run; dots are the "
                "points that were fitted, where the learning rate has cooled down.",
                losses.loss_curves(study),
            )
        if study.cost is not None:
            yield (
                "loss_flops",
                "Loss against training compute. Coloured: the fitted law at the size "
                "of each model. Black: the lowest loss that the law allows for a "
                f"budget, with its {level} band, dashed beyond the runs.",
                losses.loss_against_flops(study),
            )
            yield (
                "loss_surface",
                "The fitted law over size and samples, the runs it was fitted to, and "
                "the compute-optimal path, dashed beyond the largest budget spent.",
                law.loss_surface(study),
            )
        else:
            yield (
                "law",
                f"The fitted law with its {level} band, dashed beyond the runs.",
                law.law_in_one_input(study),
            )
        yield (
            "residuals",
            "What the law leaves unexplained, in percent of the loss. The band is two "
            "standard deviations.",
            checks.residuals(study),
        )
        if any(isinstance(fit, Fit) for fit in study.per_timestep.values()):
            yield (
                "per_timestep",
                "The law fitted to the loss at each t separately (0 is data, 1 is "
                f"noise), with {level} intervals.",
                checks.per_timestep(study),
            )
        if isinstance(study.backtest, BackTest):
            yield (
                "prediction",
                "The largest model: predicted by a fit that has not seen it, with the "
                f"{level} interval for the outcome of one run, and measured.",
                checks.prediction(study),
            )
        if study.isoflops:
            yield (
                "isoflop",
                "Cross-check without the law: parabolas through the losses at equal "
                "compute. A star is a minimum between the sizes.",
                checks.isoflop(study),
            )
