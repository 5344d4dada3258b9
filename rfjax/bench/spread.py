# SPDX-License-Identifier: Apache-2.0
"""How repeated measurements are reported: by their median and their range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], *, scale: float = 1.0, digits: int = 0) -> str:
    """Formats measurements as "median (lowest to highest)".

    Args:
      values: one per round.
      scale: factor on the values, such as 1e3 for seconds reported in ms.
      digits: decimal places.
    """
    middle, low, high = (
        f"{of(values) * scale:,.{digits}f}" for of in (statistics.median, min, max)
    )
    return f"{middle} ({low} to {high})"
