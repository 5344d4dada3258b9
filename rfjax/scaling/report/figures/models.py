# SPDX-License-Identifier: Apache-2.0
"""The models of a study, distinguished by colour and name."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import cm

from rfjax.scaling.laws.depth import why_no_depths
from rfjax.scaling.report.analysis import Study
from rfjax.scaling.report.figures.axes import short


class Models:
    """Which model a row belongs to, by depth or else by size; its colour and name.

    Attributes:
      by_depth: whether every fitted row has a depth, and models are named by it.
      few: whether there is room for a label per model.
      first: the smallest model.
    """

    def __init__(self, study: Study):
        table = study.fitted
        self.by_depth = (
            "depth" in table
            and table["depth"].notna().all()
            and not why_no_depths(table, size_measure=study.size_measure)
        )
        known = np.sort(self.of(study.table).dropna().unique())
        # With dozens of sizes, a label for each would only hide the points.
        self.few = 1 < len(known) <= 14
        self.first = known[0]
        shades = cm.viridis(np.linspace(0.0, 0.88, len(known)))
        self._colours = dict(zip(known, shades, strict=True))

    def of(self, table: pd.DataFrame) -> pd.Series:
        """The model of each row."""
        if self.by_depth:
            return table["depth"]
        return table.get("params", pd.Series(0, index=table.index))

    def colour(self, model: float) -> np.ndarray:
        """RGBA of a model."""
        return self._colours[model]

    def label(self, model: float, *, brief: bool = False) -> str:
        """The name of a model, as "d = 4"; its number alone if brief."""
        if self.by_depth:
            return f"{model:g}" if brief else f"d = {model:g}"
        return short(model) if brief else f"N = {short(model)}"
