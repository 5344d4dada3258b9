# SPDX-License-Identifier: Apache-2.0
"""What a backbone is, and the model that everything else sees of it.

A *backbone* is an architecture: a config dataclass, a network and tables about its
parameters, in its own folder. A *model* is a backbone with one config: pure
functions over a plain parameter tree. Steps, checkpoints, plans and export only see
models and refer to no parameter by its path.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx, traverse_util

from rfjax.errors import UserError
from rfjax.models.backbone_config import BackboneConfig
from rfjax.models.torch_format import TorchFormat
from rfjax.types import ONE_DEVICE, Conditioning, Layout, VelocityFn

HEAD_DIM = 64  # depth names the width of every model: depth heads of 64

ROLES = {  # of a parameter: how its learning rate follows depth and width
    "input": "matrix from a fixed number of inputs to the width",
    "hidden": "matrix from width to width",
    "output": "matrix from the width to a fixed number of outputs",
    "modulation": "matrix to vectors of the width, in threes: shift, scale, gate",
    "modulation_bias": "its bias",
    "gain": "scale of a norm",
    "bias": "any other bias",
}
ACTIVATIONS = {  # name -> what it is; of the last block where one block is meant
    "conditioning": "vector of timestep and pooled text",
    "embedding": "image tokens before the first block",
    "modulation": "shifts and scales of the image stream",
    "logits": "queries times keys of the image tokens",
    "attention": "output of the attention branch, before its gate",
    "mlp": "output of the MLP branch, before its gate",
    "stream": "image tokens after the last block",
    "velocity": "output of the network",
}


class Parameter(NamedTuple):
    """One row of a backbone's table of parameters.

    Attributes:
      pattern: regular expression of the end of the path, from a slash on.
      dims: logical name of each dim, keys of `parallel.sharding.RULES`; without the
        leading "layers" of stacked blocks.
      role: a key of `ROLES`.
      first_weights: how muP corrects the standard draw, a key of
        `train.parameterisation.FIRST_WEIGHTS`; None if it need not.
    """

    pattern: str
    dims: tuple[str, ...]
    role: str
    first_weights: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """An architecture: one row of `models.BACKBONES`. The contract of its folder.

    Attributes:
      config: dataclass of its fields, a `BackboneConfig`.
      network: (config, rngs=, layout=) -> module whose call is a `VelocityFn`; its
        parameters are float32 and those of the same path always of the same meaning.
      parameters: a row for every parameter; the first that matches counts.
      forward_flops: (config, latent_shape=, context_length=) -> exact FLOPs of one
        forward pass of one example; a multiply-add counts 2, matrix products only.
      stacks: path prefixes of blocks that are stacked along a leading dim.
      modulations: path component that marks the adaLN projections, which the size
        "params_without_adaln" leaves out; None if there are none.
      activations: (network, noisy_latents, timesteps, conditioning) -> every entry of
        `ACTIVATIONS`, for the coordinate check; None if it cannot be checked.
      torch: its weights in PyTorch files; None if it has no such layout.
    """

    config: type[BackboneConfig]
    network: Callable[..., nnx.Module]
    parameters: tuple[Parameter, ...]
    forward_flops: Callable[..., int]
    stacks: tuple[str, ...] = ()
    modulations: str | None = None
    activations: Callable[..., dict[str, jax.Array]] | None = None
    torch: TorchFormat | None = None

    def torch_format(self) -> TorchFormat:
        """Its weights in PyTorch files.

        Raises:
          UserError: it has no layout in PyTorch.
        """
        if self.torch is None:
            raise UserError(
                f"model.kind must be a backbone with a layout in PyTorch, got that of "
                f"{self.config.__name__}; choose another."
            )
        return self.torch


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone with one config, as pure functions over a plain parameter tree.

    The module API is left behind here: parameters are nested dicts of float32 arrays
    with stable names. Made by `models.make_model`.

    Attributes:
      backbone: the architecture.
      config: its sizes and numerics.
      layout: where activations live.
    """

    backbone: Backbone
    config: BackboneConfig
    layout: Layout = ONE_DEVICE

    @functools.cached_property
    def _graphdef(self) -> nnx.GraphDef:
        # Taken from shapes alone: no array is made.
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._module(jax.random.key(0))))
        return graphdef

    def _module(self, key: jax.Array) -> nnx.Module:
        return self.backbone.network(
            self.config, rngs=nnx.Rngs(key), layout=self.layout
        )

    # -- Parameters ----------------------------------------------------------------

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Draws the parameters in the backbone's standard way."""
        return nnx.to_pure_dict(nnx.state(self._module(key)))

    def bind(self, params: Mapping[str, Any]) -> VelocityFn:
        """The velocity function of one set of parameters."""
        return nnx.merge(self._graphdef, params)

    def abstract_params(self) -> dict[str, Any]:
        """The parameter tree as shapes and dtypes."""
        return _abstract_params(self.backbone, self.config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameter tree as "/"-joined path -> shape."""
        params = traverse_util.flatten_dict(self.abstract_params(), sep="/")
        return {path: leaf.shape for path, leaf in params.items()}

    def parameter(self, path: str) -> Parameter:
        """The row of a parameter, e.g. of blocks/image/out/kernel.

        Raises:
          LookupError: no row of the backbone's table ends the path.
        """
        for row in self.backbone.parameters:
            if re.search(rf"(^|/){row.pattern}$", path):
                return row
        raise LookupError(
            f"parameter {path} has no row in the table of its backbone; add one."
        )

    def dims(self, path: str) -> tuple[str, ...]:
        """Logical names of a parameter's dims, with "layers" first in a stack."""
        dims = self.parameter(path).dims
        is_stacked = path.split("/")[0] in self.backbone.stacks
        return ("layers", *dims) if is_stacked else dims

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    @property
    def num_params_without_adaln(self) -> int:
        """Number of parameters outside of the adaLN projections ."""
        return sum(
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(
                self.abstract_params()
            )
            if not any(entry.key == self.backbone.modulations for entry in path)
        )

    # -- Work ----------------------------------------------------------------------

    def forward_flops(
        self, *, latent_shape: tuple[int, int, int], context_length: int
    ) -> int:
        """Exact FLOPs of one forward pass of one example.

        Args:
          latent_shape: (H, W, C) of the latents.
          context_length: T, text tokens, pads included.
        """
        return self.backbone.forward_flops(
            self.config, latent_shape=latent_shape, context_length=context_length
        )

    def train_flops(
        self, *, latent_shape: tuple[int, int, int], context_length: int
    ) -> int:
        """FLOPs of forward and backward of one example: three forward passes.

        What remat computes again is not counted. Arguments as in `forward_flops`.
        """
        return 3 * self.forward_flops(
            latent_shape=latent_shape, context_length=context_length
        )

    def in_float32(self) -> Model:
        """The same model with all activations and matrix products in float32."""
        config = dataclasses.replace(self.config, compute_dtype="float32")
        return dataclasses.replace(self, config=config)

    def activations(
        self,
        params: Mapping[str, Any],
        noisy_latents: jax.Array,
        timesteps: jax.Array,
        conditioning: Conditioning,
    ) -> dict[str, jax.Array]:
        """Every entry of `ACTIVATIONS` of one forward pass.

        Raises:
          UserError: the backbone does not say what its activations are.
        """
        if self.backbone.activations is None:
            raise UserError(
                f"model.kind must be a backbone that names its activations, got that "
                f"of {type(self.config).__name__}; choose another."
            )
        return self.backbone.activations(
            self.bind(params), noisy_latents, timesteps, conditioning
        )

    @property
    def torch(self) -> TorchFormat:
        """The model's weights in PyTorch files.

        Raises:
          UserError: the backbone has no layout in PyTorch.
        """
        return self.backbone.torch_format()


@functools.cache  # tracing takes a quarter of a second, and a sweep asks per cell
def _abstract_params(backbone: Backbone, config: BackboneConfig) -> dict[str, Any]:
    return jax.eval_shape(Model(backbone, config).init, jax.random.key(0))


def check_sizes(
    config: BackboneConfig, needed: Mapping[str, int], *, name: str
) -> None:
    """Raises UserError if a field of a config is not what a data set needs.

    Args:
      config: of a backbone.
      needed: field -> its value for the data set.
      name: of the data set.
    """
    for field, value in needed.items():
        if getattr(config, field) != value:
            raise UserError(
                f"model.{field} must be {value} for data set {name}, "
                f"got {getattr(config, field)}; set it to {value}."
            )
