# SPDX-License-Identifier: Apache-2.0
"""Joint attention over image and text tokens: one entry point, several kernels.

`xla` runs anywhere. `fused` (short sequences) and `splash` (any length) are kernels for
TPUs, `cudnn` for GPUs; elsewhere the same config falls back to `xla`.

Dims: B batch, Q query tokens, S key tokens (image first, then text), N heads,
K head dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from rfjax.models import fused_attention
from rfjax.types import ONE_DEVICE, DimNames, Layout

Parts = tuple[jax.Array, ...]  # one array per stream: image, then text

HEADS = ("batch", None, "heads", None)  # logical names of [B, S, N, K], all tokens
# Each device holds the queries of its own image tokens and the keys of all.
QUERIES = (
    ("batch", "image_tokens", "heads", None),
    ("batch", "text_tokens", "heads", None),
)


def joint_attention(
    query_BQNK: jax.Array,
    key_BSNK: jax.Array,
    value_BSNK: jax.Array,
    *,
    mask_BS: jax.Array | None = None,
    implementation: str = "xla",
    layout: Layout = ONE_DEVICE,
) -> jax.Array:
    """softmax(query key^T / sqrt(K)) value, without causality.

    Args:
      query_BQNK: [B, Q, N, K] in the compute dtype.
      key_BSNK: [B, S, N, K].
      value_BSNK: [B, S, N, K].
      mask_BS: [B, S] bool, True where a key may be attended; None for all of them.
        At least one key of each example must be attended.
      implementation: a name in `IMPLEMENTATIONS`.
      layout: where arrays live; kernels need it to run a shard each.

    Returns:
      [B, Q, N, K] in the compute dtype; the softmax is taken in float32.
    """
    return attend_streams(
        (query_BQNK,),
        (key_BSNK,),
        (value_BSNK,),
        mask_BS=mask_BS,
        implementation=implementation,
        layout=layout,
    )[0]


def attend_streams(
    queries: Sequence[jax.Array],
    keys: Sequence[jax.Array],
    values: Sequence[jax.Array],
    *,
    mask_BS: jax.Array | None = None,
    implementation: str = "xla",
    layout: Layout = ONE_DEVICE,
) -> tuple[jax.Array, ...]:
    """`joint_attention` of several streams, each query to the keys of all of them.

    Args:
      queries: [B, Q_i, N, K], one for each stream that reads: image, then text.
      keys: [B, S_i, N, K], one for each stream.
      values: [B, S_i, N, K].
      mask_BS: over all streams' keys in order.
      implementation: as in `joint_attention`.
      layout: as in `joint_attention`.

    Returns:
      One [B, Q_i, N, K] for each query.
    """
    attend = IMPLEMENTATIONS[implementation]
    # A shard can run a kernel of its platform; others, and a float32 pass, take XLA.
    if not _runs_kernel(implementation, layout, queries[0].dtype):
        attend = _xla_streams
    outputs = attend(tuple(queries), tuple(keys), tuple(values), mask_BS, layout)
    return tuple(map(_name_for_remat, outputs))


def _name_for_remat(output_BQNK: jax.Array) -> jax.Array:
    """Named as [B, Q, D], as `out` reads it: saved with separate heads it is copied."""
    rows = output_BQNK.reshape(*output_BQNK.shape[:2], -1)
    return checkpoint_name(rows, "attention").reshape(output_BQNK.shape)


def _runs_kernel(implementation: str, layout: Layout, dtype: jnp.dtype) -> bool:
    platform = _PLATFORMS.get(implementation)
    return (
        platform is not None and platform == layout.platform and dtype == jnp.bfloat16
    )


def _splits_tokens(layout: Layout) -> bool:
    return layout.num_shards("image_tokens") > 1


def _xla_streams(
    queries: Parts,
    keys: Parts,
    values: Parts,
    mask_BS: jax.Array | None,
    layout: Layout,
):
    """Joins the streams, attends once, and splits the result again."""
    if not _splits_tokens(layout):
        output = _xla_attention(*map(_join, (queries, keys, values)), mask_BS)
        return _part(output, queries)
    # Joined queries would be redistributed over the devices, so streams stay separate.
    key, value = (
        _join([layout(part, HEADS) for part in parts]) for parts in (keys, values)
    )
    return tuple(
        layout(_xla_attention(layout(query, names), key, value, mask_BS), names)
        for query, names in zip(queries, QUERIES, strict=False)
    )


def _fused_streams(
    queries: Parts,
    keys: Parts,
    values: Parts,
    mask_BS: jax.Array | None,
    layout: Layout,
):
    """Our kernel for short sequences: streams stay apart, no copy around it."""
    num_tokens = sum(key.shape[1] for key in keys)
    if mask_BS is not None or num_tokens > fused_attention.MAX_TOKENS:
        return _splash_streams(queries, keys, values, mask_BS, layout)
    head_dim = queries[0].shape[-1]

    def attend(queries: Parts, keys: Parts, values: Parts) -> Parts:
        """The kernel on one device's shards."""
        rows = jax.tree.map(
            lambda x: x.reshape(*x.shape[:2], -1), (queries, keys, values)
        )
        outputs = fused_attention.attend(*rows, head_dim, False)
        return tuple(
            output.reshape(query.shape)
            for output, query in zip(outputs, queries, strict=True)
        )

    names = QUERIES[: len(queries)]
    return layout.map_shards(attend, in_names=(names, HEADS, HEADS), out_names=names)(
        queries, keys, values
    )


