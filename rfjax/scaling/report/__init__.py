# SPDX-License-Identifier: Apache-2.0
"""What a runs table shows: the law, its figures and its report.

analysis    fits, optima, back-test and forecasts of one table
figures     the figures of an analysis
page        an analysis as a web page
document    an analysis as fit.json
folder      the folder that `rfjax fit` writes
"""

from rfjax.scaling.report.analysis import Forecast, Study, analyse
from rfjax.scaling.report.folder import FitReport, run_fit

__all__ = ["FitReport", "Forecast", "Study", "analyse", "run_fit"]
