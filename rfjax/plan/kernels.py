# SPDX-License-Identifier: Apache-2.0
"""FLOPs of kernels that declare none: JAX's splash attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Part of the kernel's name -> matrix products over all (query, key) pairs. The fused
# backward kernel computes the weights again, then four gradients.
_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}


def undeclared_flops(name: str, operands: Sequence[tuple[int, ...]]) -> float:
    """FLOPs of one run of a kernel, 2 per multiply-add; 0 for an unknown one.

    Args:
      name: name in the trace or the compiled program; may be part of a path.
      operands: shapes of the floating-point operands: first the query
        [..., heads, tokens, head dim], then the key. Padding of the sequence counts.
    """
    products = next((n for part, n in _PRODUCTS.items() if part in name), 0)
    if not products:
        return 0.0
    query, key = operands[:2]
    return 2.0 * products * math.prod(query) * key[-2]