def _splash_streams(
    queries: Parts,
    keys: Parts,
    values: Parts,
    mask_BS: jax.Array | None,
    layout: Layout,
):
    """JAX's flash attention kernel for TPUs: any length, masked or not."""
    return _attend_in_shards(splash_attention, queries, keys, values, mask_BS, layout)


def _attend_in_shards(
    kernel: Callable,
    queries: Parts,
    keys: Parts,
    values: Parts,
    mask_BS: jax.Array | None,
    layout: Layout,
):
    """Runs a kernel of joined streams on each device's shards."""
    key, value = map(_join, (keys, values))

    def attend(query: jax.Array, names: DimNames) -> jax.Array:
        """One query to all keys."""
        return layout.map_shards(
            kernel,
            in_names=(names, HEADS, HEADS, ("batch", None)),
            out_names=names,
        )(query, key, value, mask_BS)

    if _splits_tokens(layout):  # streams stay apart, as in `_xla_streams`
        return tuple(map(attend, queries, QUERIES))
    return _part(attend(_join(queries), HEADS), queries)


def _cudnn_streams(
    queries: Parts,
    keys: Parts,
    values: Parts,
    mask_BS: jax.Array | None,
    layout: Layout,
):
    """Flash attention by cuDNN: any length, masked or not."""
    return _attend_in_shards(cudnn_attention, queries, keys, values, mask_BS, layout)


def cudnn_attention(
    query_BQNK: jax.Array,
    key_BSNK: jax.Array,
    value_BSNK: jax.Array,
    mask_BS: jax.Array | None = None,
    *,
    library: str = "cudnn",
):
    """`joint_attention` by cuDNN, on one device.

    Args:
      query_BQNK: [B, Q, N, K] bfloat16.
      key_BSNK: [B, S, N, K].
      value_BSNK: [B, S, N, K].
      mask_BS: [B, S] bool; None for all keys.
      library: "cudnn", or "xla" for the same call without a GPU.
    """
    batch, num_queries = query_BQNK.shape[:2]
    num_keys = key_BSNK.shape[1]
    # Its gradient wants even lengths.
    query_BQNK, key_BSNK, value_BSNK = (
        _pad_tokens(array, array.shape[1] + array.shape[1] % 2)
        for array in (query_BQNK, key_BSNK, value_BSNK)
    )
    if mask_BS is not None:  # goes in as a bias for each pair
        mask_BS = _pad_tokens(mask_BS, key_BSNK.shape[1])
        shape = (batch, 1, query_BQNK.shape[1], key_BSNK.shape[1])
        which = {"mask": jnp.broadcast_to(mask_BS[:, None, None, :], shape)}
    elif key_BSNK.shape[1] > num_keys:
        which = {"key_value_seq_lengths": jnp.full(batch, num_keys, jnp.int32)}
    else:
        which = {}
    output = jax.nn.dot_product_attention(
        query_BQNK, key_BSNK, value_BSNK, implementation=library, **which
    )
    return output[:, :num_queries]


