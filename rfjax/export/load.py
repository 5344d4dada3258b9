# SPDX-License-Identifier: Apache-2.0
"""Import: PyTorch weights become an rfjax config and parameter tree.

The tensors say what the model is: depth, channels, patch size, text widths, qk-norm,
dual attention and positions are inferred from them, and a config.json may only agree.
Only safetensors are read; no code in a file is ever run.
"""

from __future__ import annotations

import dataclasses
import fractions
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from rfjax.errors import MissingFileError, UserError
from rfjax.export import names, save, tensor_file
from rfjax.models.embeddings import MAX_PERIOD
from rfjax.models.mmdit import HEAD_DIM, MMDiTConfig

# Fields of `MMDiTConfig` that the weights decide.
TOLD_BY_WEIGHTS = (
    "depth",
    "patch_size",
    "latent_channels",
    "context_dim",
    "pooled_dim",
    "qk_norm",
    "dual_attention_blocks",
    "max_grid_tokens",
)
TOLD_BY_POSITIONS = ("grid_tokens", "position_scale")

# One unit in the last place of numbers below 1, and in float32 a little more: diffusers
# computes positions such as 100 / 3 in float32.
POSITION_TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclasses.dataclass(frozen=True)
class Weights:
    """PyTorch weights whose names, shapes and positions were found to be a model's.

    Attributes:
      config: of the model, with the defaults of `MMDiTConfig` in what weights do not
        tell (compute dtype, remat, attention).
      positions: [max_grid_tokens**2, D] float32, the stored position table, if it is
        none that `embeddings.position_table` computes; else None.
    """

    config: MMDiTConfig
    positions: np.ndarray | None
    _files: tensor_file.TensorFiles
    _format: str

    def read_params(self) -> dict[str, Any]:
        """Reads the parameter tree in float32.

        Raises:
          UserError: weights that are not finite.
        """
        return _read_params(self._files, self.config, self._format)


