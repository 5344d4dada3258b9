# SPDX-License-Identifier: Apache-2.0
"""The depth-scaling study: from a grid of runs to a law that predicts larger ones.

study       which models are trained, at what cost, and the table of their losses
laws        the power laws and their fits: mathematics of tables, nothing of rfjax
report      what a table shows: the law, its figures and its report
transfer    whether one learning rate serves every depth
style       the look of all figures
"""
