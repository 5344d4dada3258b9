# SPDX-License-Identifier: Apache-2.0
"""Latents from noise: the solver, guided, over one set of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rfjax.errors import UserError
from rfjax.flow.formulations import Formulation
from rfjax.flow.guidance import guided
from rfjax.flow.path import RECTIFIED_FLOW
from rfjax.flow.solvers import GRIDS, SOLVERS, integrate
from rfjax.flow.timesteps import DynamicShift
from rfjax.models.base import Model
from rfjax.parallel.mesh import num_batch_shards, put_whole, replicated
from rfjax.types import Conditioning
from rfjax.value_types import (
    NonNegativeFloat,
    OneOf,
    PositiveFloat,
    PositiveInt,
    check_fields,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How pictures are drawn.

    Attributes:
      num_steps: solver steps from t = 1 to t = 0.
      solver: a name in `flow.solvers.SOLVERS`.
      grid: a name in `flow.solvers.GRIDS`. If none is given, "diffusers" for the
        rectified flow, so that pictures are those of the exported pipeline; "karras"
        for edm(P_m,P_s), and "uniform" otherwise.
      guidance_scale: 1 is unguided; more follows the text more closely.
      shift: resolution shift of the step grid; 3 at 1024 px.
      dynamic_shift: a shift that follows the size of the pictures, instead of `shift`.
      batch_size: examples at a time over all devices, to save memory.
    """

    num_steps: PositiveInt = 50
    solver: Annotated[str, OneOf(SOLVERS)] = "euler"
    grid: Annotated[str, OneOf(GRIDS)] | None = None
    guidance_scale: NonNegativeFloat = 5.0
    shift: PositiveFloat = 1.0
    dynamic_shift: DynamicShift | None = None
    batch_size: PositiveInt = 64

    def __post_init__(self):
        check_fields(self, section="sample")
        if self.dynamic_shift is not None and self.shift != 1:
            raise UserError(
                "sample.shift must be 1 beside sample.dynamic_shift, got "
                f"{self.shift}; leave one of them out."
            )

    def grid_for(self, formulation: Formulation) -> str | None:
        """The grid of a formulation: that of diffusers where diffusers can sample.

        Raises:
          UserError: a grid that the formulation does not have.
        """
        is_rectified = formulation.path == RECTIFIED_FLOW
        if self.grid == "diffusers" and not is_rectified:
            raise UserError(
                "sample.grid must not be diffusers for a path other than the rectified "
                f"flow, got the objective {formulation}; leave it out, or choose "
                "uniform."
            )
        return self.grid or ("diffusers" if is_rectified else None)

    def shift_for(self, num_image_tokens: int) -> float:
        """The shift of pictures of so many tokens."""
        if self.dynamic_shift is None:
            return self.shift
        return self.dynamic_shift.shift(num_image_tokens)


def sample_noise(
    seed: int, *, num_samples: int, latent_shape: tuple[int, int, int]
) -> jax.Array:
    """Noise of each example from (seed, its index): [B, H, W, C] float32.

    The first examples stay the same when more are asked for.
    """
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(
        jnp.arange(num_samples)
    )
    return jax.vmap(lambda key: jax.random.normal(key, latent_shape, jnp.float32))(keys)


def sample_latents(
    model: Model,
    params: Mapping,
    noise: jax.Array,
    conditioning: Conditioning,
    *,
    unconditional: Conditioning,
    formulation: Formulation,
    config: SampleConfig,
    mesh: Mesh,
) -> np.ndarray:
    """Integrates the guided velocity from noise to latents, as one compiled loop.

    The examples are spread over the mesh, `config.batch_size` at a time.

    Args:
      model: in the layout of the mesh.
      params: its parameters in the same layout, usually `ema_params`.
      noise: [B, H, W, C] float32, any B.
      conditioning: of the B examples, host arrays.
      unconditional: of the empty caption, one row shared by all examples.
      formulation: what the model was trained as.
      config: steps, solver, grid, guidance, shift, and how many at a time.
      mesh: where they are drawn.

    Returns:
      Latents [B, H, W, C] float32 on the host, on every process.
    """

    # Replicated, so that every process can read all latents.
    @jax.jit(out_shardings=replicated(mesh))
    def solve(
        params: Mapping,
        noise: jax.Array,
        conditioning: Conditioning,
        unconditional: Conditioning,
    ) -> jax.Array:
        """Latents of one batch."""
        return integrate(
            guided(
                formulation.velocity_fn(model.bind(params)),
                unconditional=unconditional,
                guidance_scale=config.guidance_scale,
            ),
            noise,
            conditioning,
            num_steps=config.num_steps,
            solver=config.solver,
            shift=config.shift_for(model.config.num_image_tokens(noise.shape[1:])),
            formulation=formulation,
            grid=config.grid_for(formulation),
            use_dynamic_shifting=config.dynamic_shift is not None,
        ).latents

    num_examples = len(noise)
    batch_size = min(config.batch_size, num_examples)
    batch_size += -batch_size % num_batch_shards(mesh)
    host = jax.tree.map(np.asarray, (noise, conditioning))
    drawn = []
    for start in range(0, num_examples, batch_size):
        # The last batch is filled up with its last example.
        rows = np.minimum(np.arange(start, start + batch_size), num_examples - 1)
        batch = jax.tree.map(lambda leaf: leaf[rows], host)  # noqa: B023
        drawn.append(
            np.asarray(solve(params, *put_whole(batch, mesh=mesh), unconditional))
        )
    return np.concatenate(drawn)[:num_examples]
