# SPDX-License-Identifier: Apache-2.0
"""Frozen encoders of pictures and text. Only this folder imports torch, and lazily."""
