# SPDX-License-Identifier: Apache-2.0
"""Which names are held out for validation: decided by their hash, on every machine."""

from __future__ import annotations

import hashlib

from rfjax.errors import UserError


def is_held_out(name: str, *, fraction: float) -> bool:
    """Whether a name is among the fraction held out, whatever other names there are."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 < fraction


def check_fraction(field: str, value: float) -> None:
    """Raises UserError unless the field's value leaves something in both splits."""
    if not 0.0 < value < 1.0:
        raise UserError(
            f"source.{field} must be between 0 and 1, both excluded, got {value}."
        )
