# SPDX-License-Identifier: Apache-2.0
"""Whether one learning rate serves every depth.

coordinates         how far a few steps move the activations, from model to larger model
coordinate_figure   that as a figure
rates               loss against learning rate, depth by depth
"""

from rfjax.scaling.transfer.coordinate_figure import draw_coordinates
from rfjax.scaling.transfer.coordinates import check_coordinates, fit_slopes
from rfjax.scaling.transfer.rates import draw_transfer, find_best_rates, fit_drift

__all__ = [
    "check_coordinates",
    "draw_coordinates",
    "draw_transfer",
    "find_best_rates",
    "fit_drift",
    "fit_slopes",
]