def splash_attention(
    query_BQNK: jax.Array,
    key_BSNK: jax.Array,
    value_BSNK: jax.Array,
    mask_BS: jax.Array | None = None,
    *,
    max_block: int = 1024,
    interpret: bool = False,
):
    """`joint_attention` by JAX's splash kernel, on one device.

    Tokens are padded to whole blocks; pads form their own segment, so that no
    token attends to them, and so do masked keys.

    Args:
      query_BQNK: [B, Q, N, K].
      key_BSNK: [B, S, N, K].
      value_BSNK: [B, S, N, K].
      mask_BS: [B, S] bool; None for all keys.
      max_block: tokens per block at most, a multiple of 128; the blocks are as equal as
        they can be, to pad little.
      interpret: run as plain JAX, for tests on a CPU.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def blocks(tokens: int) -> tuple[int, int]:
        """Size of a block, and the length padded to whole blocks."""
        number = -(-tokens // max_block)
        size = -(-tokens // (number * 128)) * 128
        return size, number * size

    num_queries, num_keys = query_BQNK.shape[1], key_BSNK.shape[1]
    q_block, padded_queries = blocks(num_queries)
    kv_block, padded_keys = blocks(num_keys)
    kernel = _splash_kernel(
        query_BQNK.shape[2], padded_queries, padded_keys, q_block, kv_block, interpret
    )

    def heads_first(array: jax.Array, length: int) -> jax.Array:
        """[B, S, N, K] to padded [B, N, S, K]."""
        return _pad_tokens(array, length).transpose(0, 2, 1, 3)

    if mask_BS is None:
        mask_BS = jnp.ones(key_BSNK.shape[:2], bool)
    segments = splash.SegmentIds(
        q=jnp.zeros((len(mask_BS), padded_queries), jnp.int32),
        kv=jnp.where(_pad_tokens(mask_BS, padded_keys), 0, 1),
    )
    output = jax.vmap(kernel)(
        heads_first(query_BQNK * query_BQNK.shape[-1] ** -0.5, padded_queries),
        heads_first(key_BSNK, padded_keys),
        heads_first(value_BSNK, padded_keys),
        segments,
    )
    return output.transpose(0, 2, 1, 3)[:, :num_queries]


@functools.lru_cache
def _splash_kernel(
    num_heads: int,
    num_queries: int,
    num_keys: int,
    q_block: int,
    kv_block: int,
    interpret: bool,
):
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    mask = masks.MultiHeadMask(
        [masks.FullMask((num_queries, num_keys)) for _ in range(num_heads)]
    )
    sizes = kernels.BlockSizes(
        block_q=q_block, block_kv=kv_block, block_kv_compute=kv_block,
        block_q_dkv=q_block, block_kv_dkv=kv_block, block_kv_dkv_compute=kv_block,
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    # Its tables must be constants of no trace: the kernel is kept between traces.
    with jax.ensure_compile_time_eval():
        return kernels.make_splash_mha(
            mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
            # What its backward pass needs may be kept, or it would run twice.
            residual_checkpoint_name="attention",
        )


def _pad_tokens(array: jax.Array, length: int) -> jax.Array:
    """[B, S, ...] with zeros (False) behind the tokens, up to a length."""
    pads = [(0, 0)] * array.ndim
    pads[1] = (0, length - array.shape[1])
    return jnp.pad(array, pads)


def _join(parts: Parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def _part(output_BQNK: jax.Array, queries: Parts) -> tuple[jax.Array, ...]:
    ends = np.cumsum([query.shape[1] for query in queries])
    return tuple(jnp.split(output_BQNK, ends[:-1], axis=1))


def _xla_attention(
    query_BQNK: jax.Array,
    key_BSNK: jax.Array,
    value_BSNK: jax.Array,
    mask_BS: jax.Array | None,
):
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


IMPLEMENTATIONS = {
    "xla": _xla_streams,
    "fused": _fused_streams,
    "splash": _splash_streams,
    "cudnn": _cudnn_streams,
}
_PLATFORMS = {"fused": "tpu", "splash": "tpu", "cudnn": "gpu"}  # xla runs anywhere
