# SPDX-License-Identifier: Apache-2.0
"""Attention for short sequences on a TPU: one Pallas kernel forward, one backward.

At 256 px an image has 256 tokens and its text 154, so all attention weights of a head
fit into VMEM at once. That makes the kernels simpler and leaner than a general flash
attention: a plain softmax, nothing kept for the backward pass but query, key and
value, and no padding of the sequence to a multiple of the block size.

Heads are 64 wide and lanes 128, so a grid step works on two heads side by side, in the
[B, S, N * K] layout that the linear layers write: no transposition, no head dim padded
to twice its size in memory. Products with one head alone are taken over all 128 lanes,
the other head's set to zero; a 128-wide matrix unit takes the same time for 64.

Dims: B batch, Q query tokens, S key tokens, N heads, K head dim, W = 128 lanes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Parts = tuple[jax.Array, ...]  # one array per stream: image, then text

LANES = 128
MAX_TOKENS = 1024  # beyond it the weights of a head outgrow VMEM: use splash


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def attend(
    queries: Parts, keys: Parts, values: Parts, head_dim: int, interpret: bool
) -> Parts:
    """softmax(query key^T / sqrt(K)) value for each head, over tokens in parts.

    The parts (image and text) are read where they are and never joined in memory.

    Args:
      queries: tuple of [B, Q_i, N * K], bfloat16 on a TPU.
      keys: tuple of [B, S_i, N * K].
      values: tuple of [B, S_i, N * K].
      head_dim: K, a divisor of 128.
      interpret: run as plain JAX, for tests on a CPU.

    Returns:
      Tuple of [B, Q_i, N * K] in the dtype of the queries; the softmax, over the keys
      of all parts, is taken in float32.
    """
    return _forward(queries, keys, values, head_dim, interpret)


def _forward(
    queries: Parts, keys: Parts, values: Parts, head_dim: int, interpret: bool
):
    return _call(
        functools.partial(_forward_kernel, num_queries=len(queries)),
        (*queries, *keys, *values),
        queries,
        num_products=2,
        num_tokens=_count(queries) * _count(keys),
        head_dim=head_dim,
        interpret=interpret,
    )


def _attend_forward(
    queries: Parts, keys: Parts, values: Parts, head_dim: int, interpret: bool
):
    saved = (queries, keys, values)
    return _forward(queries, keys, values, head_dim, interpret), saved


def _attend_backward(
    head_dim: int, interpret: bool, saved: tuple[Parts, Parts, Parts], gradients: Parts
):
    queries, keys, values = saved
    outputs = _call(
        functools.partial(_backward_kernel, num_queries=len(queries)),
        (*queries, *keys, *values, *gradients),
        (*queries, *keys, *values),
        num_products=5,
        num_tokens=_count(queries) * _count(keys),
        head_dim=head_dim,
        interpret=interpret,
    )
    return tuple(_split(outputs, len(queries), len(keys), len(values)))


attend.defvjp(_attend_forward, _attend_backward)


def _count(parts: Parts) -> int:
    return sum(part.shape[1] for part in parts)


def _split(sequence: Sequence[Any], *lengths):
    """Cuts a sequence into tuples of these lengths."""
    start = 0
    for length in lengths:
        yield tuple(sequence[start : start + length])
        start += length


def _call(
    kernel: Callable,
    inputs: Parts,
    outputs_like: Parts,
    *,
    num_products: int,
    num_tokens: int,
    head_dim: int,
    interpret: bool,
):
    """Runs a kernel over (example, block of heads); all arrays are [B, tokens, D]."""
    batch, _, width = inputs[0].shape

    def block(array: jax.Array) -> pl.BlockSpec:
        """One example and one block of heads of an array."""
        return pl.BlockSpec((1, array.shape[1], LANES), lambda b, d: (b, 0, d))

    return pl.pallas_call(
        functools.partial(kernel, width=width, head_dim=head_dim),
        out_shape=tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs_like),
        grid=(batch, pl.cdiv(width, LANES)),
        in_specs=[block(array) for array in inputs],
        out_specs=tuple(block(array) for array in outputs_like),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel")
        ),
        # Useful work: the zeroed half of each product is not counted.
        cost_estimate=pl.CostEstimate(
            flops=2 * num_products * batch * num_tokens * width,
            transcendentals=batch * num_tokens * width // head_dim,
            bytes_accessed=sum(
                a.size * a.dtype.itemsize for a in (*inputs, *outputs_like)
            ),
        ),
        name=kernel.func.__name__.strip("_"),
        interpret=interpret,
    )(*inputs)


def _lanes_of_heads(width: int, head_dim: int):
    """Lanes of each head of a block, as [1, W] bool; those beyond D have no head."""
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    first = pl.program_id(1) * LANES
    return [
        (lane >= start) & (lane < start + head_dim) & (first + lane < width)
        for start in range(0, LANES, head_dim)
    ]


def _product(
    left: jax.Array, right: jax.Array, dims: tuple[tuple[int, ...], tuple[int, ...]]
):
    return jax.lax.dot_general(
        left, right, (dims, ((), ())), preferred_element_type=jnp.float32
    )


def _only(lanes: jax.Array, block: jax.Array):
    """The block with all other heads' lanes (and those beyond D) set to zero."""
    return jnp.where(lanes, block, jnp.zeros((), block.dtype))


