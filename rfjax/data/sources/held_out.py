# SPDX-License-Identifier: Apache-2.0
"""Which names are held out for validation: decided by their hash, on every machine."""

from __future__ import annotations

import hashlib


def is_held_out(name: str, *, fraction: float) -> bool:
    """Whether a name is among the fraction held out, whatever other names there are."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < fraction
