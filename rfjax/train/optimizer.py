# SPDX-License-Identifier: Apache-2.0
"""AdamW with clipping, and the warm-up, constant, cooldown schedule.

`rfjax.train.parameterisation` explains how rates and first weights depend on depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import optax

from rfjax.errors import UserError
from rfjax.models.base import Model
from rfjax.parallel.sharding import parameter_path
from rfjax.train.parameterisation import PARAMETERISATIONS, rescale_init, with_rates
from rfjax.value_types import (
    NaturalInt,
    NonNegativeFloat,
    OneOf,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    check_fields,
)

DECAYED = ("input", "hidden", "output", "modulation")  # roles that weights decay in

COOLDOWNS = {  # fraction of the cooldown done -> fraction of the peak rate
    "linear": lambda done: 1.0 - done,
    "sqrt": lambda done: 1.0 - math.sqrt(done),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Attributes:
      learning_rate: peak rate.
      warmup_steps: linear rise from zero; the first step already has a rate above zero.
      cooldown_steps: last steps of the run, in which the rate falls to zero.
      cooldown: shape of the fall, a name in `COOLDOWNS`.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: AdamW epsilon; 1e-15 lets bfloat16-sized gradients through (SD3, 5.3.2).
      weight_decay: decoupled, on matrices only.
      clip_norm: global gradient norm above which gradients are scaled down.
      parameterisation: "standard" takes the same rate for all parameters, so each depth
        needs its own; "mup" scales it per parameter so that one serves every depth.
      base_depth: depth at which `learning_rate` was tuned; "mup" needs it.
    """

    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NaturalInt = 1000
    cooldown_steps: NaturalInt = 0
    cooldown: Annotated[str, OneOf(COOLDOWNS)] = "sqrt"
    b1: ProperFraction = 0.9
    b2: ProperFraction = 0.999
    eps: PositiveFloat = 1e-15
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 1.0
    parameterisation: Annotated[str, OneOf(PARAMETERISATIONS)] = "standard"
    base_depth: PositiveInt | None = None

    def __post_init__(self):
        check_fields(self, section="optimizer")
        if self.parameterisation == "mup" and self.base_depth is None:
            raise UserError(
                "optimizer.base_depth must be set with optimizer.parameterisation = "
                "mup, got None; give the depth at which learning_rate was tuned."
            )

    def check_steps(self, num_steps: int) -> None:
        """Raises UserError if warm-up and cooldown do not fit into the run."""
        if self.warmup_steps + self.cooldown_steps > num_steps:
            raise UserError(
                "optimizer.warmup_steps + optimizer.cooldown_steps must fit into "
                f"train.num_steps = {num_steps}, got {self.warmup_steps} + "
                f"{self.cooldown_steps}; shorten them or train longer."
            )


def learning_rate(step: int, *, config: OptimizerConfig, num_steps: int) -> float:
    """Rate of the update that follows `step` finished updates (WSD).

    It is computed on the host and handed to the step (`with_given_rate`).

    Source: Hagele et al. 2024, arXiv:2405.18392: constant rate with a short
    cooldown replaces one cosine per run length.
    """
    risen = (step + 1) / max(config.warmup_steps, 1)
    cooldown_start = num_steps - config.cooldown_steps
    fallen = (step - cooldown_start) / max(config.cooldown_steps, 1)
    remaining = COOLDOWNS[config.cooldown](min(max(fallen, 0.0), 1.0))
    return config.learning_rate * min(risen, 1.0) * remaining


def make_optimizer(
    config: OptimizerConfig, *, model: Model
) -> optax.GradientTransformationExtraArgs:
    """Clip, Adam, decay of matrices; then times the rate that each update is given.

    Args:
      config: of the optimizer.
      model: of whose parameters "mup" takes the rates.
    """

    def is_decayed(params: Any) -> Any:
        """Which leaves are matrices."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: model.parameter(parameter_path(path)).role in DECAYED,
            params,
        )

    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.parameterisation == "mup":
        adam = with_rates(adam, model=model, base_depth=config.base_depth)
    return with_given_rate(
        optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            adam,
            optax.add_decayed_weights(config.weight_decay, mask=is_decayed),
        )
    )


def with_given_rate(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Descends by the `learning_rate` that each call of `update` is given.

    The rate is an input of the compiled step, so runs of different lengths share one
    program. The state is that of `inner`.

    Args:
      inner: gradients to updates for a rate of 1, pointing uphill.
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: Any = None,
        *,
        learning_rate: jax.Array,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        """The inner updates times minus the rate."""
        del extra_args
        updates, state = inner.update(updates, state, params)
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def make_init(
    config: OptimizerConfig, *, model: Model
) -> Callable[[jax.Array], dict[str, Any]]:
    """The draw of first weights that goes with the rates: key -> parameters.

    Args:
      config: of the optimizer.
      model: whose parameters are drawn.
    """
    if config.parameterisation == "standard":
        return model.init
    return lambda key: rescale_init(
        model.init(key), model=model, base_depth=config.base_depth
    )