def _forward_kernel(*refs, num_queries: int, width: int, head_dim: int):
    num_keys = (len(refs) - 2 * num_queries) // 2
    queries, keys, values, outs = _split(
        refs, num_queries, num_keys, num_keys, num_queries
    )
    heads = _lanes_of_heads(width, head_dim)
    for query_ref, out_ref in zip(queries, outs, strict=True):
        query_QW = query_ref[0]
        out_QW = jnp.zeros(query_QW.shape, jnp.float32)
        for lanes in heads:
            head_query = _only(lanes, query_QW)
            logits = [
                _product(head_query, _only(lanes, key[0]), ((1,), (1,)))
                * head_dim**-0.5
                for key in keys
            ]
            maximum_Q1 = _over_parts(jnp.max, jnp.maximum, logits, axis=1)
            weights = [jnp.exp(part_QS - maximum_Q1) for part_QS in logits]
            total_Q1 = _over_parts(jnp.sum, jnp.add, weights, axis=1)
            head_QW = sum(
                _product(
                    part_QS.astype(value.dtype), _only(lanes, value[0]), ((1,), (0,))
                )
                for part_QS, value in zip(weights, values, strict=True)
            )
            out_QW += head_QW / total_Q1
        out_ref[0] = out_QW.astype(out_ref.dtype)


def _backward_kernel(*refs, num_queries: int, width: int, head_dim: int):
    """Everything with keys along rows, so that sums over keys need no lane shuffles."""
    num_keys = (len(refs) - 3 * num_queries) // 4
    queries, keys, values, gradients, dqueries, dkeys, dvalues = _split(
        refs, num_queries, num_keys, num_keys, num_queries,
        num_queries, num_keys, num_keys,
    )  # fmt: skip
    dtype, scale = queries[0].dtype, head_dim**-0.5
    heads = _lanes_of_heads(width, head_dim)
    dkeys_SW = [jnp.zeros(key.shape[1:], jnp.float32) for key in keys]
    dvalues_SW = [jnp.zeros(key.shape[1:], jnp.float32) for key in keys]
    for query_ref, gradient_ref, dquery_ref in zip(
        queries, gradients, dqueries, strict=True
    ):
        dquery_QW = jnp.zeros(query_ref.shape[1:], jnp.float32)
        for lanes in heads:
            head_query = _only(lanes, query_ref[0])
            head_gradient = _only(lanes, gradient_ref[0])
            head_keys = [_only(lanes, key[0]) for key in keys]
            logits = [
                _product(key_SW, head_query, ((1,), (1,))) * scale
                for key_SW in head_keys
            ]
            maximum_1Q = _over_parts(jnp.max, jnp.maximum, logits, axis=0)
            weights = [jnp.exp(part_SQ - maximum_1Q) for part_SQ in logits]
            inverse_1Q = 1.0 / _over_parts(jnp.sum, jnp.add, weights, axis=0)
            weights = [part_SQ * inverse_1Q for part_SQ in weights]
            dweights = [
                _product(_only(lanes, value[0]), head_gradient, ((1,), (1,)))
                for value in values
            ]
            mean_1Q = _over_parts(
                jnp.sum,
                jnp.add,
                [w * dw for w, dw in zip(weights, dweights, strict=True)],
                axis=0,
            )
            for i, (w, dw) in enumerate(zip(weights, dweights, strict=True)):
                dlogits_SQ = (w * (dw - mean_1Q) * scale).astype(dtype)
                dvalues_SW[i] += _product(w.astype(dtype), head_gradient, ((1,), (0,)))
                dkeys_SW[i] += _product(dlogits_SQ, head_query, ((1,), (0,)))
                dquery_QW += _product(dlogits_SQ, head_keys[i], ((0,), (0,)))
        dquery_ref[0] = dquery_QW.astype(dtype)
    for outs, sums in ((dkeys, dkeys_SW), (dvalues, dvalues_SW)):
        for out_ref, sum_SW in zip(outs, sums, strict=True):
            out_ref[0] = sum_SW.astype(dtype)


def _over_parts(reduce: Callable, combine: Callable, parts: Parts, *, axis: int):
    """Reduces each part along an axis, and the parts into one."""
    return functools.reduce(
        combine, [reduce(part, axis=axis, keepdims=True) for part in parts]
    )
