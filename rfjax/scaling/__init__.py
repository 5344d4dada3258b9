# SPDX-License-Identifier: Apache-2.0
"""The depth-scaling study: from a grid of runs to a law that predicts the next one.

study       which models are trained, at what price, and the table of what they measured
laws        the power laws and their fits: mathematics of tables, nothing of rfjax
report      everything that a table says, drawn and written
transfer    whether one learning rate serves every depth
"""
