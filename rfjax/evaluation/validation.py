# SPDX-License-Identifier: Apache-2.0
"""The validation loss, protocol `val_v1`: one number that can be compared.

Held-out examples; t = k / 8 for k = 0 .. 7; the noise of each pair (example, k) is
fixed forever; everything in float32. The loss is the mean over k = 1 .. 7 of the
mean over samples; k = 0, where the target cannot be known, is reported but not
averaged. The number depends only on the parameters and the examples: not on batch
size, devices, hosts or the step. How many examples there were is measured with it,
because losses over different numbers of them cannot be compared.

Data of several aspect buckets or in several parts also has the loss of each of them,
`loss_HxW` for latents of that size and `loss_NAME` for a part; the mean stays that over
all examples.

Source of the levels: Esser et al. 2024, arXiv:2403.03206, sections 5.3.3 and B.3.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rfjax.data.order import subsets_of
from rfjax.evaluation.base import Subject
from rfjax.flow.formulations import Formulation
from rfjax.flow.objective import loss_at_timesteps
from rfjax.models.base import Model
from rfjax.parallel.mesh import (
    num_batch_shards,
    put_batch,
    reading_share,
    replicated,
)
from rfjax.timestep_levels import NUM_LEVELS
from rfjax.types import Batch
from rfjax.value_types import PositiveInt, check_fields

PROTOCOL = "val_v1"
NOISE_SEED = 0x5D3  # part of the protocol: another seed is another metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The validation loss: when, and on how many examples.

    Attributes:
      every_steps: optimizer steps between validations; the last step always has one.
      num_samples: held-out examples, from the first on; None for all of them.
      batch_size: examples at a time over all devices; no influence on the number.
    """

    every_steps: PositiveInt = 1000
    num_samples: PositiveInt | None = None
    batch_size: PositiveInt = 64

    def __post_init__(self):
        check_fields(self, section="validation")

    def make(self, subject: Subject) -> Validation:
        """The evaluator of the run's held-out examples, checked at once.

        Raises:
          UserError: the validation split is missing or too small.
        """
        # At most all of them, rounded up to what the mesh divides: the number does not
        # depend on it.
        records = subject.data.manifest().splits.get("validation", 1)
        batch_size = min(self.batch_size, self.num_samples or records)
        batch_size += -batch_size % num_batch_shards(subject.mesh)
        index, count = reading_share(subject.mesh)
        batches = functools.partial(
            subject.data.validation_batches,
            batch_size=batch_size,
            num_samples=self.num_samples,
            process_index=index,
            process_count=count,
        )
        batches()  # raises now, not after hours
        return make_validation(
            subject.model,
            formulation=subject.formulation,
            mesh=subject.mesh,
            batches=batches,
            first_batches=functools.partial(batches, only_first=True),
            every_steps=self.every_steps,
            subsets=subsets_of(subject.data.groups("validation")),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
    """The evaluator of one set of parameters; made by `make_validation`.

    Attributes:
      level_losses: jitted (params, batch, valid) -> (losses [B, 8], sample_index [B],
        valid [B]).
      batches: () -> one pass over the held-out samples.
      first_batches: () -> one batch of each size of latents.
      mesh: where batches go.
      every_steps: optimizer steps between validations.
      subsets: name -> the `sample_index` of the examples whose loss is also measured
        by itself.
      name: of the metrics.
    """

    level_losses: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    batches: Callable[[], Iterable[tuple[Batch, np.ndarray]]]
    first_batches: Callable[[], Iterable[tuple[Batch, np.ndarray]]]
    mesh: Mesh
    every_steps: int = 1
    subsets: Mapping[str, Sequence[range]] = dataclasses.field(default_factory=dict)
    name: str = "val"

    def __call__(
        self, params: Mapping, *, check_in: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """The losses of the parameters.

        Args:
          params: of the model.
          check_in: called before each batch; what it raises ends the validation.

        Returns:
          {"loss", "loss_t0", .., "loss_t7", "num_samples"}, and "loss_NAME" for each of
          the subsets that has examples.
        """
        per_sample, numbers = [], []
        for host_batch in self.batches():
            check_in()
            batch, valid = put_batch(host_batch, mesh=self.mesh)
            losses, index, valid = jax.device_get(
                self.level_losses(params, batch, valid)
            )
            per_sample.append(losses[valid])
            numbers.append(index[valid])
        # float64, so that the split into batches leaves no trace in the sum.
        losses = np.concatenate(per_sample)
        level_means = losses.mean(axis=0, dtype=np.float64)
        metrics = {f"loss_t{k}": float(level_means[k]) for k in range(NUM_LEVELS)}
        return {
            "loss": float(level_means[1:].mean()),
            **metrics,
            "num_samples": len(losses),
            **self._subset_losses(losses[:, 1:], np.concatenate(numbers)),
        }

    def _subset_losses(
        self, losses: np.ndarray, numbers: np.ndarray
    ) -> dict[str, float]:
        """The loss of each subset, of [N, 7] losses of examples by these numbers."""
        found = {}
        for name, ranges in self.subsets.items():
            is_in = np.zeros(len(numbers), np.bool_)
            for part in ranges:
                is_in |= (numbers >= part.start) & (numbers < part.stop)
            if is_in.any():
                own = losses[is_in].mean(axis=0, dtype=np.float64)
                found[f"loss_{name}"] = float(own.mean())
        return found

    def compile(self, params: Mapping) -> None:
        """Compiles ahead of the first call, by evaluating a batch of each size."""
        for host_batch in self.first_batches():
            batch, valid = put_batch(host_batch, mesh=self.mesh)
            jax.block_until_ready(self.level_losses(params, batch, valid))


def subset_names(metrics: Mapping[str, Any]) -> list[str]:
    """The buckets and parts whose loss is among the metrics of a validation."""
    levels = {f"t{level}" for level in range(NUM_LEVELS)}
    names = [
        key.removeprefix("val/loss_") for key in metrics if key.startswith("val/loss_")
    ]
    return [name for name in names if name not in levels]


def make_validation(
    model: Model,
    *,
    formulation: Formulation,
    mesh: Mesh,
    batches: Callable[[], Iterable[tuple[Batch, np.ndarray]]],
    first_batches: Callable[[], Iterable[tuple[Batch, np.ndarray]]] | None = None,
    every_steps: int = 1,
    subsets: Mapping[str, Sequence[range]] | None = None,
) -> Validation:
    """Builds the evaluator of one set of parameters.

    Args:
      model: the model; it is run in float32 regardless of its compute dtype.
      formulation: what it was trained as.
      mesh: its batch axes must divide the batches.
      batches: () -> (host-local Batch, valid [B / hosts] bool) pairs, one pass over the
        held-out samples; `sample_index` is the record's place in the split.
      first_batches: () -> those to compile for; the first of `batches` when None.
      every_steps: optimizer steps between validations.
      subsets: name -> the `sample_index` of the examples whose loss is also measured
        by itself.
    """
    float32_model = model.in_float32()

    # Replicated, so that every host can read all losses.
    @jax.jit(out_shardings=replicated(mesh))
    def level_losses(
        params: Mapping, batch: Batch, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Losses [B, 8] in float32, which examples they are of, and which count."""
        # A TPU would multiply float32 in bfloat16 passes by default.
        with jax.default_matmul_precision("float32"):
            losses = losses_at_levels(float32_model, params, batch, formulation)
        return losses, batch.sample_index, valid

    return Validation(
        level_losses=level_losses,
        batches=batches,
        first_batches=first_batches or (lambda: itertools.islice(batches(), 1)),
        mesh=mesh,
        every_steps=every_steps,
        subsets=subsets or {},
    )


def losses_at_levels(
    model: Model, params: Mapping, batch: Batch, formulation: Formulation
) -> jax.Array:
    """Loss of each example at each level: [B, 8] float32."""

    def loss_at_level(level: jax.Array) -> jax.Array:
        """Loss of each example at t = level / 8."""
        timesteps = jnp.full(batch.latents.shape[:1], level / NUM_LEVELS, jnp.float32)
        return loss_at_timesteps(
            model.bind(params),
            batch,
            timesteps=timesteps,
            noise=protocol_noise(batch, level=level),
            formulation=formulation,
        )

    # One level after the other: the memory of one forward pass.
    return jax.lax.map(loss_at_level, jnp.arange(NUM_LEVELS)).T


def protocol_noise(batch: Batch, *, level: jax.Array) -> jax.Array:
    """The noise that belongs to (sample, level): [B, H, W, C] float32."""
    level_key = jax.random.fold_in(jax.random.key(NOISE_SEED), level)

    def sample_noise(sample_index: jax.Array) -> jax.Array:
        """Noise of one example."""
        key = jax.random.fold_in(level_key, sample_index)
        return jax.random.normal(key, batch.latents.shape[1:], jnp.float32)

    return jax.vmap(sample_noise)(batch.sample_index)
