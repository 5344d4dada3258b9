# SPDX-License-Identifier: Apache-2.0
"""Everything that a runs table says, drawn and written.

analysis    fits, optima, back-test and forecasts of one table
figures     the pictures of an analysis
page        the same as a web page
document    the same as fit.json
folder      the folder that `rfjax fit` leaves
"""

from rfjax.scaling.report.analysis import Forecast, Study, analyse
from rfjax.scaling.report.folder import FitReport, run_fit

__all__ = ["FitReport", "Forecast", "Study", "analyse", "run_fit"]
