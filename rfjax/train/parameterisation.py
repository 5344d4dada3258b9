# SPDX-License-Identifier: Apache-2.0
"""Learning rates and first weights that let one learning rate serve every depth.

In rfjax the depth names the width too, so a model of depth m * base_depth is m times as
wide and m times as deep. A backbone gives each parameter a role, and the role says how
its rate follows m. The network is not touched: only rates and the draw of the first
weights are, so what is exported stays Stable Diffusion 3.

Width. The rules for Adam of muP, the maximal update parameterisation (Yang et al. 2022,
arXiv:2203.03466, table 3), which moves every activation by the same amount at every
width. Adam moves each weight by about the rate, regardless of the gradient's size. A
hidden matrix adds up D such moves, all with the sign that the gradient asks for: rate
1/m. A matrix from a fixed number of inputs, a bias and a gain add up a fixed number:
rate 1. The layer to patches reads D features: rate 1/m, and it starts at zero.
Attention keeps its 1/sqrt(K), since the head dim is 64 at every depth.

Depth. A stream is the sum of what the blocks add, gate * branch each. With all blocks
learning at once the sum grows with their number, unless each adds 1/m: residual
branches are to be multiplied by 1/m, and then the rates inside of them need no further
rule (CompleteP, Dey et al. 2025, arXiv:2505.01618). Here the multiplier is already
there: the gate of adaLN-zero, which starts at zero and grows by what its rate allows.
So the columns of a modulation that make gates, and their biases, take another 1/m. The
1/sqrt(m) of earlier depth rules (Yang et al. 2023, arXiv:2310.02244) bounds the sum of
random branches at the start; closed gates add up nothing there.

First weights. muP wants weights of a fixed number of inputs to have the same scale at
every width, hidden ones 1/sqrt(width). Xavier-uniform mixes both, and the fixed normal
of the timestep embedder misses the second: these few are rescaled to fit, by a factor
that is 1 at the base depth.

Weight decay acts beside the Adam step and keeps its own rate, learning_rate *
weight_decay, in every role: the time in which a kernel forgets is the same at every
depth. Multiplied by 1/m it would vanish in large models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rfjax.models.base import Model
from rfjax.parallel.sharding import parameter_path

PARAMETERISATIONS = ("standard", "mup")

EXPONENTS = {  # role -> the rate is multiplied by m to this power
    "input": 0,
    "hidden": -1,
    "output": -1,
    "modulation": -1,
    "modulation_bias": 0,
    "gain": 0,
    "bias": 0,
}
GATE_EXPONENT = -1  # additionally, for the columns of a modulation that make gates


def _xavier_input(num_in: int, width: float, base_width: float) -> float:
    """Takes the width out of Xavier's variance, 2 / (inputs + width)."""
    return math.sqrt((num_in + width) / (num_in + base_width))


def _fixed_hidden(num_in: int, width: float, base_width: float) -> float:
    """Scales a variance that does not depend on the width by 1 / width."""
    del num_in
    return math.sqrt(base_width / width)


FIRST_WEIGHTS = {  # of a parameter's row -> factor to the standard draw
    "xavier_input": _xavier_input,
    "fixed_hidden": _fixed_hidden,
}


def rate_factor(
    path: str, shape: Sequence[int], *, model: Model, base_depth: int
) -> np.ndarray:
    """What the learning rate of one parameter is multiplied by.

    Args:
      path: of the parameter: its dict keys, joined by slashes.
      shape: of the parameter.
      model: says what role the parameter has.
      base_depth: depth at which the learning rate was tuned.

    Returns:
      float32: a scalar, or one number per column (last dim) of a modulation.
    """
    growth = model.config.depth / base_depth
    role = model.parameter(path).role
    factor = np.float32(growth ** EXPONENTS[role])
    if role not in ("modulation", "modulation_bias"):
        return factor
    # Vectors of the width, in threes: shift, scale, gate. Where a stream ends, and in
    # the final layer, only the first two exist.
    vector = np.arange(shape[-1]) // model.config.width
    return factor * np.where(vector % 3 == 2, growth**GATE_EXPONENT, 1).astype("f4")


def with_rates(
    inner: optax.GradientTransformation, *, model: Model, base_depth: int
) -> optax.GradientTransformation:
    """Multiplies each update of `inner` by the rate factor of its parameter.

    The state is that of `inner`, so a checkpoint fits with factors and without.

    Args:
      inner: any transformation.
      model: says what role each parameter has.
      base_depth: depth at which the learning rate was tuned.
    """

    def multiply(key_path: Sequence[Any], update: jax.Array) -> jax.Array:
        """One update times its factor."""
        factor = rate_factor(
            parameter_path(key_path), update.shape, model=model, base_depth=base_depth
        )
        return update * factor.reshape((1,) * (update.ndim - 1) + (-1,))

    def update(
        updates: optax.Updates, state: optax.OptState, params: Any = None
    ) -> tuple[optax.Updates, optax.OptState]:
        """The inner updates, each times its factor."""
        updates, state = inner.update(updates, state, params)
        return jax.tree_util.tree_map_with_path(multiply, updates), state

    return optax.GradientTransformation(inner.init, update)


def rescale_init(params: Any, *, model: Model, base_depth: int) -> Any:
    """Gives freshly drawn parameters the scale that their role asks for.

    Args:
      params: as `Model.init` draws them.
      model: says how the draw of each parameter is to be corrected.
      base_depth: depth at which nothing changes.
    """
    width = model.config.width
    base_width = width * base_depth / model.config.depth

    def rescale(key_path: Sequence[Any], param: jax.Array) -> jax.Array:
        """One parameter times its factor."""
        rule = model.parameter(parameter_path(key_path)).first_weights
        if rule is None:
            return param
        factor = FIRST_WEIGHTS[rule](param.shape[0], width, base_width)
        return param * jnp.float32(factor)

    return jax.tree_util.tree_map_with_path(rescale, params)
