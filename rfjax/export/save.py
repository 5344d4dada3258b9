# SPDX-License-Identifier: Apache-2.0
"""Export: an rfjax checkpoint becomes PyTorch weights that diffusers loads.

Weights go leaf by leaf from the checkpoint into the file, so memory holds one
stacked leaf (one weight of all blocks) and no model is ever built.

    diffusers                                   sd3
    OUT/README.md                               OUT/README.md
    OUT/transformer/config.json                 OUT/model.safetensors
    OUT/transformer/diffusion_pytorch_model.safetensors (several and an index if big)
    OUT/scheduler/scheduler_config.json

With the data set of the run also OUT/codec.npz and OUT/text_states.npz; with the folder
of a pipeline its autoencoder and text encoders, and OUT/model_index.json.
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
from rfjax.export import (
    card,
    checks,
    picture_files,
    pipelines,
    scheduler,
    snippet,
    tensor_file,
)
from rfjax.export.local_names import without_folders
from rfjax.export.rounding import Rounding, cast
from rfjax.models import Model

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

    def __str__(self) -> str:
        wrote = (
            f"wrote step {self.step}, {self.num_params:,} parameters, "
            f"{self.num_bytes / 1e6:,.1f} MB in {self.out}"
        )
        return "\n".join([wrote, *(f"warning: {text}" for text in self.warnings)])


def export_run(
    workdir: Path | str,
    *,
    out: Path | str,
    layout: str = "diffusers",
    weights: str = "ema",
    dtype: str = "float32",
    step: int | None = None,
    pipeline: Path | str | None = None,
    data: Path | str | None = None,
    licence: str = card.UNKNOWN_LICENCE,
) -> ExportReport:
    """Writes the weights of a run as PyTorch files with a model card.

    Args:
      workdir: run folder.
      out: folder to make; may exist if it is empty.
      layout: "diffusers" or "sd3" (Stability's single file).
      weights: "ema" or "raw".
      dtype: "float32", "bfloat16" or "float16", of every tensor.
      step: which checkpoint; the newest by default.
      pipeline: folder with vae/, text_encoder*/ and tokenizer*/, to be copied so that
        `out` is a whole pipeline; only for the diffusers format.
      licence: of the weights, an identifier of the Hugging Face Hub for the card.
      data: folder of the data set, if it was moved.

    Raises:
      UserError: an unknown choice, a folder `out` that is not empty, a checkpoint that
        is missing, unfinished, damaged or of another model, weights that are not
        finite in `dtype`, or a pipeline that does not fit. Nothing is left behind.
      MissingFileError: `workdir` is not a run folder, or `pipeline` has no vae.
    """
    checks.check_choice("weights", weights, checkpoint.WEIGHTS)
    checks.check_choice("dtype", dtype, tensor_file.DTYPES)
    whole_files.check_free(out, field="out")
    run = card.read_run(Path(workdir), data=None if data is None else str(data))
    checks.check_choice("format", layout, run.model.torch.layouts)
    if not card.LICENCE.fullmatch(licence):
        raise UserError(
            "license must be an identifier of the Hugging Face Hub, such as apache-2.0 "
            f"or cc-by-sa-4.0, got {licence!r}; leave it out to choose later."
        )
    choices = {"layout": layout, "weights": weights, "dtype": dtype}
    with checkpoint.pinned_for_all(workdir, step) as step:
        return _export_step(
            run,
            workdir,
            out=out,
            pipeline=pipeline,
            step=step,
            licence=licence,
            **choices,
        )


def _export_step(
    run: card.Run,
    workdir: Path | str,
    *,
    out: Path | str,
    layout: str,
    weights: str,
    dtype: str,
    step: int,
    pipeline: Path | str | None,
    licence: str,
) -> ExportReport:
    """`export_run` of a checkpoint that stays there meanwhile."""
    read_leaf = _checkpoint_reader(workdir, run.model, weights=weights, step=step)
    if pipeline is not None:
        if layout != "diffusers":
            raise UserError(
                f"format must be diffusers to write a pipeline, got {layout!r}."
            )
        parts = pipelines.find_parts(Path(pipeline), run)
    size = sum(
        tensor_file.num_bytes(shape, dtype=dtype)
        for shape in file_shapes(run.model, layout=layout).values()
    )
    solver = scheduler.content_for(run).get("_class_name", scheduler.EULER)
    with whole_files.new_folder(out, num_bytes=size) as folder:
        rounding = _write_weights(folder, run, read_leaf, layout=layout, dtype=dtype)
        if pipeline is not None:
            pipelines.copy_parts(Path(pipeline), folder, parts, scheduler=solver)
        decoding = picture_files.write(folder, run)
        text = card.model_card(
            run,
            layout=layout,
            weights=weights,
            dtype=dtype,
            step=step,
            licence=licence,
            code=snippet.card_code(
                run, layout=layout, scheduler=solver, decoding=decoding
            )
            if pipeline is None
            else pipelines.loading_code(parts, run),
        )
        (folder / "README.md").write_text(text, "utf-8")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    return ExportReport(
        out=Path(out),
        files=tuple(sizes),
        step=step,
        num_params=run.model.num_params,
        num_bytes=sum(sizes.values()),
        warnings=run.warnings + rounding.warnings,
    )


def _write_weights(
    folder: Path, run: card.Run, read_leaf: ReadLeaf, *, layout: str, dtype: str
) -> Rounding:
    """Writes the weights, and the scheduler of those that diffusers can sample with."""
    if layout != "diffusers":
        path = folder / "model.safetensors"
        return write_single_file(read_leaf, run.model, path, layout=layout, dtype=dtype)
    if run.predicts_velocity:
        (folder / "scheduler").mkdir()
        _write_json(folder / "scheduler" / scheduler.FILE, scheduler.content_for(run))
    return write_diffusers(
        read_leaf,
        run.model,
        folder / "transformer",
        dtype=dtype,
        imported=run.imported_configs.get("transformer", {}),
    )


def _checkpoint_reader(
    workdir: Path | str, model: Model, *, weights: str, step: int
) -> ReadLeaf:
    """Reads single leaves of a checkpoint that was checked to be of this model."""
    stored = checkpoint.open_params(workdir, weights=weights, step=step)
    shapes = model.shapes()
    checks.check_shapes(stored.shapes, shapes, where=f"checkpoint {step} of {workdir}")

    def read_leaf(path: str) -> np.ndarray:
        """Reads one leaf whole."""
        tree = {path: jax.ShapeDtypeStruct(shapes[path], np.float32)}
        restored = stored.read(traverse_util.unflatten_dict(tree, sep="/"))
        return traverse_util.flatten_dict(restored, sep="/")[path]

    return read_leaf


def write_diffusers(
    read_leaf: ReadLeaf,
    model: Model,
    folder: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    imported: Mapping[str, Any] | None = None,
) -> Rounding:
    """Writes a folder that `SD3Transformer2DModel.from_pretrained` reads.

    Args:
      read_leaf: gives the parameters.
      model: whose parameters they are.
      folder: to make.
      dtype: a name in `tensor_file.DTYPES`.
      shard_bytes: size above which weights are spread over several files.
      imported: config.json of the weights that the model was imported from, which
        agrees with the model and may say more, as the default size of pictures.

    Returns:
      What the weights lost in `dtype`.
    """
    rounding = Rounding(dtype)
    folder.mkdir()
    config = model.torch.diffusers_config(model.config) | dict(imported or {})
    _write_json(folder / "config.json", config)
    shapes = file_shapes(model, layout="diffusers")
    tensors = _stream(read_leaf, model, layout="diffusers", rounding=rounding)
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
    return rounding


def write_single_file(
    read_leaf: ReadLeaf,
    model: Model,
    path: Path,
    *,
    layout: str,
    dtype: str = "float32",
) -> Rounding:
    """Writes one file, such as Stability's; otherwise as `write_diffusers`."""
    rounding = Rounding(dtype)
    tensor_file.write_tensors(
        path,
        file_shapes(model, layout=layout),
        _stream(read_leaf, model, layout=layout, rounding=rounding),
        dtype=dtype,
    )
    return rounding


def file_shapes(model: Model, *, layout: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of all that a file holds: computed buffers, then parameters."""
    torch, config = model.torch, model.config
    parts = [
        *torch.buffers(config, layout=layout),
        *torch.tensors(config, model.shapes(), layout=layout),
    ]
    return {part.name: part.shape for part in parts}


def _stream(
    read_leaf: ReadLeaf, model: Model, *, layout: str, rounding: Rounding
) -> Iterator[np.ndarray]:
    """Yields the tensors of a file in its dtype; each rfjax leaf is read once."""
    for buffer in model.torch.buffers(model.config, layout=layout):
        yield cast(buffer.compute(), rounding.dtype, where=buffer.name)
    tensors = model.torch.tensors(model.config, model.shapes(), layout=layout)
    for paths, group in itertools.groupby(tensors, key=lambda tensor: tensor.paths):
        leaves = [read_leaf(path) for path in paths]
        for tensor in group:
            whole = tensor.from_leaves(leaves)
            yield rounding.cast(whole, where=", ".join(paths))
        del leaves  # before the next ones are read: the largest is 1.3 GB at d = 24


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
    path.write_text(json.dumps(without_folders(value), indent=2) + "\n", "utf-8")
