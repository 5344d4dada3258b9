# SPDX-License-Identifier: Apache-2.0
"""Validation loss and pictures from parameters alone."""
