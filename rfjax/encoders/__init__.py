# SPDX-License-Identifier: Apache-2.0
"""Frozen encoders: pictures to latents (`images`) and captions to states (`text`).

PyTorch and transformers are imported in this folder alone (and by `bench`), and only
when an encoder that needs them is made.
"""
