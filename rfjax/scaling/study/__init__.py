# SPDX-License-Identifier: Apache-2.0
"""The study itself: which models are trained, at what price, and what they measured.

grid        depths and lengths, or budgets, to cells
budget      what the cells cost, before they run
sweep       cells to files, from which any machine can train them
pace        how long the rest of it takes, while it runs
manifest    the list of them, sweep.json
launchers/  who trains them: one file per kind of machine
runs        the table of what they measured
csv_file    reads a CSV of other people's runs
quality     which of its rows may be fitted
"""

from rfjax.scaling.study.grid import Cell, GridConfig, make_cells
from rfjax.scaling.study.quality import fitted_rows, mark_unusable
from rfjax.scaling.study.runs import load_runs, load_table

__all__ = [
    "Cell",
    "GridConfig",
    "fitted_rows",
    "load_runs",
    "load_table",
    "make_cells",
    "mark_unusable",
]
