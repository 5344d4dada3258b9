# SPDX-License-Identifier: Apache-2.0
"""Coordinate check: how far a few steps move the activations of ever larger models.

A learning rate can serve every depth only if a step of it moves each activation of a
large model as far as that of a small one. So models of several depths are trained a few
steps on one batch, and the change of each kind of activation since the start is plotted
against the width: its slope in log-log must be about 0. It is the test of an
implementation of muP (Yang et al. 2022, arXiv:2203.03466, appendix D.1); here width and
depth grow together.

Gates start closed and the last layer at zero, so the first step moves the last layer
alone, the second opens gates, and only from the third on does everything move.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfjax.errors import UserError
from rfjax.flow.formulations import Formulation
from rfjax.flow.path import RECTIFIED_FLOW, noisy_latents
from rfjax.models import BackboneConfig, Model, make_model
from rfjax.models.base import ACTIVATIONS
from rfjax.train.ema import EmaConfig
from rfjax.train.optimizer import OptimizerConfig, make_init, make_optimizer
from rfjax.train.state import init_state
from rfjax.train.step import make_train_step
from rfjax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coordinate:
    """One kind of activation in one model after one number of steps.

    Attributes:
      parameterisation: a name in `train.parameterisation.PARAMETERISATIONS`.
      depth: of the model.
      width: of the model, 64 times its depth.
      step: finished training steps.
      activation: a name in `ACTIVATIONS`.
      size: mean absolute value.
      change: mean absolute difference to the value at step 0.
    """

    parameterisation: str
    depth: int
    width: int
    step: int
    activation: str
    size: float
    change: float


def check_coordinates(
    batch: Batch,
    *,
    model: BackboneConfig,
    optimizer: OptimizerConfig,
    formulation: Formulation,
    shift: float = 1.0,
    depths: Sequence[int],
    num_steps: int,
    seed: int = 0,
) -> list[Coordinate]:
    """Trains each depth on one batch at the peak rate and measures after every step.

    Args:
      batch: host or device arrays; also what the activations are measured on.
      model: of any depth; computed in float32.
      optimizer: with the parameterisation to be checked.
      formulation: of the loss.
      shift: of the timesteps.
      depths: at least two different ones.
      num_steps: at least 3, so that everything moves.
      seed: of weights, noise and timesteps.

    Raises:
      UserError: too few depths or steps.
    """
    if len(set(depths)) < 2 or min(depths) < 1:
        raise UserError(
            "depths must be at least two different positive numbers, got "
            f"{list(depths)}; try 1,2,4."
        )
    if num_steps < 3:
        raise UserError(
            f"steps must be at least 3, got {num_steps}: before the third step the "
            "inside of the blocks does not move."
        )
    coordinates = []
    for depth in sorted(set(depths)):
        config = dataclasses.replace(
            model, depth=depth, compute_dtype="float32", remat="none"
        )
        traces = _train(
            batch,
            model=make_model(config),
            optimizer=optimizer,
            formulation=formulation,
            shift=shift,
            num_steps=num_steps,
            seed=seed,
        )
        coordinates += [
            Coordinate(
                parameterisation=optimizer.parameterisation,
                depth=depth,
                width=config.width,
                step=step,
                activation=name,
                size=float(np.abs(trace[name]).mean()),
                change=float(np.abs(trace[name] - traces[0][name]).mean()),
            )
            for step, trace in enumerate(traces)
            for name in ACTIVATIONS
        ]
    return coordinates


def fit_slopes(coordinates: Sequence[Coordinate]) -> dict[str, dict[str, float]]:
    """Slopes of log change over log width after the last step.

    Returns:
      parameterisation -> activation -> slope; nan for what has not moved.
    """
    last = max(coordinate.step for coordinate in coordinates)
    groups: dict[str, dict[str, list]] = {}
    for point in coordinates:
        if point.step == last:
            group = groups.setdefault(point.parameterisation, {})
            group.setdefault(point.activation, []).append((point.width, point.change))
    return {
        parameterisation: {name: _slope(points) for name, points in group.items()}
        for parameterisation, group in groups.items()
    }


def _slope(points: Sequence[tuple[float, float]]) -> float:
    widths, changes = np.array(points, float).T
    if not changes.min() > 0:
        return math.nan
    return float(np.polyfit(np.log(widths), np.log(changes), 1)[0])


def _train(
    batch: Batch,
    *,
    model: Model,
    optimizer: OptimizerConfig,
    formulation: Formulation,
    shift: float,
    num_steps: int,
    seed: int,
) -> list[Mapping[str, np.ndarray]]:
    """Activations before the first step and after each."""
    transform = make_optimizer(optimizer, model=model)
    init = make_init(optimizer, model=model)
    step = jax.jit(
        make_train_step(
            model,
            optimizer=transform,
            formulation=formulation,
            shift=shift,
            ema=EmaConfig(),
            seed=seed,
            micro_batches=1,
        ),
        donate_argnums=0,
    )
    noise = np.random.default_rng(seed).normal(size=batch.latents.shape)
    noise = noise.astype(np.float32)
    observe = jax.jit(lambda params: _observe(model, params, batch, noise))

    state = jax.jit(lambda key: init_state(key, init_params=init, optimizer=transform))(
        jax.random.key(seed)
    )
    traces = [jax.device_get(observe(state.params))]
    for _ in range(num_steps):
        state, _ = step(state, batch, optimizer.learning_rate)
        traces.append(jax.device_get(observe(state.params)))
    return traces


def _observe(
    model: Model, params: Mapping[str, Any], batch: Batch, noise: np.ndarray
) -> dict[str, jax.Array]:
    """The model's activations, of noisy latents at evenly spaced timesteps."""
    latents = batch.latents.astype(jnp.float32)
    timesteps = (jnp.arange(len(latents)) + 0.5) / len(latents)
    noisy = noisy_latents(RECTIFIED_FLOW, latents, noise, timesteps)
    return model.activations(params, noisy, timesteps, batch.conditioning)
