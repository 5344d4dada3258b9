# SPDX-License-Identifier: Apache-2.0
"""Latents from noise: the solver, guided, over one set of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rfjax.errors import UserError
from rfjax.flow.formulations import Formulation
from rfjax.flow.guidance import guided
from rfjax.flow.solvers import SOLVERS, Solution, integrate
from rfjax.models.base import Model
from rfjax.types import Conditioning


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How pictures are drawn.

    Attributes:
      num_steps: solver steps from t = 1 to t = 0.
      solver: a name in `flow.solvers.SOLVERS`.
      guidance_scale: 1 is unguided; more follows the text more closely.
      shift: resolution shift of the step grid; 3 at 1024 px.
    """

    num_steps: int = 50
    solver: str = "euler"
    guidance_scale: float = 5.0
    shift: float = 1.0

    def __post_init__(self):
        if self.num_steps < 1:
            raise UserError(
                f"sample.num_steps must be at least 1, got {self.num_steps}."
            )
        if self.solver not in SOLVERS:
            raise UserError(
                f"sample.solver must be one of {', '.join(SOLVERS)}, "
                f"got {self.solver!r}."
            )
        if self.guidance_scale < 0:
            raise UserError(
                f"sample.guidance_scale must be at least 0, got {self.guidance_scale}; "
                "1 is unguided."
            )
        if not self.shift > 0:
            raise UserError(f"sample.shift must be positive, got {self.shift}.")


def sample_noise(seed: int, *, num_samples: int, latent_shape: tuple[int, int, int]):
    """Noise of each sample from (seed, its index): [B, H, W, C] float32.

    The first samples stay the same when more are asked for.
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
) -> Solution:
    """Integrates the guided velocity from noise to latents, as one compiled loop.

    Args:
      model: the model.
      params: its parameters, usually `ema_params`.
      noise: [B, H, W, C] float32.
      conditioning: of the B samples.
      unconditional: of the empty caption, one row that all samples share.
      formulation: what the model was trained as.
      config: steps, solver, guidance, shift.

    Returns:
      Latents [B, H, W, C] float32 and the length of each path.
    """

    @jax.jit
    def solve(params, noise, conditioning, unconditional):
        velocity_fn = formulation.velocity_fn(model.bind(params))
        return integrate(
            guided(
                velocity_fn,
                unconditional=unconditional,
                guidance_scale=config.guidance_scale,
            ),
            noise,
            conditioning,
            num_steps=config.num_steps,
            solver=config.solver,
            shift=config.shift,
            formulation=formulation,
        )

    return solve(params, noise, conditioning, unconditional)
