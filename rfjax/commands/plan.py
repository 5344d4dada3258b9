# SPDX-License-Identifier: Apache-2.0
"""What a config needs and how fast it is, on TPUs, without having any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from rfjax import whole_files
from rfjax.checksums import digest
from rfjax.commands.flags import FIGURES, JsonFile, Report, RunConfig
from rfjax.commands.job import (
    flops_of_bucket,
    make_init_state,
    make_job,
    make_stream,
    read_manifest,
    with_sharding,
)
from rfjax.config import Config
from rfjax.errors import UserError
from rfjax.models import make_model
from rfjax.parallel.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from rfjax.plan import report as plan_report
from rfjax.plan import search as plan_search
from rfjax.plan.report import Plan
from rfjax.plan.step import plan_step
from rfjax.plan.topology import check_compiler, make_devices, parse_topology
from rfjax.value_types import LargeCount, LocalPath, NaturalInt, Text, checked


@dataclasses.dataclass(frozen=True)
class Search:
    """What `plan` found on several meshes, batches and remat policies.

    Attributes:
      outcomes: one for each that was compiled.
    """

    outcomes: Sequence[plan_search.Outcome]

    def __str__(self) -> str:
        return plan_search.describe(self.outcomes)


@checked
def plan(
    config: RunConfig,
    *,
    topology: Text,
    num_images: LargeCount | None = None,
    json_file: JsonFile = None,
    summary: LocalPath | None = None,
    picture: LocalPath | None = None,
    search: bool = False,
    limit: NaturalInt = 0,
    report: Report = lambda line: None,
) -> Plan | Search:
    """Predicts memory and speed on TPUs from the compiler alone; no TPU is needed.

    Args:
      config: the resolved config.
      topology: chips, as v5p:4x4x4, v5litepod-256 or 2*v5e:16x16.
      num_images: training budget; the config's if absent.
      json_file: file to write all figures to. A search writes its outcomes after each,
        and skips those that the file already holds.
      summary: file to write the headline figures to, as configs/plans keeps them.
      picture: file to draw time by class and memory into, as plan.png.
      search: try meshes, batches and remat policies, minutes each.
      limit: compilations of a search at most; 0: no limit.
      report: receives where the picture is, and the progress of a search.

    Raises:
      UserError: no such topology, a mesh or batch that does not fit it, or a step
        that does not fit the memory of a chip.
      MissingPackageError: the TPU compiler is not installed.

    Example:
      rfjax plan --config=configs/sd3.py:24 --topology=v5e:16x16 --picture=plan.png
    """
    whole_files.check_writable(json_file, field="--json")
    whole_files.check_writable(summary, field="--summary")
    whole_files.check_writable(picture, field="--picture", suffixes=FIGURES)
    if json_file is not None and str(json_file) == str(summary):
        raise UserError(f"--json and --summary must differ, got {summary}; rename one.")
    if search:
        return Search(
            search_plans(
                config,
                topology=topology,
                limit=limit,
                json_file=json_file,
                report=report,
            )
        )
    slices = parse_topology(topology)
    sizes = config.mesh.resolve(slices.num_devices)
    sizes.check_batch(
        config.train.global_batch_size, micro_batches=config.train.micro_batches
    )
    manifest = read_manifest(config)
    mesh = make_mesh(sizes, devices=make_devices(slices))
    stream = make_stream(config)
    job = make_job(config, mesh=mesh, stream=stream, manifest=manifest)
    rate = jax.ShapeDtypeStruct((), np.float32, sharding=replicated(mesh))
    batch = stream.largest_spec
    planned = plan_step(
        job.train_step,
        job.abstract_state,
        with_sharding(batch, batch_sharding(mesh)),
        rate,
        topology=slices,
        mesh_shape=mesh.shape,
        num_params=make_model(config.model).num_params,
        flops_per_sample=flops_of_bucket(config, manifest, batch.latents.shape[1:]),
        global_batch_size=config.train.global_batch_size,
        num_images=num_images
        or config.train.num_steps * config.train.global_batch_size,
    )
    if json_file is not None:
        plan_report.write_json(planned, json_file)
    if summary is not None:
        plan_report.write_json(planned, summary, headline=True)
    if picture is not None:
        plan_report.draw(planned, picture)
        report(f"picture: {picture}")
    return planned


def search_plans(
    config: Config,
    *,
    topology: str,
    limit: int = 0,
    json_file: Path | str | None = None,
    report: Report = lambda line: None,
) -> list[plan_search.Outcome]:
    """Plans a config on several meshes, batches and remat policies.

    Args:
      config: the resolved config; its batch is the middle of those tried.
      topology: as for `plan`.
      limit: compilations at most; 0: no limit.
      json_file: file to write the outcomes to after each; those it holds already from
        an earlier search of the same model and topology are not compiled again.
      report: receives each outcome and the progress.

    Raises:
      UserError: no such topology.
      MissingPackageError: the TPU compiler is not installed.
    """
    slices = parse_topology(topology)
    check_compiler()
    # What the options leave alone; with another model, old outcomes do not count.
    fixed = dataclasses.replace(config.model, remat="none"), config.data
    key = f"{slices} {digest(repr((*fixed, config.train.micro_batches)))}"
    done = plan_search.read_json(json_file, key=key) if json_file is not None else []

    def plan_option(option: plan_search.Option) -> Plan:
        """Plans the config with an option's mesh, remat policy and batch."""
        batch_size = option.per_chip_batch_size * slices.num_devices
        changed = dataclasses.replace(
            config,
            mesh=MeshConfig(**option.mesh),
            model=dataclasses.replace(config.model, remat=option.remat),
            train=dataclasses.replace(config.train, global_batch_size=batch_size),
        )
        return plan(changed, topology=topology)

    def save(outcomes: list[plan_search.Outcome]) -> None:
        """Writes what is known so far."""
        if json_file is not None:
            plan_search.write_json(outcomes, json_file, key=key)

    state = jax.eval_shape(
        make_init_state(config, model=make_model(config.model)), jax.random.key(0)
    )
    per_chip = config.train.global_batch_size // slices.num_devices
    candidates = plan_search.options(
        topology=slices,
        width=config.model.width,
        num_heads=config.model.num_heads,
        state_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        per_chip_batch_size=max(1, per_chip),
    )
    report(f"{len(candidates)} options on {slices}, {len(done)} known already")
    return plan_search.search(
        candidates, plan_option, limit=limit, done=done, report=report, save=save
    )
