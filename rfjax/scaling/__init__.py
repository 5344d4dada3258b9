# SPDX-License-Identifier: Apache-2.0
"""The depth-scaling study: from a grid of runs to a law that predicts the next one.

grid, sweep             which models are trained, and training them
runs, quality           the table of what they measured, and which rows may be fitted
laws, points            the power laws, and what they are fitted to
projection, huber       where a fit starts, and its minimum
noise, intervals, fit   what is left over, how far parameters may move, all together
optimum, frontier       what to train with a budget, and two cross-checks
depth, backtest         sizes as depths; would the law have foretold the largest?
study, figures, page    everything a table says, drawn and written
document, report        fit.json, and the folder that `rfjax fit` leaves
"""
