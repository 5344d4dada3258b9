# SPDX-License-Identifier: Apache-2.0
"""One picture of a run: its losses over time, and its validation loss over t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.evaluation.validation import PROTOCOL
from rfjax.timestep_levels import NUM_LEVELS

_LINES = {  # metric -> (label, colour, width)
    "train/loss": ("train", "#9aa0a6", 1.2),
    "val/loss": (f"{PROTOCOL}, raw weights", "#e08214", 1.8),
    "val_ema/loss": (f"{PROTOCOL}, EMA weights", "#2166ac", 1.8),
}


def draw_curves(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, float],
    *,
    title: str,
    out: Path,
) -> None:
    """Writes losses against steps (left) and the validation loss against t (right).

    Args:
      metrics: lines of metrics.jsonl.
      evaluation: one set of validation metrics, e.g. of `commands.evaluate`.
      title: headline.
      out: PNG to write.
    """
    # matplotlib takes a second to import, and only pictures need it.
    from matplotlib import ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=120)
    over_time, over_t = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, (label, colour, width) in _LINES.items():
        points = [(line["step"], line[name]) for line in metrics if name in line]
        if points:
            marker = "" if name.startswith("train") else "o"
            over_time.plot(
                *zip(*points, strict=True),
                label=label, color=colour, linewidth=width, marker=marker, markersize=4,
            )  # fmt: skip
    over_time.set(xlabel="optimizer step", ylabel="loss (mean squared velocity error)")
    over_time.set_yscale("log")
    over_time.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    over_time.yaxis.set_major_formatter("{x:g}")
    over_time.yaxis.set_minor_formatter(ticker.NullFormatter())
    if over_time.lines:  # a run that was imported has measured nothing yet
        over_time.legend(frameon=False)

    levels = [k / NUM_LEVELS for k in range(NUM_LEVELS)]
    for prefix in ("val", "val_ema"):
        label, colour, width = _LINES[f"{prefix}/loss"]
        values = [evaluation[f"{prefix}/loss_t{k}"] for k in range(NUM_LEVELS)]
        over_t.plot(levels[1:], values[1:], color=colour, linewidth=width, marker="o",
                    markersize=4)  # fmt: skip
        # t = 0 is reported but not averaged.
        over_t.plot(levels[:1], values[:1], color=colour, marker="o", markersize=4,
                    markerfacecolor="none")  # fmt: skip
    over_t.set(
        xlabel="t   (0 data, 1 noise; hollow: not averaged)", ylabel="validation loss"
    )
    for axes in (over_time, over_t):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e8eaed", linewidth=0.8)
        axes.set_axisbelow(True)
    # A folder may be called a$b$c, which is no formula.
    figure.suptitle(title, x=0.01, ha="left", parse_math=False)
    with whole_files.replacing(out) as partial:
        figure.savefig(partial)
