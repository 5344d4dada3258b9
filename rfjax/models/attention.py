# SPDX-License-Identifier: Apache-2.0
"""Joint attention over image and text tokens: one entry point, several kernels.

Dims: B batch, Q query tokens, S key tokens (image first, then text), N heads,
K head dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def joint_attention(
    query_BQNK: jax.Array,
    key_BSNK: jax.Array,
    value_BSNK: jax.Array,
    *,
    mask_BS: jax.Array | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """softmax(query key^T / sqrt(K)) value, without causality.

    Args:
      query_BQNK: [B, Q, N, K] in the compute dtype.
      key_BSNK: [B, S, N, K].
      value_BSNK: [B, S, N, K].
      mask_BS: [B, S] bool, True where a key may be attended; None for all of them.
        At least one key of each example must be attended.
      implementation: a name in `IMPLEMENTATIONS`.

    Returns:
      [B, Q, N, K] in the compute dtype; the softmax is taken in float32.
    """
    return IMPLEMENTATIONS[implementation](query_BQNK, key_BSNK, value_BSNK, mask_BS)


def _xla_attention(query_BQNK, key_BSNK, value_BSNK, mask_BS):
    """Plain matrix products, for any device.

    The softmax is normalised after the product with the values, which touches
    [B, N, Q, K] numbers rather than [B, N, Q, S].
    """
    head_dim = query_BQNK.shape[-1]
    query_BNQK = query_BQNK.transpose(0, 2, 1, 3) * head_dim**-0.5
    key_BNKS = key_BSNK.transpose(0, 2, 3, 1)
    value_BNSK = value_BSNK.transpose(0, 2, 1, 3)
    logits = jnp.matmul(query_BNQK, key_BNKS, preferred_element_type=jnp.float32)
    if mask_BS is not None:
        logits = jnp.where(mask_BS[:, None, None, :], logits, -jnp.inf)
    # A constant offset changes no softmax, so no gradient needs to pass the maximum.
    maximum = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - maximum)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    outputs = jnp.matmul(
        weights.astype(value_BNSK.dtype), value_BNSK, preferred_element_type=jnp.float32
    )
    return (outputs / total).astype(query_BQNK.dtype).transpose(0, 2, 1, 3)


IMPLEMENTATIONS = {"xla": _xla_attention}
