# SPDX-License-Identifier: Apache-2.0
"""How repeated measurements are told: the middle, and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], *, scale: float = 1.0, digits: int = 0) -> str:
    """Median (least to most) of measurements.

    Args:
      values: one a round.
      scale: what they are multiplied by: 1e3 for seconds told in ms.
      digits: after the point.
    """
    middle, low, high = (
        f"{of(values) * scale:,.{digits}f}" for of in (statistics.median, min, max)
    )
    return f"{middle} ({low} to {high})"
