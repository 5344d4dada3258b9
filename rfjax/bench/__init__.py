# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: figures measured beside a baseline, in one run."""
