# SPDX-License-Identifier: Apache-2.0
"""rfjax: rectified-flow transformers in JAX, with a scaling study built in."""

__version__ = "0.1.0"