def open_weights(source: Path | str, *, format: str = "diffusers") -> Weights:
    """Opens PyTorch weights of the SD3 architecture; only positions are read yet.

    Args:
      source: for "diffusers" a pipeline folder, its `transformer` folder or a
        safetensors file; for "sd3" a safetensors file or a folder with exactly one.
      format: "diffusers" or "sd3".

    Raises:
      UserError: an unknown format; pickles; damaged files; tensors that are missing,
        unexpected, or of the wrong shape or dtype; a config.json that contradicts the
        tensors; positions that are not finite.
      MissingFileError: nothing to read.
    """
    names.check_choice("format", format, names.LAYOUTS)
    source = Path(source)
    paths, claims = _find_files(source, format)
    files = tensor_file.TensorFiles(paths)
    shapes = _network_shapes(files, format, source)
    config = _infer_config(shapes, format, source)
    _check_claims(claims, config, source)
    names.check_shapes(
        shapes, names.torch_shapes(config, layout=format), where=str(source)
    )
    _check_dtypes(files, shapes, source)
    config, positions = _infer_positions(files, config, format)
    sample_size = claims.get("sample_size")
    if positions is not None and isinstance(sample_size, int) and sample_size > 0:
        # A table of another kind does not tell what size the model was made for.
        grid_tokens = max(sample_size // config.patch_size, 1)
        config = dataclasses.replace(config, grid_tokens=grid_tokens)
    return Weights(config, positions, files, format)


def merge_model_fields(
    weights: Weights, given: Mapping[str, Any], *, position_file: Path
) -> dict[str, Any]:
    """The model section of a run config, completed by what the weights say.

    Args:
      weights: opened weights.
      given: the section as a user wrote it; may lack any field.
      position_file: where a stored position table will be.

    Raises:
      UserError: if the section contradicts the weights.
    """
    told = {field: getattr(weights.config, field) for field in TOLD_BY_WEIGHTS}
    if weights.positions is None:
        told |= {field: getattr(weights.config, field) for field in TOLD_BY_POSITIONS}
    else:
        told["position_file"] = str(position_file)
        given = {"grid_tokens": weights.config.grid_tokens, **given}
    wrong = [
        f"model.{field} is {given[field]!r}, the weights say {value!r}"
        for field, value in told.items()
        if given.get(field, value) != value
    ]
    if wrong:
        raise UserError(
            f"the config must agree with the weights: {'; '.join(wrong)}; correct "
            "these fields, or leave them out."
        )
    return {**told, **given}


def _find_files(source: Path, format: str) -> tuple[list[Path], dict[str, Any]]:
    """The files of the weights, and the config.json beside them ({} without)."""
    if not source.exists():
        raise MissingFileError(f"{source} does not exist; give a file or a folder.")
    folder = source.parent if source.is_file() else source
    if source.is_file():
        paths = [source]
    else:
        if format == "diffusers" and (source / "transformer").is_dir():
            folder = source / "transformer"
        paths = _weights_in(folder)
    config = folder / "config.json"
    has_claims = format == "diffusers" and config.is_file()
    return paths, _read_json(config) if has_claims else {}


def _weights_in(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    paths = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        weight_map = _read_json(indices[0]).get("weight_map", {})
        return [folder / name for name in sorted(set(weight_map.values()))]
    if len(paths) == 1:
        return paths
    if paths:
        raise UserError(
            f"{folder} must hold one safetensors file, or several and one index, got "
            f"{', '.join(path.name for path in paths)}; give the file itself."
        )
    for path in sorted(folder.iterdir()):
        tensor_file.refuse_pickle(path)
    raise MissingFileError(f"{folder} holds no *.safetensors; give another folder.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} must be JSON: {error}; download it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object; download it again.")
    return value


def _network_shapes(files: tensor_file.TensorFiles, format: str, source: Path):
    """Shapes of the tensors of the network; a single file may hold other parts too."""
    prefix = getattr(names.PREFIX, format)
    shapes = {n: shape for n, shape in files.shapes.items() if n.startswith(prefix)}
    probe = names.torch_name("patch_embed/kernel", layout=format)
    if probe not in shapes:
        others = [
            layout
            for layout in names.LAYOUTS
            if names.torch_name("patch_embed/kernel", layout=layout) in files.shapes
        ]
        remedy = f"use format {others[0]!r}" if others else "choose SD3 weights"
        raise UserError(
            f"{source} must hold {probe} to be of format {format!r}; {remedy}."
        )
    return shapes


def _infer_config(
    shapes: Mapping[str, tuple[int, ...]], format: str, source: Path
) -> MMDiTConfig:
    """What the shapes say; positions are left at their defaults."""

    def shape_of(name, rank):
        if len(shapes.get(name, ())) != rank:
            raise UserError(
                f"{source} must hold {name} with {rank} dims, got "
                f"{shapes.get(name, 'none')}; the weights are not complete."
            )
        return shapes[name]

    def weight(path, rank=2):
        return shape_of(names.torch_name(path, layout=format), rank)

    width, channels, patch_size, _ = weight("patch_embed/kernel", rank=4)
    _, positions, _ = shape_of(names.positions_name(format), 3)
    blocks = _blocks_with("blocks/image/modulation/kernel", shapes, format)
    depth = 1 + max(blocks, default=-1)
    if width != HEAD_DIM * depth:
        raise UserError(
            f"{source} must have width {HEAD_DIM} x depth, got width {width} and "
            f"{depth} blocks; blocks are missing, or it is no SD3 model."
        )
    dual_blocks = _blocks_with("dual_blocks/image_only/out/kernel", shapes, format)
    if dual_blocks != set(range(len(dual_blocks))) or depth - 1 in dual_blocks:
        raise UserError(
            f"{source} must have its dual-attention blocks first and none at the end, "
            f"got {sorted(dual_blocks)} of {depth} blocks; choose SD3 or SD3.5 weights."
        )
    return MMDiTConfig(
        depth=depth,
        patch_size=patch_size,
        latent_channels=channels,
        context_dim=weight("context_embed/kernel")[1],
        pooled_dim=weight("pooled_embed/hidden/kernel")[1],
        qk_norm=bool(_blocks_with("blocks/image/query_norm/scale", shapes, format)),
        dual_attention_blocks=len(dual_blocks),
        max_grid_tokens=math.isqrt(positions),
    )


def _blocks_with(path: str, shapes: Mapping[str, Any], format: str) -> set[int]:
    """Numbers of the blocks that have a leaf such as "blocks/image/query/kernel"."""
    name = names.torch_name(path, layout=format, block="*")
    pattern = re.compile(re.escape(name).replace(r"\*", r"(\d+)"))
    return {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}


def _check_claims(claims: Mapping[str, Any], config: MMDiTConfig, source: Path):
    """Compares a config.json with what the tensors say."""
    truth = save.diffusers_config(config)
    del truth["sample_size"]  # the position buffer decides
    if claims.get("out_channels", 0) is None:  # short for the same as in_channels
        claims = {**claims, "out_channels": claims.get("in_channels")}
    wrong = [
        f"{field} is {claims[field]!r}, the weights say {value!r}"
        for field, value in truth.items()
        if claims.get(field, value) != value
    ]
    if wrong:
        raise UserError(
            f"config.json of {source} must agree with the weights: {'; '.join(wrong)}; "
            "take both from the same model."
        )


def _check_dtypes(files: tensor_file.TensorFiles, shapes, source: Path) -> None:
    wrong = [n for n in sorted(shapes) if files.dtypes[n] not in tensor_file.DTYPES]
    if wrong:
        raise UserError(
            f"{source} must hold {', '.join(tensor_file.DTYPES)}, got "
            f"{files.dtypes[wrong[0]]} for {wrong[0]}; convert the weights first."
        )


def _infer_positions(
    files: tensor_file.TensorFiles, config: MMDiTConfig, format: str
) -> tuple[MMDiTConfig, np.ndarray | None]:
    """Finds the grid and scale whose computed table is the stored buffer, if any.

    Returns:
      The config with them and None; or the config as it was and the table.
    """
    name = names.positions_name(format)
    (table,) = files.read([name])
    _check_finite(table, name)
    dtype, side = files.dtypes[name], config.max_grid_tokens
    middle = table.reshape(side, side, -1)[(side - 1) // 2]

    def distance(candidate, found, rows):
        computed = save.stored_positions(candidate, dtype=dtype, rows=rows)
        return float(np.abs(computed.astype(np.float32) - found).max())

    positions = _unwrap_positions(middle[:, : config.width // 2])
    spacing = (positions[-1] - positions[0]) / max(side - 1, 1) or 1.0
    candidates = [
        dataclasses.replace(config, grid_tokens=grid_tokens, position_scale=scale)
        for scale in _simple_fractions(spacing)
        if (grid_tokens := round(side + 2 * positions[0] / scale)) >= 1
    ]
    if candidates:
        best = min(candidates, key=lambda candidate: distance(candidate, middle, 1))
        if distance(best, table, side) <= POSITION_TOLERANCE[dtype]:
            return best, None
    return config, table[0]


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


def _read_params(
    files: tensor_file.TensorFiles, config: MMDiTConfig, format: str
) -> dict[str, Any]:
    """Fills the parameter tree tensor by tensor."""
    params = {
        path: np.empty(shape, np.float32)
        for path, shape in names.leaf_shapes(config).items()
    }
    tensors = names.torch_tensors(config, layout=format)
    values = files.read(tensor.name for tensor in tensors)
    for tensor, value in zip(tensors, values, strict=True):
        _check_finite(value, tensor.name)
        for path, leaf in zip(tensor.paths, tensor.to_leaves(value), strict=True):
            target = (
                params[path] if tensor.block is None else params[path][tensor.block]
            )
            target[...] = leaf
    return traverse_util.unflatten_dict(params, sep="/")


def _check_finite(tensor: np.ndarray, name: str) -> None:
    if not np.isfinite(tensor).all():
        raise UserError(
            f"weights must be finite, got NaN or infinity in {name}; choose another "
            "file."
        )
