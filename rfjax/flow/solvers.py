# SPDX-License-Identifier: Apache-2.0
"""Sampling: integrates dz = velocity dt from noise at t = 1 to latents at t = 0.

This is always done on the rectified path; `Formulation.velocity_fn` takes networks of
other formulations there. Nothing is lost: an Euler step of the rectified flow from t to
t' is latents (1 - t') + noise t' with both as predicted at t, which is DDIM on a
variance-preserving path and EDM's Euler step on its own. All that remains of a path is
its grid of timesteps.

Step grids, `GRIDS`, all with num_steps + 1 timesteps from 1 to 0:

- "uniform": linspace(1, 0) in the t of the formulation's path, moved to the rectified
  t of equal log-SNR; for rf, linspace(1, 0) itself.
- "karras": sigma = t / (1 - t) from 80 to 0.002, uniform in sigma^(1/7), then 0; the
  default of edm(P_m,P_s), whose uniform t would take too few steps at high noise.
- "diffusers": what FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler
  do, rectified flow only. They shift the ends of the grid twice: with shift 3 the last
  of 50 timesteps before 0 is 0.00893, where one shift would give 0.00299. A dynamic
  shift moves them once. Heun's last step, to 0, is one of Euler.

The resolution shift moves any of them towards noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.errors import UserError
from rfjax.flow.formulations import Formulation, parse
from rfjax.flow.path import EDM, RECTIFIED_FLOW
from rfjax.flow.timesteps import shift_timesteps
from rfjax.types import Conditioning, VelocityFn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solver arrived at.

    Attributes:
      latents: [B, H, W, C], at t = 0.
      path_length: [B], the sum over steps of the Euclidean length of the step. A
        straight line from unit noise to unit latents has sqrt(2 H W C).
    """

    latents: jax.Array
    path_length: jax.Array


@dataclasses.dataclass(frozen=True)
class SamplerSetting:
    """How the paper samples: with Euler, by the number of steps and the guidance."""

    num_steps: int
    guidance_scale: float


# The six settings behind the ranking of formulations, appendix B.3.
PAPER_SETTINGS = {
    "50 steps, cfg 1.0": SamplerSetting(50, 1.0),
    "50 steps, cfg 2.5": SamplerSetting(50, 2.5),
    "50 steps, cfg 5.0": SamplerSetting(50, 5.0),
    "5 steps, cfg 5.0": SamplerSetting(5, 5.0),
    "10 steps, cfg 5.0": SamplerSetting(10, 5.0),
    "25 steps, cfg 5.0": SamplerSetting(25, 5.0),
}


