# SPDX-License-Identifier: Apache-2.0
"""Import: PyTorch weights become an rfjax config and parameter tree.

The tensors say what the model is, by its backbone's `TorchFormat`, and a config.json
may only agree. Only safetensors are read; no code in a file is ever run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from rfjax import whole_files
from rfjax.errors import UserError
from rfjax.export import (
    checks,
    foreign_models,
    save,
    scheduler,
    tensor_file,
    weight_files,
)
from rfjax.export.stored_weights import TensorFiles
from rfjax.models import BACKBONES, DEFAULT_KIND, BackboneConfig, Model, make_model
from rfjax.models.torch_format import TorchFormat, TorchTensor


@dataclasses.dataclass(frozen=True)
class Weights:
    """PyTorch weights whose names, shapes and positions were found to be a model's.

    Attributes:
      model: with defaults in what weights do not say (compute dtype, remat, attention).
      fields: names of the config's fields that the weights decide.
      positions: [max_grid_tokens**2, D] float32, the stored position table, if it is
        none that the backbone computes; else None.
      configs: what was beside the weights, by folder: the content of config.json as
        "transformer", that of scheduler_config.json as "scheduler".
    """

    model: Model
    fields: tuple[str, ...]
    positions: np.ndarray | None
    configs: Mapping[str, Mapping[str, Any]]
    _files: TensorFiles
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
        leaves = {path: self.read_leaf(path) for path in self.model.shapes()}
        return traverse_util.unflatten_dict(leaves, sep="/")

    def read_leaf(self, path: str) -> np.ndarray:
        """Reads one parameter in float32, stacked over its blocks.

        Args:
          path: "/"-joined, a key of `model.shapes()`.

        Raises:
          UserError: weights that are not finite.
        """
        parts = [tensor for tensor in self._tensors if path in tensor.paths]
        leaf = np.empty(self.model.shapes()[path], np.float32)
        values = self._files.read(tensor.name for tensor in parts)
        for tensor, value in zip(parts, values, strict=True):
            if not np.isfinite(value).all():
                raise UserError(
                    f"weights must be finite, got NaN or infinity in {tensor.name}; "
                    "choose another file."
                )
            part = tensor.to_leaves(value)[tensor.paths.index(path)]
            leaf[... if tensor.block is None else tensor.block] = part
        return leaf

    @functools.cached_property
    def _tensors(self) -> list[TorchTensor]:
        """What the files hold of parameters."""
        return self.model.torch.tensors(
            self.config, self.model.shapes(), layout=self._layout
        )


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
    tensors, folder = weight_files.open_files(source, layout=layout)
    files = _open_network(tensors, torch, layout=layout, source=source)
    configs = _read_configs(folder) if layout == "diffusers" else {}
    claims = configs.get("transformer", {})
    inferred = torch.infer(files.shapes, layout=layout, source=source)
    _check_claims(claims, torch.diffusers_config(inferred.config), source)
    expected = save.file_shapes(make_model(inferred.config), layout=layout)
    checks.check_shapes(files.shapes, expected, where=str(source))
    inferred = torch.infer_buffers(files, inferred, layout=layout, claims=claims)
    return Weights(
        make_model(inferred.config),
        inferred.fields,
        inferred.positions,
        configs,
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


def merge_sample_fields(weights: Weights, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sample section of a run config, completed by the scheduler of the weights.

    Args:
      weights: opened weights.
      given: the section as a user wrote it, which counts; may lack any field.
    """
    said = scheduler.sample_fields(weights.configs.get("scheduler", {}))
    if given.keys() & {"shift", "dynamic_shift"}:  # only one of them may be set
        said = {name: value for name, value in said.items() if name == "solver"}
    return {**said, **given}


def _open_network(
    tensors: Mapping[str, tensor_file.StoredTensor],
    torch: TorchFormat,
    *,
    layout: str,
    source: Path,
) -> TensorFiles:
    """The tensors of the network alone, by the names that the layout gives them.

    In a file they may begin with anything: a single file holds other parts too, and
    tools save the network without a prefix, or with one of their own.
    """
    found = {name: _prefixes(tensors, torch, name) for name in torch.layouts}
    if not found[layout]:
        foreign_models.refuse(tensors, source=source)
        others = [name for name in torch.layouts if found[name]]
        remedy = (
            f"use format {others[0]!r}" if others else "choose weights of this backbone"
        )
        raise UserError(
            f"{source} must hold {torch.probe[layout]} to be of format {layout!r}; "
            f"{remedy}."
        )
    own = torch.prefix[layout]
    if len(found[layout]) > 1 and own not in found[layout]:
        raise UserError(
            f"{source} must hold one network, got several, whose names begin with "
            f"{', '.join(map(repr, found[layout]))}; keep one of them."
        )
    prefix = own if own in found[layout] else found[layout][0]
    network = {
        own + name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    foreign_models.refuse(network, source=source)
    return TensorFiles(network, prefix=own)


def _prefixes(names: Iterable[str], torch: TorchFormat, layout: str) -> list[str]:
    """What stands before the names of each network of a layout."""
    probe = torch.probe[layout].removeprefix(torch.prefix[layout])
    ends = [name.removesuffix(probe) for name in names if name.endswith(probe)]
    return sorted(prefix for prefix in ends if prefix == "" or prefix.endswith("."))


def _read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The config.json beside the weights, and the scheduler of their pipeline."""
    configs = {}
    if (path := folder / "config.json").is_file():
        configs["transformer"] = whole_files.read_json(path)
        # Names the folder that an earlier program read it from.
        configs["transformer"].pop("_name_or_path", None)
    if (folder := folder.absolute()).name == "transformer":
        configs["scheduler"] = scheduler.read(folder.parent / "scheduler")
    return {name: content for name, content in configs.items() if content}


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
