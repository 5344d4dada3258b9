# SPDX-License-Identifier: Apache-2.0
"""FLOPs of custom kernels whose authors declare none: JAX's splash attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Part of the kernel's name -> matrix products over all (query, key) pairs. The fused
# backward kernel computes the weights again, then four gradients.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}


def undeclared_flops(name: str, operands: Sequence[tuple[int, ...]]) -> float:
    """FLOPs of one run of a kernel, 2 a multiply-add; 0 for an unknown one.

    Args:
      name: as the compiler or the trace calls it; a path may surround it.
      operands: shapes of those with floating-point numbers: first the query
        [..., heads, tokens, head dim], then the key. Pads of the sequence count.
    """
    products = next((n for part, n in _PRODUCTS.items() if part in name), 0)
    if not products:
        return 0.0
    query, key = operands[:2]
    return 2.0 * products * math.prod(query) * key[-2]