def integrate(
    velocity_fn: VelocityFn,
    noise: jax.Array,
    conditioning: Conditioning,
    *,
    num_steps: int,
    solver: str = "euler",
    shift: float = 1.0,
    formulation: Formulation | None = None,
    grid: str | None = None,
    use_dynamic_shifting: bool = False,
) -> Solution:
    """Integrates a velocity from noise at t = 1 to latents at t = 0. Can be jitted.

    Args:
      velocity_fn: velocity of the rectified path; see `Formulation.velocity_fn` for
        networks of other formulations, `guidance.guided` for guidance.
      noise: [B, H, W, C] standard normal float32.
      conditioning: of the same B examples.
      num_steps: at least 1.
      solver: a key of `SOLVERS`; "euler" and "adams_bashforth" call velocity_fn once
        per step, "heun" twice.
      shift: > 0, moves the grid towards noise; 1 leaves it unchanged.
      formulation: what the network was trained as; None is rf.
      grid: a key of `GRIDS`; None is "karras" for edm(P_m,P_s), else "uniform".
      use_dynamic_shifting: whether `shift` follows the size of the image, as that of a
        `DynamicShift`; decides how often "diffusers" shifts the ends of its grid.

    Raises:
      UserError: zero steps, unknown solver or grid, shift <= 0, or a grid that does
        not belong to the formulation.

    Example:
      A velocity of 3 everywhere takes noise 1 to latents 1 - 3, and any number of steps
      is exact:

      >>> def velocity_fn(latents, timesteps, conditioning):
      ...     return jnp.full_like(latents, 3.0)
      >>> text = Conditioning(context=jnp.zeros([1, 1, 1]), pooled=jnp.zeros([1, 1]))
      >>> noise = jnp.ones([1, 1, 1, 1])
      >>> integrate(velocity_fn, noise, text, num_steps=2).latents.item()
      -2.0
    """
    if solver not in SOLVERS:
        raise UserError(
            f"solver must be one of {sorted(SOLVERS)}, got {solver!r}; choose 'euler'."
        )
    timesteps = jnp.asarray(
        step_grid(
            num_steps,
            shift=shift,
            formulation=formulation,
            grid=grid,
            use_dynamic_shifting=use_dynamic_shifting,
        ),
        dtype=noise.dtype,
    )
    step_sizes = jnp.diff(timesteps)
    growth = jnp.concatenate(
        [jnp.zeros(1, noise.dtype), step_sizes[1:] / step_sizes[:-1]]
    )

    def velocity_at(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        """The velocity of a batch whose examples are all at one timestep."""
        timesteps = jnp.full(len(noise), timestep)
        return velocity_fn(latents, timesteps, conditioning).astype(noise.dtype)

    def advance(
        state: tuple[jax.Array, jax.Array, jax.Array], step: Step
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        """Takes one step; the state is (latents, path length, previous velocity)."""
        latents, path_length, previous = state
        change, velocity = SOLVERS[solver](velocity_at, latents, previous, step)
        length = jnp.sqrt(jnp.square(change).sum(axis=tuple(range(1, noise.ndim))))
        return (latents + change, path_length + length, velocity), None

    start = noise, jnp.zeros(len(noise), noise.dtype), jnp.zeros_like(noise)
    is_last = jnp.arange(num_steps) == num_steps - 1
    steps = Step(timesteps[:-1], step_sizes, growth, is_last & (grid == "diffusers"))
    (latents, path_length, _), _ = jax.lax.scan(advance, start, steps)
    return Solution(latents=latents, path_length=path_length)


class Step(NamedTuple):
    """One step of a grid.

    Attributes:
      timestep: where it starts.
      size: change of the timestep, negative.
      growth: its size over that of the step before it; 0 on the first.
      is_first_order: whether Heun's correction is left out.
    """

    timestep: jax.Array
    size: jax.Array
    growth: jax.Array
    is_first_order: jax.Array


_VelocityAt = Callable[[jax.Array, jax.Array], jax.Array]  # of latents at a timestep
_Change = tuple[jax.Array, jax.Array]  # of the latents, and the velocity at the start


def _euler(
    velocity_at: _VelocityAt, latents: jax.Array, previous: jax.Array, step: Step
) -> _Change:
    """First order: follows the velocity at the start of the step."""
    del previous
    velocity = velocity_at(latents, step.timestep)
    return step.size * velocity, velocity


def _heun(
    velocity_at: _VelocityAt, latents: jax.Array, previous: jax.Array, step: Step
) -> _Change:
    """Second order: averages the velocities at both ends of the step."""
    del previous
    velocity = velocity_at(latents, step.timestep)

    def at_end() -> jax.Array:
        """The velocity where a step of Euler would arrive."""
        return velocity_at(latents + step.size * velocity, step.timestep + step.size)

    end = jax.lax.cond(step.is_first_order, lambda: velocity, at_end)
    return step.size * (velocity + end) / 2, velocity


def _adams_bashforth(
    velocity_at: _VelocityAt, latents: jax.Array, previous: jax.Array, step: Step
) -> _Change:
    """Second order from one call: extrapolates to mid-step from the previous velocity.

    The two-step Adams-Bashforth method for steps of unequal size; Euler on the first.
    """
    velocity = velocity_at(latents, step.timestep)
    return step.size * (velocity + step.growth / 2 * (velocity - previous)), velocity


SOLVERS = {"euler": _euler, "heun": _heun, "adams_bashforth": _adams_bashforth}


def step_grid(
    num_steps: int,
    *,
    shift: float = 1.0,
    formulation: Formulation | None = None,
    grid: str | None = None,
    use_dynamic_shifting: bool = False,
) -> jax.Array:
    """Returns the [num_steps + 1] timesteps that `integrate` visits, from 1 to 0.

    Arguments and errors as in `integrate`; the grids are described in this module.

    Example:
      >>> step_grid(4)
      Array([1.  , 0.75, 0.5 , 0.25, 0.  ], dtype=float32)
      >>> step_grid(4, shift=3.0)
      Array([1.  , 0.9 , 0.75, 0.5 , 0.  ], dtype=float32)
    """
    formulation = formulation or parse("rf")
    if grid is None:
        grid = "karras" if isinstance(formulation.path, EDM) else "uniform"
    if grid not in GRIDS:
        raise UserError(
            f"grid must be one of {sorted(GRIDS)}, got {grid!r}; choose 'uniform'."
        )
    if num_steps < 1:
        raise UserError(
            f"num_steps must be at least 1, got {num_steps}; choose for example 50."
        )
    return GRIDS[grid](
        num_steps,
        shift=shift,
        formulation=formulation,
        use_dynamic_shifting=use_dynamic_shifting,
    )


def _uniform_grid(
    num_steps: int,
    *,
    shift: float,
    formulation: Formulation,
    use_dynamic_shifting: bool,
) -> jax.Array:
    """Even in the t of the path."""
    del use_dynamic_shifting
    path_timesteps = np.linspace(1, 0, num_steps + 1)[1:-1]
    return _with_ends(formulation.path.to_rectified(path_timesteps), shift=shift)


def _karras_grid(
    num_steps: int,
    *,
    shift: float,
    formulation: Formulation,
    use_dynamic_shifting: bool,
) -> jax.Array:
    """Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    del formulation, use_dynamic_shifting
    sigmas = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), num_steps) ** 7
    return _with_ends((sigmas / (1 + sigmas))[1:], shift=shift)


def _diffusers_grid(
    num_steps: int,
    *,
    shift: float,
    formulation: Formulation,
    use_dynamic_shifting: bool,
) -> jax.Array:
    """That of FlowMatchEulerDiscreteScheduler."""
    if formulation.path != RECTIFIED_FLOW:
        raise UserError(
            "grid 'diffusers' integrates rectified flow only, because that scheduler "
            f"supports no other path, got {formulation}; choose grid 'uniform'."
        )
    last = 1 / 1000  # of 1000 training timesteps
    if not use_dynamic_shifting:
        last = shift_timesteps(last, shift=shift)
    timesteps = shift_timesteps(np.linspace(1, last, num_steps), shift=shift)
    return jnp.append(timesteps, 0)


def _with_ends(inner_timesteps: jax.Array, *, shift: float) -> jax.Array:
    """Shifts a grid and completes it: from pure noise at 1 to latents at 0."""
    inner = shift_timesteps(inner_timesteps, shift=shift)
    return jnp.concatenate([jnp.ones(1), inner, jnp.zeros(1)])


GRIDS = {"uniform": _uniform_grid, "karras": _karras_grid, "diffusers": _diffusers_grid}
