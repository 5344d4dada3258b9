# SPDX-License-Identifier: Apache-2.0
"""The train state, the pure step and the loop around it."""
