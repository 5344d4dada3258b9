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
    captions = caption_all(study)
    by_name = {
        "loss_curves": losses.loss_curves,
        "loss_flops": losses.loss_against_flops,
        "loss_surface": law.loss_surface,
        "law": law.law_in_one_input,
        "residuals": checks.residuals,
        "per_timestep": checks.per_timestep,
        "prediction": checks.prediction,
        "isoflop": checks.isoflop,
    }
    with mpl.rc_context(STYLE):
        for name, draw in by_name.items():
            if name in captions:
                yield name, captions[name], draw(study)


def caption_all(study: Study) -> dict[str, str]:
    """The captions of the figures that the study has the data for, by name."""
    level = f"{study.fit.options.confidence:.0%}"
    captions = {
        "residuals": "What the law leaves unexplained, in percent of the loss. The "
        "band is two standard deviations."
    }
    if "samples" in study.table:
        runs = ", where the learning rate has cooled down; a line follows one run"
        captions["loss_curves"] = (
            "Loss along training. Dots are the points that were fitted"
            + runs * ("run" in study.table)
            + "."
        )
    if study.cost is not None:
        curves = ", and the law at the size of each model"
        captions["loss_flops"] = (
            f"Loss against training compute. Coloured: the points"
            f"{curves * losses.has_curves(study)}. Black: the lowest loss that the law "
            f"allows for a budget, with its {level} band, dashed beyond the runs."
        )
        captions["loss_surface"] = (
            "The fitted law over size and samples, and the runs it was fitted to. "
        ) + (
            "Black: the compute-optimal path, dashed beyond the largest budget spent."
            if law.path_in_reach(study).any()
            else "The compute-optimal path lies far outside of them."
        )
    else:
        captions["law"] = (
            f"The fitted law with its {level} band, dashed beyond the runs."
        )
    per_timestep = study.per_timestep.values()
    if any(isinstance(fit, Fit) for fit in per_timestep):
        missing = "; where there is none, the reason is given below"
        captions["per_timestep"] = (
            "The law fitted to the loss at each t separately (0 is data, 1 is noise), "
            f"with {level} intervals"
            f"{missing * any(isinstance(fit, str) for fit in per_timestep)}."
        )
    if isinstance(study.backtest, BackTest):
        captions["prediction"] = (
            "The largest model: predicted by a fit that has not seen it, with the "
            f"{level} interval for the outcome of one run, and measured."
        )
    if any(parabola.curve is not None for parabola in study.isoflops):
        captions["isoflop"] = (
            "Cross-check without the law: parabolas through the losses at equal "
            "compute. A star is a minimum between the sizes."
        )
    return captions
