# SPDX-License-Identifier: Apache-2.0
"""Meshes and shardings: who holds which part of what."""
