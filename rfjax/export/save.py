# SPDX-License-Identifier: Apache-2.0
"""Export: an rfjax checkpoint becomes PyTorch weights that diffusers loads.

Weights go leaf by leaf from the checkpoint into the file, so memory holds one
stacked leaf (one weight of all blocks) and no model is ever built.

    diffusers                                   sd3
    OUT/README.md                               OUT/README.md
    OUT/transformer/config.json                 OUT/model.safetensors
    OUT/transformer/diffusion_pytorch_model.safetensors (several and an index if big)
    OUT/scheduler/scheduler_config.json

With the folder of a pipeline also its autoencoder and text encoders, and
OUT/model_index.json.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from rfjax import checkpoint, whole_files
from rfjax.errors import UserError
from rfjax.export import card, names, pipelines, tensor_file
from rfjax.models import flops
from rfjax.models.embeddings import position_table
from rfjax.models.mmdit import HEAD_DIM, MMDiTConfig

SHARD_BYTES = 5_000_000_000  # of one file in the diffusers layout

# Gives one whole rfjax leaf, stacked over blocks, by its "/"-joined path.
ReadLeaf = Callable[[str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What an export wrote.

    Attributes:
      out: the folder.
      files: its files, relative to `out`.
      step: training step of the weights.
      num_params: parameters, without the position buffer.
      num_bytes: size of all files.
      warnings: what a user of the weights has to know.
    """

    out: Path
    files: tuple[str, ...]
    step: int
    num_params: int
    num_bytes: int
    warnings: tuple[str, ...]


def export_run(
    workdir: Path | str,
    *,
    out: Path | str,
    format: str = "diffusers",
    weights: str = "ema",
    dtype: str = "float32",
    step: int | None = None,
    pipeline: Path | str | None = None,
) -> ExportReport:
    """Writes the weights of a run as PyTorch files with a model card.

    Args:
      workdir: run folder.
      out: folder to make; may exist if it is empty.
      format: "diffusers" or "sd3" (Stability's single file).
      weights: "ema" or "raw".
      dtype: "float32", "bfloat16" or "float16", of every tensor.
      step: which checkpoint; the newest by default.
      pipeline: folder with vae/, text_encoder*/ and tokenizer*/, to be copied so that
        `out` is a whole pipeline; only for the diffusers format.

    Raises:
      UserError: an unknown choice, a folder `out` that is not empty, a checkpoint that
        is missing, unfinished, damaged or of another model, weights that are not
        finite in `dtype`, or a pipeline that does not fit. Nothing is left behind.
      MissingFileError: `workdir` is not a run folder, or `pipeline` has no vae.
    """
    names.check_choice("format", format, names.LAYOUTS)
    names.check_choice("weights", weights, checkpoint.WEIGHTS)
    names.check_choice("dtype", dtype, tensor_file.DTYPES)
    run = card.read_run(Path(workdir))
    step = checkpoint.choose_step(workdir, step)
    read_leaf = _checkpoint_reader(workdir, run.model, weights=weights, step=step)
    choices = {"format": format, "weights": weights, "dtype": dtype, "step": step}
    if pipeline is not None:
        if format != "diffusers":
            raise UserError(
                f"format must be diffusers to write a pipeline, got {format!r}."
            )
        parts = pipelines.find_parts(Path(pipeline), run)
        choices["loading"] = pipelines.loading_code(parts)
    whole_files.check_free(out, field="out")
    with whole_files.new_folder(out) as folder:
        if format == "diffusers":
            write_diffusers(read_leaf, run.model, folder / "transformer", dtype=dtype)
            if run.predicts_velocity:
                write_scheduler(folder / "scheduler", shift=run.shift)
            if pipeline is not None:
                pipelines.copy_parts(Path(pipeline), folder, parts)
        else:
            write_sd3(read_leaf, run.model, folder / "model.safetensors", dtype=dtype)
        (folder / "README.md").write_text(card.model_card(run, **choices), "utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        report = ExportReport(
            out=Path(out),
            files=tuple(str(path.relative_to(folder)) for path in files),
            step=step,
            num_params=flops.num_params(run.model),
            num_bytes=sum(path.stat().st_size for path in files),
            warnings=run.warnings,
        )
    return report


def _checkpoint_reader(
    workdir: Path | str, config: MMDiTConfig, *, weights: str, step: int
) -> ReadLeaf:
    """Reads single leaves of a checkpoint that was checked to be of this model."""
    shapes = names.leaf_shapes(config)
    checkpoint.check_step(workdir, step)
    names.check_shapes(
        checkpoint.stored_shapes(workdir, weights=weights, step=step),
        shapes,
        where=f"checkpoint {step} of {workdir}",
    )

    def read_leaf(path: str) -> np.ndarray:
        tree = {path: jax.ShapeDtypeStruct(shapes[path], np.float32)}
        restored = checkpoint.restore_params(
            workdir,
            traverse_util.unflatten_dict(tree, sep="/"),
            weights=weights,
            step=step,
            check=False,
        )
        return traverse_util.flatten_dict(restored, sep="/")[path]

    return read_leaf


