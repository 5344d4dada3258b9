# SPDX-License-Identifier: Apache-2.0
"""PyTorch files of an MMDiT: tensors, positions, config.json, and what they say.

The tensors say what the model is: depth, channels, patch size, text widths, qk-norm,
dual attention and positions are inferred from them.
"""

from __future__ import annotations

import dataclasses
import fractions
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rfjax.errors import UserError
from rfjax.models.base import HEAD_DIM
from rfjax.models.embeddings import MAX_PERIOD, position_table
from rfjax.models.mmdit import torch_names
from rfjax.models.mmdit.config import MMDiTConfig
from rfjax.models.torch_format import Inferred, TensorReader, TorchBuffer, TorchTensor

DECIDED_BY_WEIGHTS = (
    "depth",
    "patch_size",
    "latent_channels",
    "context_dim",
    "pooled_dim",
    "qk_norm",
    "dual_attention_blocks",
    "max_grid_tokens",
)
DECIDED_BY_POSITIONS = ("grid_tokens", "position_scale")

# One unit in the last place of numbers below 1, and in float32 a little more: diffusers
# computes positions such as 100 / 3 in float32.
POSITION_TOLERANCE = {
    "float64": 1e-5,
    "float32": 1e-5,
    "bfloat16": 2.0**-8,
    "float16": 2.0**-11,
    "float8_e4m3fn": 2.0**-4,
    "float8_e5m2": 2.0**-3,
}
# By which float32 tables of one scale differ, as their sines are computed elsewhere.
POSITION_ROUNDING = 1e-6


LOADING = {
    "diffusers": """\
from diffusers import SD3Transformer2DModel

transformer = SD3Transformer2DModel.from_pretrained(
    "FOLDER", subfolder="transformer"
)""",
    "sd3": """\
from safetensors.torch import load_file

weights = load_file("FOLDER/model.safetensors")  # model.diffusion_model.*""",
}


