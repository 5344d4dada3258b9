# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (the tables are wider than 88 columns)
"""How the parameters are named and laid out in PyTorch files, both directions.

Two layouts of the same network: `diffusers` (`SD3Transformer2DModel`) and `sd3`
(Stability's single file). The tables below name every module in all three trees;
everything else about names follows from them. What differs besides names:

- A torch weight is [out, in], an rfjax kernel [in, out].
- rfjax flattens an input patch as (row, column, channel); in torch the patch
  embedding is a convolution [D, channel, row, column]. Output patches are
  (row, column, channel) everywhere.
- Rows with the same `sd3` name are one tensor there, rows stacked: qkv.
- diffusers stores the two-way modulations (final layer, text stream of the last
  block) as (scale, shift); rfjax and `sd3` as (shift, scale).
- rfjax stacks equal blocks along a leading dim: `dual_blocks`, then `blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rfjax.models.mmdit.config import MMDiTConfig
from rfjax.models.torch_format import TorchTensor


class Row(NamedTuple):
    """One module in the three trees; the fields after the first are the layouts."""

    rfjax: str
    diffusers: str
    sd3: str


LAYOUTS = ("diffusers", "sd3")
PREFIX = Row("", "", "model.diffusion_model.")
BLOCK = Row("blocks", "transformer_blocks.{block}.", "joint_blocks.{block}.")
# Computed in rfjax, a stored buffer [1, P * P, D] in torch.
POSITIONS = Row("", "pos_embed.pos_embed", "pos_embed")

# fmt: off
OUTER_TABLE = (
    Row("patch_embed",           "pos_embed.proj",                              "x_embedder.proj"),
    Row("timestep_embed/hidden", "time_text_embed.timestep_embedder.linear_1",  "t_embedder.mlp.0"),
    Row("timestep_embed/out",    "time_text_embed.timestep_embedder.linear_2",  "t_embedder.mlp.2"),
    Row("pooled_embed/hidden",   "time_text_embed.text_embedder.linear_1",      "y_embedder.mlp.0"),
    Row("pooled_embed/out",      "time_text_embed.text_embedder.linear_2",      "y_embedder.mlp.2"),
    Row("context_embed",         "context_embedder",                            "context_embedder"),
    Row("final/modulation",      "norm_out.linear",                             "final_layer.adaLN_modulation.1"),
    Row("final/linear",          "proj_out",                                    "final_layer.linear"),
)
BLOCK_TABLE = (
    Row("image/modulation", "norm1.linear",         "x_block.adaLN_modulation.1"),
    Row("image/query",      "attn.to_q",            "x_block.attn.qkv"),
    Row("image/key",        "attn.to_k",            "x_block.attn.qkv"),
    Row("image/value",      "attn.to_v",            "x_block.attn.qkv"),
    Row("image/query_norm", "attn.norm_q",          "x_block.attn.ln_q"),
    Row("image/key_norm",   "attn.norm_k",          "x_block.attn.ln_k"),
    Row("image/out",        "attn.to_out.0",        "x_block.attn.proj"),
    Row("image/mlp_in",     "ff.net.0.proj",        "x_block.mlp.fc1"),
    Row("image/mlp_out",    "ff.net.2",             "x_block.mlp.fc2"),
    Row("image_only/query",      "attn2.to_q",      "x_block.attn2.qkv"),
    Row("image_only/key",        "attn2.to_k",      "x_block.attn2.qkv"),
    Row("image_only/value",      "attn2.to_v",      "x_block.attn2.qkv"),
    Row("image_only/query_norm", "attn2.norm_q",    "x_block.attn2.ln_q"),
    Row("image_only/key_norm",   "attn2.norm_k",    "x_block.attn2.ln_k"),
    Row("image_only/out",        "attn2.to_out.0",  "x_block.attn2.proj"),
    Row("text/modulation",  "norm1_context.linear", "context_block.adaLN_modulation.1"),
    Row("text/query",       "attn.add_q_proj",      "context_block.attn.qkv"),
    Row("text/key",         "attn.add_k_proj",      "context_block.attn.qkv"),
    Row("text/value",       "attn.add_v_proj",      "context_block.attn.qkv"),
    Row("text/query_norm",  "attn.norm_added_q",    "context_block.attn.ln_q"),
    Row("text/key_norm",    "attn.norm_added_k",    "context_block.attn.ln_k"),
    Row("text/out",         "attn.to_add_out",      "context_block.attn.proj"),
    Row("text/mlp_in",      "ff_context.net.0.proj", "context_block.mlp.fc1"),
    Row("text/mlp_out",     "ff_context.net.2",     "context_block.mlp.fc2"),
)
# fmt: on
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight"}
STACKS = ("dual_blocks", "blocks", "last_block")  # where blocks are, in their order
SCALE_FIRST_IN_DIFFUSERS = ("final/modulation", "last_block/text/modulation")


def torch_name(path: str, *, layout: str, block: int | str | None = None) -> str:
    """Key of an rfjax leaf such as "blocks/image/query/kernel" in a PyTorch file.

    Args:
      path: "/"-joined path; all of `STACKS` mean the block `block`.
      layout: a name in `LAYOUTS`.
      block: index of the block, for leaves of a block.
    """
    module, leaf = path.rsplit("/", 1)
    prefix = getattr(PREFIX, layout)
    stack, _, rest = module.partition("/")
    if stack in STACKS:
        prefix += getattr(BLOCK, layout).format(block=block)
        table, module = BLOCK_TABLE, rest
    else:
        table = OUTER_TABLE
    (row,) = (row for row in table if row.rfjax == module)
    return f"{prefix}{getattr(row, layout)}.{LEAVES[leaf]}"


def positions_name(layout: str) -> str:
    """Key of the position buffer [1, P * P, D] in a PyTorch file."""
    return getattr(PREFIX, layout) + getattr(POSITIONS, layout)


def torch_tensors(
    config: MMDiTConfig, shapes: Mapping[str, tuple[int, ...]], *, layout: str
) -> list[TorchTensor]:
    """Every tensor of a model's PyTorch file except the position buffer.

    Tensors made of the same rfjax leaves follow each other, so a writer reads each
    stack of blocks once.

    Args:
      config: of the model.
      shapes: of its parameters, "/"-joined path -> shape.
      layout: a name in `LAYOUTS`.
    """
    sources = {}  # (name, block) -> paths; a fused tensor collects several
    for path in _table_paths():
        if path not in shapes:  # no qk-norm, dual attention, text past the last one
            continue
        for block, stack_index in _blocks_of(path, config):
            name = torch_name(path, layout=layout, block=block)
            sources.setdefault((name, stack_index), []).append(path)
    return [
        _torch_tensor(name, paths, stack_index, shapes, config, layout)
        for (name, stack_index), paths in sources.items()
    ]


def _table_paths() -> Iterator[str]:
    """Every path that the tables and leaf names can spell."""
    modules = [row.rfjax for row in OUTER_TABLE]
    modules += [f"{stack}/{row.rfjax}" for row in BLOCK_TABLE for stack in STACKS]
    return (f"{module}/{leaf}" for module in modules for leaf in LEAVES)


def _blocks_of(path: str, config: MMDiTConfig) -> list[tuple[int | None, int | None]]:
    """(block number, index into the stacked leaf) of every tensor a leaf goes to."""
    num_dual, last = config.dual_attention_blocks, config.depth - 1
    if path.startswith("dual_blocks/"):
        return [(block, block) for block in range(num_dual)]
    if path.startswith("blocks/"):
        return [(block, block - num_dual) for block in range(num_dual, last)]
    return [(last if path.startswith("last_block/") else None, None)]


def _torch_tensor(
    name: str,
    paths: list[str],
    stack_index: int | None,
    shapes: Mapping[str, tuple[int, ...]],
    config: MMDiTConfig,
    layout: str,
) -> TorchTensor:
    leaf_shape = shapes[paths[0]][0 if stack_index is None else 1 :]
    *rest, rows = leaf_shape  # torch has the outputs first
    shape = (len(paths) * rows, *rest)
    module = paths[0].rsplit("/", 1)[0]
    patch_size = None
    if paths[0] == "patch_embed/kernel":
        patch_size = config.patch_size
        shape = (rows, config.latent_channels, patch_size, patch_size)
    return TorchTensor(
        name=name,
        shape=shape,
        paths=tuple(paths),
        block=stack_index,
        patch_size=patch_size,
        swap_halves=layout == "diffusers" and module in SCALE_FIRST_IN_DIFFUSERS,
    )