def write_diffusers(
    read_leaf: ReadLeaf,
    config: MMDiTConfig,
    folder: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that `SD3Transformer2DModel.from_pretrained` reads.

    Args:
      read_leaf: gives the parameters.
      config: of the model.
      folder: to make.
      dtype: a name in `tensor_file.DTYPES`.
      shard_bytes: size above which weights are spread over several files.
    """
    folder.mkdir()
    _write_json(folder / "config.json", diffusers_config(config))
    shapes = names.torch_shapes(config, layout="diffusers")
    tensors = _stream(read_leaf, config, layout="diffusers", dtype=dtype)
    shards = _split(shapes, dtype=dtype, shard_bytes=shard_bytes)
    stem, files = "diffusion_pytorch_model", {}
    for number, shard in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"{stem}{part}.safetensors"
        files |= dict.fromkeys(shard, file)
        tensor_file.write_tensors(
            folder / file, shard, itertools.islice(tensors, len(shard)), dtype=dtype
        )
    if len(shards) > 1:
        sizes = [tensor_file.num_bytes(s, dtype=dtype) for s in shapes.values()]
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": files}
        _write_json(folder / f"{stem}.safetensors.index.json", index)


def write_sd3(
    read_leaf: ReadLeaf, config: MMDiTConfig, path: Path, *, dtype: str = "float32"
) -> None:
    """Writes Stability's single file; arguments as in `write_diffusers`."""
    tensor_file.write_tensors(
        path,
        names.torch_shapes(config, layout="sd3"),
        _stream(read_leaf, config, layout="sd3", dtype=dtype),
        dtype=dtype,
    )


def write_scheduler(folder: Path, *, shift: float) -> None:
    """Writes what `FlowMatchEulerDiscreteScheduler.from_pretrained` reads."""
    folder.mkdir()
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": shift,
    }
    _write_json(folder / "scheduler_config.json", scheduler)


def diffusers_config(config: MMDiTConfig) -> dict[str, Any]:
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


def stored_positions(
    config: MMDiTConfig, *, dtype: str = "float32", rows: int | None = None
) -> np.ndarray:
    """The buffer whose centre crops are the positions of this model.

    Args:
      config: of the model; P is its `max_grid_tokens`.
      dtype: a name in `tensor_file.DTYPES`.
      rows: only so many rows of the grid, from its middle; all P by default.

    Returns:
      [1, rows * P, D].
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
    return table[None].astype(tensor_file.DTYPES[dtype][1])


def _stream(
    read_leaf: ReadLeaf, config: MMDiTConfig, *, layout: str, dtype: str
) -> Iterator[np.ndarray]:
    """Yields the tensors of a file in `dtype`; each rfjax leaf is read once."""
    yield stored_positions(config, dtype=dtype)
    tensors = names.torch_tensors(config, layout=layout)
    for paths, group in itertools.groupby(tensors, key=lambda tensor: tensor.paths):
        leaves = [read_leaf(path) for path in paths]
        for tensor in group:
            yield _cast(tensor.from_leaves(leaves), dtype, where=", ".join(paths))
        del leaves  # before the next ones are read: the largest is 1.3 GB at d = 24


def _cast(tensor: np.ndarray, dtype: str, *, where: str) -> np.ndarray:
    """Converts to the dtype of the file, refusing what is no number there."""
    with np.errstate(over="ignore"):  # it is found below
        cast = tensor.astype(tensor_file.DTYPES[dtype][1], order="C")
    if np.isfinite(cast).all():
        return cast
    if np.isfinite(tensor).all():
        raise UserError(
            f"dtype {dtype} cannot hold the weights {where}: the largest is "
            f"{np.abs(tensor).max():.3g}; export as bfloat16 or float32."
        )
    raise UserError(
        f"weights must be finite, got NaN or infinity in {where}; export an earlier "
        "step."
    )


def _split(
    shapes: Mapping[str, tuple[int, ...]], *, dtype: str, shard_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    """Cuts the list of tensors into files of at most `shard_bytes`, in order."""
    shards, size = [{}], 0
    for name, shape in shapes.items():
        num_bytes = tensor_file.num_bytes(shape, dtype=dtype)
        if shards[-1] and size + num_bytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes
    return shards


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
