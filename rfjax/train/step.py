# SPDX-License-Identifier: Apache-2.0
"""The train step: a pure function from state and batch to state and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rfjax.flow.formulations import Formulation
from rfjax.flow.objective import example_keys, loss_per_example
from rfjax.models.base import Model
from rfjax.train.ema import EmaConfig, update_ema
from rfjax.train.state import TrainState
from rfjax.types import Batch

# (state, batch, learning_rate) -> (state, metrics)
TrainStep = Callable[
    [TrainState, Batch, float], tuple[TrainState, dict[str, jax.Array]]
]


def make_train_step(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    formulation: Formulation,
    shift: float,
    ema: EmaConfig,
    seed: int,
    micro_batches: int,
) -> TrainStep:
    """Builds the step; jit it with the state donated.

    Every random number derives from (seed, step, sample index), so the result does
    not depend on the number of devices, hosts or micro-batches.

    Args:
      model: the model.
      optimizer: any optax transformation whose updates are to be added. Its `update`
        is given the rate as `learning_rate`; one with a schedule inside ignores it.
      formulation: path, timestep density and weighting of the loss.
      shift: resolution shift of the timesteps; 1 leaves them unchanged.
      ema: moving average of the parameters.
      seed: of noise and timesteps.
      micro_batches: equal parts the batch is worked through in, to save memory.

    Returns:
      step(state, batch, learning_rate) -> (state, metrics); metrics are float32 scalars
      `loss` (mean over the batch), `grad_norm` (before clipping).
    """
    optimizer = optax.with_extra_args_support(optimizer)
    mean_loss = make_mean_loss(model, formulation=formulation, shift=shift, seed=seed)

    def train_step(
        state: TrainState, batch: Batch, learning_rate: float
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step."""
        loss, grads = accumulate_gradients(
            lambda params, part: mean_loss(params, part, state.step),
            state.params,
            batch,
            micro_batches=micro_batches,
        )
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, learning_rate=learning_rate
        )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        state = TrainState(
            step=step,
            params=params,
            ema_params=update_ema(state.ema_params, params, step=step, config=ema),
            opt_state=opt_state,
        )
        return state, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    return train_step


def compiled_for(
    train_step: TrainStep, state: Any, batches: Sequence[Any], learning_rate: float
) -> TrainStep:
    """The same step, compiled now for batches of several sizes of latents.

    That of a single size is compiled by the first step.

    Args:
      train_step: jitted.
      state: ShapeDtypeStructs with shardings, as of the state in training.
      batches: likewise, one for each size.
      learning_rate: any value.

    Returns:
      A step that takes batches of these sizes alone.
    """
    if len(batches) == 1:
        return train_step
    programs = {
        batch.latents.shape: train_step.lower(state, batch, learning_rate).compile()
        for batch in batches
    }

    def step(
        state: TrainState, batch: Batch, learning_rate: float
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step by the program of the batch's size."""
        return programs[batch.latents.shape](state, batch, learning_rate)

    return step


def make_mean_loss(
    model: Model, *, formulation: Formulation, shift: float, seed: int
) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """Builds the function that is minimised: (params, batch, step) -> float32 scalar.

    Args:
      model: the model.
      formulation: path, timestep density and weighting of the loss.
      shift: resolution shift of the timesteps; 1 leaves them unchanged.
      seed: of noise and timesteps.
    """

    def mean_loss(params: Any, batch: Batch, step: jax.Array) -> jax.Array:
        """Mean loss of a batch, float32 scalar."""
        keys = example_keys(
            jax.random.key(seed), step=step, sample_index=batch.sample_index
        )
        return jnp.mean(
            loss_per_example(
                model.bind(params),
                batch,
                keys=keys,
                formulation=formulation,
                shift=shift,
            ).loss
        )

    return mean_loss


def accumulate_gradients(
    loss_fn: Callable[[Any, Batch], jax.Array],
    params: Any,
    batch: Batch,
    *,
    micro_batches: int,
) -> tuple[jax.Array, Any]:
    """Mean loss and gradient over equal parts of the batch, one after the other.

    Rows are interleaved (row r goes to part r mod micro_batches), so that every
    device keeps working on the rows it holds.
    """
    if micro_batches == 1:
        return jax.value_and_grad(loss_fn)(params, batch)

    parts = jax.tree.map(
        lambda rows: rows.reshape(-1, micro_batches, *rows.shape[1:]).swapaxes(0, 1),
        batch,
    )

    def add_part(total: Any, part: Batch) -> tuple[Any, None]:
        """Adds loss and gradients of one part."""
        return jax.tree.map(
            jnp.add, total, jax.value_and_grad(loss_fn)(params, part)
        ), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(add_part, zero, parts)
    return jax.tree.map(lambda x: x / micro_batches, total)