class MMDiTFiles:
    """The `TorchFormat` of the MMDiT: diffusers' and Stability's own layout."""

    title = "an MMDiT"
    tag = "mmdit"
    architecture = (
        "A multimodal diffusion transformer of the Stable Diffusion 3 architecture "
        "(arXiv:2403.03206)."
    )
    loading = LOADING

    layouts = torch_names.LAYOUTS
    prefix = {name: getattr(torch_names.PREFIX, name) for name in layouts}
    probe = {
        name: torch_names.torch_name("patch_embed/kernel", layout=name)
        for name in layouts
    }

    def tensors(
        self,
        config: MMDiTConfig,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        layout: str,
    ) -> list[TorchTensor]:
        """Every tensor made of parameters; those of the same leaves in a row."""
        return torch_names.torch_tensors(config, shapes, layout=layout)

    def buffers(self, config: MMDiTConfig, *, layout: str) -> list[TorchBuffer]:
        """The position table, whose centre crops are the positions of the model."""
        return [
            TorchBuffer(
                name=torch_names.positions_name(layout),
                shape=(1, config.max_grid_tokens**2, config.width),
                compute=lambda: stored_positions(config),
            )
        ]

    def diffusers_config(self, config: MMDiTConfig) -> dict[str, Any]:
        """The config.json of `SD3Transformer2DModel` for this model."""
        return {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": config.grid_tokens * config.patch_size,
            "patch_size": config.patch_size,
            "in_channels": config.latent_channels,
            "out_channels": config.latent_channels,
            "num_layers": config.depth,
            "attention_head_dim": HEAD_DIM,
            "num_attention_heads": config.depth,
            "joint_attention_dim": config.context_dim,
            "caption_projection_dim": config.width,
            "pooled_projection_dim": config.pooled_dim,
            "pos_embed_max_size": config.max_grid_tokens,
            "dual_attention_layers": list(range(config.dual_attention_blocks)),
            "qk_norm": "rms_norm" if config.qk_norm else None,
        }

    def infer(
        self, shapes: Mapping[str, tuple[int, ...]], *, layout: str, source: Path
    ) -> Inferred:
        """What the shapes say; positions are left at their defaults.

        Raises:
          UserError: tensors are missing, or not those of an SD3 model.
        """

        def shape_of(name: str, rank: int) -> tuple[int, ...]:
            """Shape of a tensor that must be there, with this many dims."""
            if len(shapes.get(name, ())) != rank:
                raise UserError(
                    f"{source} must hold {name} with {rank} dims, got "
                    f"{shapes.get(name, 'none')}; the weights are not complete."
                )
            return shapes[name]

        def weight(path: str, rank: int = 2) -> tuple[int, ...]:
            """Shape of the tensor of an rfjax leaf."""
            return shape_of(torch_names.torch_name(path, layout=layout), rank)

        width, channels, patch_size, _ = weight("patch_embed/kernel", rank=4)
        outputs = weight("final/linear/kernel")[0] / patch_size**2
        if outputs != channels:
            raise UserError(
                f"{source} must predict as many channels as it reads, got {channels} "
                f"read and {outputs:g} predicted, as in a model for inpainting or "
                "editing; choose the weights of the text-to-image model."
            )
        _, positions, _ = shape_of(torch_names.positions_name(layout), 3)
        blocks = _blocks_with("blocks/image/modulation/kernel", shapes, layout)
        depth = 1 + max(blocks, default=-1)
        if width != HEAD_DIM * depth:
            raise UserError(
                f"{source} must have width {HEAD_DIM} x depth, got width {width} and "
                f"{depth} blocks; blocks are missing, or it is no SD3 model."
            )
        dual_blocks = _blocks_with("dual_blocks/image_only/out/kernel", shapes, layout)
        if dual_blocks != set(range(len(dual_blocks))) or depth - 1 in dual_blocks:
            raise UserError(
                f"{source} must have its dual-attention blocks first and none at the "
                f"end, got {sorted(dual_blocks)} of {depth} blocks; choose SD3 or "
                "SD3.5 weights."
            )
        config = MMDiTConfig(
            depth=depth,
            patch_size=patch_size,
            latent_channels=channels,
            context_dim=weight("context_embed/kernel")[1],
            pooled_dim=weight("pooled_embed/hidden/kernel")[1],
            qk_norm=bool(_blocks_with("blocks/image/query_norm/scale", shapes, layout)),
            dual_attention_blocks=len(dual_blocks),
            max_grid_tokens=math.isqrt(positions),
        )
        return Inferred(config, DECIDED_BY_WEIGHTS)

    def infer_buffers(
        self,
        files: TensorReader,
        inferred: Inferred,
        *,
        layout: str,
        claims: Mapping[str, Any],
    ) -> Inferred:
        """Finds the grid and scale whose computed table is the stored one, if any.

        Raises:
          UserError: positions that are not finite.
        """
        config = inferred.config
        name = torch_names.positions_name(layout)
        (table,) = files.read([name])
        if not np.isfinite(table).all():
            raise UserError(
                f"weights must be finite, got NaN or infinity in {name}; choose "
                "another file."
            )
        found = _find_positions(config, table, dtype=files.dtypes[name])
        if found is not None:
            fields = DECIDED_BY_WEIGHTS + DECIDED_BY_POSITIONS
            return Inferred(found, fields)
        sample_size = claims.get("sample_size")
        if isinstance(sample_size, int) and sample_size > 0:
            # A table of another kind does not say what size the model was made for.
            grid_tokens = max(sample_size // config.patch_size, 1)
            config = dataclasses.replace(config, grid_tokens=grid_tokens)
        return Inferred(config, DECIDED_BY_WEIGHTS, positions=table[0])


def stored_positions(config: MMDiTConfig, *, rows: int | None = None) -> np.ndarray:
    """The buffer whose centre crops are the positions of this model.

    Args:
      config: of the model; P is its `max_grid_tokens`.
      rows: only so many rows of the grid, from its middle; all P by default.

    Returns:
      [1, rows * P, D] float32.
    """
    side = config.max_grid_tokens
    table = position_table(
        rows or side,
        side,
        width=config.width,
        grid_tokens=config.grid_tokens,
        max_grid_tokens=side,
        scale=config.position_scale,
        file=config.position_file,
    )
    return table[None]


def _blocks_with(path: str, shapes: Mapping[str, Any], layout: str) -> set[int]:
    """Numbers of the blocks that have a leaf such as "blocks/image/query/kernel"."""
    name = torch_names.torch_name(path, layout=layout, block="*")
    pattern = re.compile(re.escape(name).replace(r"\*", r"(\d+)"))
    return {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}


def _find_positions(
    config: MMDiTConfig, table: np.ndarray, *, dtype: str
) -> MMDiTConfig | None:
    """The config whose computed positions are a stored table [1, P * P, D], if any."""
    side = config.max_grid_tokens
    middle = table.reshape(side, side, -1)[(side - 1) // 2]

    def distance(candidate: MMDiTConfig, found: np.ndarray, rows: int) -> float:
        """Largest difference between computed and stored positions."""
        computed = stored_positions(candidate, rows=rows).astype(jnp.dtype(dtype))
        return float(np.abs(computed.astype(np.float32) - found).max())

    positions = _unwrap_positions(middle[:, : config.width // 2])
    # Over all of them, since each is known as little as its dtype allows.
    places = np.arange(side) - (side - 1) / 2
    spacing = places @ positions / max(places @ places, 1) or 1.0
    candidates = [
        dataclasses.replace(config, grid_tokens=grid_tokens, position_scale=scale)
        for scale in _simple_fractions(spacing)
        if (grid_tokens := round(1 + 2 * positions.mean() / scale)) >= 1
    ]
    distances = [distance(candidate, middle, 1) for candidate in candidates]
    for candidate, found in zip(candidates, distances, strict=True):
        # The simplest of those that only rounding tells apart.
        if found <= min(distances) + POSITION_ROUNDING:
            if distance(candidate, table, side) <= POSITION_TOLERANCE[dtype]:
                return candidate
    return None


def _unwrap_positions(features: np.ndarray) -> np.ndarray:
    """Inverse of `embeddings.position_features`: [L, width] to [L] positions.

    The slowest wave gives a rough but unambiguous position, each faster one a more
    precise one.
    """
    sines, cosines = np.split(features.astype(np.float64), 2, axis=-1)
    num_waves = sines.shape[-1]
    positions = np.zeros(len(features))
    for wave in reversed(range(num_waves)):
        frequency = MAX_PERIOD ** (-wave / num_waves)
        angles = np.arctan2(sines[:, wave], cosines[:, wave])
        turns = (angles - frequency * positions + np.pi) / (2 * np.pi)
        positions += 2 * np.pi * (turns % 1 - 0.5) / frequency
    return positions


def _simple_fractions(value: float) -> list[float]:
    """Ever closer positive fractions, the simplest first, and the value itself."""
    exact = fractions.Fraction(value)
    near = [float(exact.limit_denominator(bound)) for bound in (1, 8, 64, 512, 4096)]
    return [scale for scale in dict.fromkeys([*near, value]) if scale > 0]
