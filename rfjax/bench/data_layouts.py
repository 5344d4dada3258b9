# SPDX-License-Identifier: Apache-2.0
"""What the records of the reading benchmark hold, for us and for the peers.

Imports neither JAX nor rfjax.data, so that a peer may fork worker processes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder's share of a record: context [length, context_dim] and pooled.

    Attributes:
      name: what its features begin with.
      length: tokens.
      context_dim: width of the context; 0: none.
      pooled_dim: width of the pooled vector; 0: none.
      beside: whether it shares its tokens with the encoders that do so as well.
    """

    name: str
    length: int
    context_dim: int
    pooled_dim: int
    beside: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """One kind of records: latents as mean and log-variance, and text states.

    Attributes:
      latent_shape: (H, W, C).
      encoders: of the captions; those beside each other come first.
    """

    latent_shape: tuple[int, int, int]
    encoders: tuple[Encoder, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of a record, all bfloat16."""
        shapes = {"latents": self.latent_shape, "log_variance": self.latent_shape}
        for encoder in self.encoders:
            if encoder.context_dim:
                shapes[f"{encoder.name}_context"] = encoder.length, encoder.context_dim
            if encoder.pooled_dim:
                shapes[f"{encoder.name}_pooled"] = (encoder.pooled_dim,)
        return shapes

    @property
    def example_bytes(self) -> int:
        """Of the tensors of a record."""
        return 2 * sum(map(math.prod, self.shapes.values()))

    @property
    def context_shape(self) -> tuple[int, int]:
        """(T, context_dim) of the joined context."""
        places = self.context_places().values()
        return (
            max(tokens.stop for tokens, _ in places),
            max(channels.stop for _, channels in places),
        )

    def context_places(self) -> dict[str, tuple[slice, slice]]:
        """Name of a context -> (tokens, channels) of the joined one that it fills."""
        places, start, channel = {}, 0, 0
        for encoder in self.encoders:
            if not encoder.context_dim:
                continue
            if not encoder.beside:
                start, channel = (
                    max((tokens.stop for tokens, _ in places.values()), default=0),
                    0,
                )
            places[f"{encoder.name}_context"] = (
                slice(start, start + encoder.length),
                slice(channel, channel + encoder.context_dim),
            )
            channel += encoder.context_dim
        return places

    def example(self, index: int) -> dict[str, np.ndarray]:
        """The tensors of a record, normally distributed; the same at any time."""
        numbers, rng = _normal_numbers(), np.random.default_rng(index)
        example = {}
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            start = rng.integers(len(numbers) - size)
            example[name] = numbers[start : start + size].reshape(shape)
        return example


@functools.cache
def _normal_numbers() -> np.ndarray:
    """More of them than a record has; drawing new ones for each would take longest."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(2**22, np.float32).astype(ml_dtypes.bfloat16)


LAYOUTS = {
    # Stable Diffusion 3 at 256 px: context 154 x 4096, pooled 2048.
    "sd3": Layout(
        latent_shape=(32, 32, 16),
        encoders=(
            Encoder("clip_l", 77, 768, 768, beside=True),
            Encoder("clip_g", 77, 1280, 1280, beside=True),
            Encoder("t5", 77, 4096, 0),
        ),
    ),
    # FLUX.1 of MLPerf Training: T5 256 x 4096, pooled 768; 2.16 MB.
    "mlperf_flux": Layout(
        latent_shape=(32, 32, 16),
        encoders=(Encoder("t5", 256, 4096, 0), Encoder("clip_l", 77, 0, 768)),
    ),
}


def endless_order(num_examples: int, *, seed: int = 0) -> itertools.chain:
    """Numbers below `num_examples` in random order, shuffled again in each pass."""
    rng = np.random.default_rng(seed)
    return itertools.chain.from_iterable(
        rng.permutation(num_examples).tolist() for _ in itertools.count()
    )
