# SPDX-License-Identifier: Apache-2.0
"""How long a train step takes on the available devices, compared with a peer's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated

import jax

from rfjax import whole_files
from rfjax.bench.diffusers_peer import make_step
from rfjax.bench.step import StepReport, time_in_turns
from rfjax.commands.flags import JsonFile, Report, RunConfig
from rfjax.commands.job import flops_of_bucket, make_job_here
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.flow import formulations
from rfjax.models import make_model
from rfjax.parallel.compiler import compiler_options
from rfjax.parallel.mesh import put_batch
from rfjax.parallel.sharding import MeshLayout
from rfjax.plan.topology import CHIPS, chip_name_of
from rfjax.train.step import make_mean_loss
from rfjax.types import Batch
from rfjax.value_types import OneOf, PositiveInt, checked

PEERS = ("diffusers",)


@checked
def bench_step(
    config: RunConfig,
    *,
    rounds: PositiveInt = 5,
    peer: Annotated[str, OneOf(PEERS)] | None = None,
    json_file: JsonFile = None,
    report: Report = lambda line: None,
) -> StepReport:
    """Times a train step on the available devices, compared with a peer's.

    Args:
      config: the resolved config.
      rounds: how often everything is timed, in turns.
      peer: diffusers, to time the same step in PyTorch, on the CPU in float32.
      json_file: file to write the figures to.
      report: receives a line for each round.

    Raises:
      UserError: a wrong setting, or a peer that cannot do the same work.
      MissingPackageError: the peer is not installed.

    Example:
      rfjax bench step --config=configs/bench.py --peer=diffusers
    """
    whole_files.check_writable(json_file, field="--json")
    job, manifest = make_job_here(config)
    mesh = job.mesh
    host_batch = next(job.stream)
    actions = {}
    if peer is not None:
        actions[peer] = _peer_step(config, host_batch, peer=peer)
    batch = put_batch(host_batch, mesh=mesh)
    state = job.init_state()
    mean_loss = make_mean_loss(
        make_model(config.model, layout=MeshLayout(mesh)),
        formulation=formulations.parse(config.objective),
        shift=config.shift,
        seed=config.seed,
    )
    jit = functools.partial(jax.jit, compiler_options=compiler_options(mesh))
    forward, backward = jit(mean_loss), jit(jax.value_and_grad(mean_loss))

    def train_step() -> None:
        """One step; the new state takes the place of the old, which is donated."""
        nonlocal state  # the old one is donated
        state, metrics = job.train_step(state, batch, config.optimizer.learning_rate)
        jax.block_until_ready((state, metrics))

    actions |= {
        "forward": lambda: jax.block_until_ready(
            forward(state.params, batch, state.step)
        ),
        "forward and backward": lambda: jax.block_until_ready(
            backward(state.params, batch, state.step)
        ),
        "step": train_step,
    }
    seconds = time_in_turns(actions, rounds=rounds, repeats=2, report=report)
    device = jax.devices()[0]
    chip = CHIPS.get(chip_name_of(device.device_kind))
    measured = StepReport(
        device=device.device_kind,
        num_devices=mesh.size,
        global_batch_size=config.train.global_batch_size,
        num_params=make_model(config.model).num_params,
        flops_per_sample=flops_of_bucket(config, manifest, batch.latents.shape[1:]),
        peak_flops=chip.peak_flops if chip else None,
        peer_name=peer,
        peer=tuple(seconds.pop(peer, ())),
        parts={name: tuple(times) for name, times in seconds.items()},
    )
    if json_file is not None:
        whole_files.write_json(json_file, measured.to_json())
    return measured


def _peer_step(config: Config, batch: Batch, *, peer: str) -> Callable[[], None]:
    """The peer's step on the same examples."""
    rf = formulations.parse("rf/lognorm(0.00,1.00)")
    if (
        jax.default_backend() != "cpu"
        or config.model.compute_dtype != "float32"
        or config.train.micro_batches != 1
        or formulations.parse(config.objective) != rf
    ):
        raise UserError(
            "--peer=diffusers does the same work on a CPU only, with "
            "model.compute_dtype=float32, train.micro_batches=1 and objective="
            "rf/lognorm(0.00,1.00); set them, or leave out --peer."
        )
    adam = config.optimizer
    return make_step(
        make_model(config.model).torch.diffusers_config(config.model),
        batch,
        optimizer={
            "lr": adam.learning_rate,
            "betas": (adam.b1, adam.b2),
            "eps": adam.eps,
            "weight_decay": adam.weight_decay,
        },
        clip_norm=adam.clip_norm,
        ema_decay=config.ema.decay,
        ema_every_steps=config.ema.every_steps,
        num_params=make_model(config.model).num_params,
    )
