# SPDX-License-Identifier: Apache-2.0
"""The small layers of a transformer: linear, norms, modulation, MLP.

Activations carry the compute dtype: a layer casts its float32 master weights to
the dtype of what flows in. Norms are computed in float32.

Dims: B batch, S tokens, D width, N heads, K head dim, F MLP width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer

from rfjax import cpu

NORM_EPSILON = 1e-6  # SD3's value for every LayerNorm and RMSNorm

xavier_uniform = nnx.initializers.xavier_uniform()
zeros = nnx.initializers.zeros_init()


class Linear(nnx.Module):
    """inputs @ kernel + bias, with float32 kernel [in, out] and bias [out]."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        rngs: nnx.Rngs,
        kernel_init: Initializer = xavier_uniform,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (num_in, num_out)))
        self.bias = nnx.Param(jnp.zeros(num_out))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out] in the dtype of the inputs."""
        kernel = self.kernel[...].astype(inputs.dtype)
        bias = self.bias[...].astype(inputs.dtype)
        return checkpoint_name(cpu.multiply_rows(inputs, kernel, bias), "linear")


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last dim (per head, for queries and keys)."""

    def __init__(self, num_features: int):
        self.scale = nnx.Param(jnp.ones(num_features))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises [B, S, N, K] over K in float32; keeps the dtype."""
        inputs_f32 = inputs.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(inputs_f32), axis=-1, keepdims=True)
        normed = inputs_f32 * jax.lax.rsqrt(mean_square + NORM_EPSILON)
        return (normed * self.scale[...][None, None, None, :]).astype(inputs.dtype)


@jax.custom_jvp
def gelu(inputs: jax.Array) -> jax.Array:
    """The tanh approximation of GELU, computed in float32; keeps the dtype.

    x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), Hendrycks & Gimpel 2016,
    arXiv:1606.08415. Its derivative is written out: differentiating the formula gives
    twice the operations, and arrays between them.
    """
    x = inputs.astype(jnp.float32)
    half = 0.5 * x
    return (half + half * _gelu_tanh(x)).astype(inputs.dtype)


@gelu.defjvp
def _gelu_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (inputs,), (tangent,) = primals, tangents
    x = inputs.astype(jnp.float32)
    tanh = _gelu_tanh(x)
    half = 0.5 * x
    inner = _GELU_SLOPE + 3 * _GELU_SLOPE * _GELU_CUBE * (x * x)
    slope = 0.5 + 0.5 * tanh + half * (1.0 - tanh * tanh) * inner
    outputs = (half + half * tanh).astype(inputs.dtype)
    return outputs, tangent * slope.astype(tangent.dtype)


_GELU_SLOPE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jnp.tanh(x * (_GELU_SLOPE + _GELU_SLOPE * _GELU_CUBE * (x * x)))


class Modulation(NamedTuple):
    """One (shift, scale, gate) of adaLN, each [B, 1, D]."""

    shift: jax.Array
    scale: jax.Array
    gate: jax.Array


@jax.custom_jvp
def layer_norm(tokens: jax.Array) -> jax.Array:
    """LayerNorm without learned scale or bias over [B, S, D]; returns float32.

    Its derivative is written out, with the normalised tokens y and their 1 / sigma:
    dy = (dx - mean(dx) - y mean(y dx)) / sigma.
    """
    normed, _ = _normalise(tokens)
    return normed


@layer_norm.defjvp
def _layer_norm_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    normed, inverse_sigma = _normalise(*primals)
    tangent = tangents[0].astype(jnp.float32)
    mean = jnp.mean(tangent, axis=-1, keepdims=True)
    along = jnp.mean(tangent * normed, axis=-1, keepdims=True)
    return normed, (tangent - mean - normed * along) * inverse_sigma


def _normalise(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalised tokens and 1 / sigma [B, S, 1], both float32."""
    tokens_f32 = tokens.astype(jnp.float32)
    mean = jnp.mean(tokens_f32, axis=-1, keepdims=True)
    centred = tokens_f32 - mean
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    inverse_sigma = jax.lax.rsqrt(variance + NORM_EPSILON)
    return centred * inverse_sigma, inverse_sigma


def modulated_norm(
    tokens: jax.Array, *, shift: jax.Array, scale: jax.Array
) -> jax.Array:
    """LayerNorm(tokens) * (1 + scale) + shift, in the dtype of the tokens.

    Args:
      tokens: [B, S, D].
      shift: [B, 1, D].
      scale: [B, 1, D]; zero leaves the normalised tokens unscaled.
    """
    modulated = layer_norm(tokens) * (1.0 + scale.astype(jnp.float32))
    return (modulated + shift.astype(jnp.float32)).astype(tokens.dtype)


class AdaLN(Linear):
    """SiLU, then one linear layer from the conditioning vector to modulations.

    Zero-initialised, so at the start every gate is closed and each block is the
    identity (adaLN-zero of Peebles & Xie 2023, arXiv:2212.09748).
    """

    def __init__(self, width: int, num_vectors: int, *, rngs: nnx.Rngs):
        super().__init__(width, num_vectors * width, rngs=rngs, kernel_init=zeros)
        self.num_vectors = num_vectors

    def __call__(self, conditioning_BD: jax.Array) -> list[jax.Array]:
        """Returns `num_vectors` arrays [B, 1, D]."""
        vectors = super().__call__(jax.nn.silu(conditioning_BD))
        return jnp.split(vectors[:, None, :], self.num_vectors, axis=-1)
