# SPDX-License-Identifier: Apache-2.0
"""How a backbone's weights lie in PyTorch files: what export and import need to know.

A torch weight is [out, in], an rfjax kernel [in, out]; several of our leaves may be one
tensor there, and one leaf that is stacked over blocks is one tensor per block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rfjax.models.backbone_config import BackboneConfig


@dataclasses.dataclass(frozen=True)
class TorchTensor:
    """One tensor of a PyTorch file, and the rfjax leaves it is made of.

    Attributes:
      name: key in the file, prefix included.
      shape: in the file.
      paths: rfjax leaves ("/"-joined) whose torch rows are stacked, in order.
      block: index into leaves that are stacked over blocks, else None.
      patch_size: of the patch embedding's convolution, else None.
      swap_halves: whether the file has (scale, shift) for our (shift, scale).
    """

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    block: int | None = None
    patch_size: int | None = None
    swap_halves: bool = False

    def from_leaves(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Makes the torch tensor from whole rfjax leaves, in the order of `paths`."""
        parts = [leaf if self.block is None else leaf[self.block] for leaf in leaves]
        if self.patch_size is not None:
            (kernel,) = parts
            patch = (self.patch_size, self.patch_size, -1, kernel.shape[-1])
            return kernel.reshape(patch).transpose(3, 2, 0, 1)
        tensor = parts[0].T if len(parts) == 1 else np.concatenate(
            [part.T for part in parts]
        )  # fmt: skip
        return _swap_halves(tensor) if self.swap_halves else tensor

    def to_leaves(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Inverse of `from_leaves`; leaves of a stack come without their block dim."""
        if self.patch_size is not None:
            return [tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])]
        if self.swap_halves:
            tensor = _swap_halves(tensor)
        return [part.T for part in np.split(tensor, len(self.paths))]


def _swap_halves(tensor: np.ndarray) -> np.ndarray:
    return np.roll(tensor, len(tensor) // 2, axis=0)


@dataclasses.dataclass(frozen=True)
class TorchBuffer:
    """A tensor that PyTorch stores and rfjax computes.

    Attributes:
      name: key in the file, prefix included.
      shape: in the file.
      compute: () -> the array, float32.
    """

    name: str
    shape: tuple[int, ...]
    compute: Callable[[], np.ndarray]


class TensorReader(Protocol):
    """PyTorch files that are open for reading, `export.stored_weights.TensorFiles`.

    Attributes:
      shapes: name -> shape.
      dtypes: name -> of what is stored, as "float32" or "float8_e4m3fn".
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    def read(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields tensors as float32, one in memory at a time."""


@dataclasses.dataclass(frozen=True)
class Inferred:
    """What the tensors of a file say about their model.

    Attributes:
      config: of the model, with defaults in what weights do not say.
      fields: names of the fields of `config` that the weights decide.
      positions: [max_grid_tokens**2, D] float32, the stored position table, if rfjax
        cannot compute it; else None.
    """

    config: BackboneConfig
    fields: tuple[str, ...]
    positions: np.ndarray | None = None


class TorchFormat(Protocol):
    """The PyTorch files of one backbone. The contract of `Backbone.torch`.

    Attributes:
      layouts: names of the layouts; "diffusers" is one that diffusers loads.
      probe: layout -> name of a tensor that only a file of this layout holds.
      prefix: layout -> what the names of the network begin with.
      title: what the model is, for the title of a model card, as "an MMDiT".
      tag: of the architecture, for a model card.
      architecture: a sentence about it, with its source.
      loading: layout -> Python code that loads an export from "FOLDER"; that of
        "diffusers" calls it `transformer`.
    """

    layouts: tuple[str, ...]
    probe: Mapping[str, str]
    prefix: Mapping[str, str]
    title: str
    tag: str
    architecture: str
    loading: Mapping[str, str]

    def tensors(
        self,
        config: BackboneConfig,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        layout: str,
    ) -> list[TorchTensor]:
        """Every tensor made of parameters, given as path -> shape.

        Those of the same leaves follow each other, so a writer reads each once.
        """

    def buffers(self, config: BackboneConfig, *, layout: str) -> list[TorchBuffer]:
        """Every tensor that is computed; they come first in a file."""

    def diffusers_config(self, config: Any) -> dict[str, Any]:
        """The config.json that diffusers reads beside the weights."""

    def infer(
        self, shapes: Mapping[str, tuple[int, ...]], *, layout: str, source: Path
    ) -> Inferred:
        """What the model must be, from the shapes of its tensors alone.

        Raises:
          UserError: tensors are missing or of an architecture of another kind.
        """

    def infer_buffers(
        self,
        files: TensorReader,
        inferred: Inferred,
        *,
        layout: str,
        claims: Mapping[str, Any],
    ) -> Inferred:
        """Completes it by what the stored buffers and a config.json say.

        Raises:
          UserError: buffers that are not finite.
        """
