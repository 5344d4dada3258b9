# SPDX-License-Identifier: Apache-2.0
"""Precision, and what the backward pass keeps: choices that every backbone offers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

COMPUTE_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}

# What the backward pass of a block may keep, by name.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Every linear layer's output with its bias, and what was attended to: the backward
    # pass recomputes only what is elementwise.
    "linear": jax.checkpoint_policies.save_only_these_names("linear", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(function: Callable, policy_name: str) -> Callable:
    """Recomputes in the backward pass whatever the named policy does not keep.

    Args:
      function: its first argument is static.
      policy_name: a key of `REMAT_POLICIES`.
    """
    policy = REMAT_POLICIES[policy_name]
    if policy is None:
        return function
    return jax.checkpoint(function, policy=policy, static_argnums=0)
