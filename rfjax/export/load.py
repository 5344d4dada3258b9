# SPDX-License-Identifier: Apache-2.0
"""Import: PyTorch weights become an rfjax config and parameter tree.

The tensors say what the model is, by its backbone's `TorchFormat`, and a config.json
may only agree. Only safetensors are read; no code in a file is ever run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from rfjax.errors import MissingFileError, UserError
from rfjax.export import checks, save, tensor_file
from rfjax.models import BACKBONES, DEFAULT_KIND, BackboneConfig, Model, make_model
from rfjax.models.torch_format import TorchFormat


@dataclasses.dataclass(frozen=True)
class Weights:
    """PyTorch weights whose names, shapes and positions were found to be a model's.

    Attributes:
      model: with defaults in what weights do not say (compute dtype, remat, attention).
      fields: names of the config's fields that the weights decide.
      positions: [max_grid_tokens**2, D] float32, the stored position table, if it is
        none that the backbone computes; else None.
    """

    model: Model
    fields: tuple[str, ...]
    positions: np.ndarray | None
    _files: tensor_file.TensorFiles
    _layout: str

    @property
    def config(self) -> BackboneConfig:
        """Of the model."""
        return self.model.config

    def read_params(self) -> dict[str, Any]:
        """Reads the parameter tree in float32.

        Raises:
          UserError: weights that are not finite.
        """
        return _read_params(self._files, self.model, self._layout)


def open_weights(
    source: Path | str, *, layout: str = "diffusers", kind: str = DEFAULT_KIND
) -> Weights:
    """Opens PyTorch weights of a backbone; only buffers are read yet.

    Args:
      source: for "diffusers" a pipeline folder, its `transformer` folder or a
        safetensors file; for others a safetensors file or a folder with exactly one.
      layout: one of the backbone's, as "diffusers" or "sd3".
      kind: of the backbone.

    Raises:
      UserError: an unknown layout; pickles; damaged files; tensors that are missing,
        unexpected, or of the wrong shape or dtype; a config.json that contradicts the
        tensors; buffers that are not finite.
      MissingFileError: nothing to read.
    """
    checks.check_choice("model.kind", kind, BACKBONES)
    torch = BACKBONES[kind].torch_format()
    checks.check_choice("format", layout, torch.layouts)
    source = Path(source)
    paths, claims = _find_files(source, layout)
    files = tensor_file.TensorFiles(paths)
    shapes = _network_shapes(files, torch, layout, source)
    inferred = torch.infer(shapes, layout=layout, source=source)
    _check_claims(claims, torch.diffusers_config(inferred.config), source)
    expected = save.file_shapes(make_model(inferred.config), layout=layout)
    checks.check_shapes(shapes, expected, where=str(source))
    _check_dtypes(files, shapes, source)
    inferred = torch.infer_buffers(files, inferred, layout=layout, claims=claims)
    return Weights(
        make_model(inferred.config),
        inferred.fields,
        inferred.positions,
        files,
        layout,
    )


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
    decided = {field: getattr(weights.config, field) for field in weights.fields}
    if weights.positions is not None:
        decided["position_file"] = str(position_file)
        given = {"grid_tokens": weights.config.grid_tokens, **given}
    wrong = [
        f"model.{field} is {given[field]!r}, the weights say {value!r}"
        for field, value in decided.items()
        if given.get(field, value) != value
    ]
    if wrong:
        raise UserError(
            f"the config must agree with the weights: {'; '.join(wrong)}; correct "
            "these fields, or leave them out."
        )
    return {**decided, **given}


def _find_files(source: Path, layout: str) -> tuple[list[Path], dict[str, Any]]:
    """The files of the weights, and the config.json beside them ({} without)."""
    if not source.exists():
        raise MissingFileError(f"{source} does not exist; give a file or a folder.")
    folder = source.parent if source.is_file() else source
    if source.is_file():
        paths = [source]
    else:
        if layout == "diffusers" and (source / "transformer").is_dir():
            folder = source / "transformer"
        paths = _weights_in(folder)
    config = folder / "config.json"
    has_claims = layout == "diffusers" and config.is_file()
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


def _network_shapes(
    files: tensor_file.TensorFiles, torch: TorchFormat, layout: str, source: Path
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of the network; a single file may hold other parts too."""
    probe = torch.probe[layout]
    if probe not in files.shapes:
        others = [name for name in torch.layouts if torch.probe[name] in files.shapes]
        remedy = (
            f"use format {others[0]!r}" if others else "choose weights of this backbone"
        )
        raise UserError(
            f"{source} must hold {probe} to be of format {layout!r}; {remedy}."
        )
    prefix = torch.prefix[layout]
    return {n: shape for n, shape in files.shapes.items() if n.startswith(prefix)}


def _check_claims(
    claims: Mapping[str, Any], truth: dict[str, Any], source: Path
) -> None:
    """Compares a config.json with what the tensors say."""
    truth.pop("sample_size", None)  # a position buffer decides
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


def _check_dtypes(
    files: tensor_file.TensorFiles, shapes: Iterable[str], source: Path
) -> None:
    wrong = [n for n in sorted(shapes) if files.dtypes[n] not in tensor_file.DTYPES]
    if wrong:
        raise UserError(
            f"{source} must hold {', '.join(tensor_file.DTYPES)}, got "
            f"{files.dtypes[wrong[0]]} for {wrong[0]}; convert the weights first."
        )


def _read_params(
    files: tensor_file.TensorFiles, model: Model, layout: str
) -> dict[str, Any]:
    """Fills the parameter tree tensor by tensor."""
    shapes = model.shapes()
    params = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    tensors = model.torch.tensors(model.config, shapes, layout=layout)
    values = files.read(tensor.name for tensor in tensors)
    for tensor, value in zip(tensors, values, strict=True):
        if not np.isfinite(value).all():
            raise UserError(
                f"weights must be finite, got NaN or infinity in {tensor.name}; choose "
                "another file."
            )
        for path, leaf in zip(tensor.paths, tensor.to_leaves(value), strict=True):
            target = (
                params[path] if tensor.block is None else params[path][tensor.block]
            )
            target[...] = leaf
    return traverse_util.unflatten_dict(params, sep="/")
