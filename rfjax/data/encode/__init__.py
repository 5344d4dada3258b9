# SPDX-License-Identifier: Apache-2.0
"""Encoding: pictures and captions become latents and text states in shards."""

from rfjax.data.encode.config import LAYOUTS, EncodeConfig
from rfjax.data.encode.dataset import encode_dataset

__all__ = ["LAYOUTS", "EncodeConfig", "encode_dataset"]
