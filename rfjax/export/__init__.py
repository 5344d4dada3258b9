# SPDX-License-Identifier: Apache-2.0
"""PyTorch weights, both ways: `save.export_run` and `load.open_weights`."""
