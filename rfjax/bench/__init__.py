# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: figures measured alongside a baseline, in one run."""
