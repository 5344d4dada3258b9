# SPDX-License-Identifier: Apache-2.0
"""The commands as functions: what a notebook calls, and `rfjax NAME` after its flags.

Here the parts are wired: config -> data -> objective -> model -> step -> checkpoint ->
evaluation. Everything is checked before anything is compiled or written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from rfjax import __version__, checkpoint, data, run_folder, schema, whole_files
from rfjax import config as configs
from rfjax.bench.data import ReadingReport, measure_reading, write_random_dataset
from rfjax.bench.diffusers_peer import make_step
from rfjax.bench.step import StepReport, time_in_turns
from rfjax.config import Config
from rfjax.data import shards, sheet
from rfjax.data.encode import encode_dataset, make_encode_config
from rfjax.data.shards import Manifest
from rfjax.evaluation import captions, validation
from rfjax.evaluation.curves import draw_curves
from rfjax.evaluation.sample import SampleConfig, sample_latents, sample_noise
from rfjax.export.load import merge_model_fields, open_weights
from rfjax.export.save import diffusers_config, new_folder
from rfjax.flow import formulations
from rfjax.models import flops
from rfjax.models.mmdit import Network
from rfjax.parallel import layout as layouts
from rfjax.parallel import mesh as meshes
from rfjax.parallel import processes
from rfjax.parallel.compiler import compiler_options
from rfjax.parallel.sharding import make_constrain, state_shardings
from rfjax.plan import report as plan_report
from rfjax.plan import search as plan_search
from rfjax.plan.report import Plan
from rfjax.plan.step import plan_step
from rfjax.plan.topology import (
    CHIPS,
    check_compiler,
    chip_name_of,
    make_devices,
    parse_topology,
)
from rfjax.scaling import budget
from rfjax.scaling.budget import CellCost, ForecastConfig
from rfjax.scaling.coordinates import check_coordinates, fit_slopes
from rfjax.scaling.grid import Cell, GridConfig, make_cells
from rfjax.scaling.sweep import run_locally
from rfjax.train import loop
from rfjax.train.optimizer import learning_rate, make_init, make_optimizer
from rfjax.train.parameterisation import PARAMETERISATIONS
from rfjax.train.state import TrainState, init_state
from rfjax.train.step import make_mean_loss, make_train_step
from rfjax.types import Batch, Conditioning

Report = Callable[[str], None]  # where a command says what it does


def encode(
    fields: Mapping[str, Any], *, out: Path | str, progress: bool = True
) -> Manifest:
    """Encodes pictures and captions into a data set folder.

    Args:
      fields: what configs/data/NAME.py returns, as a dict.
      out: folder to write; must be absent or empty, and appears only when complete.
      progress: show a progress bar.
    """
    config = make_encode_config(fields)
    with tqdm(
        desc=f"encode {config.name}", unit="example", disable=not progress
    ) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return encode_dataset(config, out=out, progress=update)


def train(
    config: Config,
    *,
    workdir: Path | str,
    report: Report,
    branch_from: Path | str | None = None,
) -> bool:
    """Trains, or goes on where an earlier call was stopped or killed.

    Args:
      config: the resolved config.
      workdir: run folder; made if missing.
      report: receives the parameter table and a line for each event.
      branch_from: run folder of a run at constant rate with otherwise the same config.
        A fresh run starts from its newest checkpoint before the own cooldown, and is
        to the bit what it would have been from scratch.

    Returns:
      Whether the last step is done; False after a signal to stop.

    Raises:
      ValueError: config, data, mesh and folder do not fit together.
      FileNotFoundError: the data is missing.
    """
    workdir = Path(workdir)
    mesh = make_mesh_for(config)
    manifest = read_manifest(config)
    stream = make_stream(config, mesh=mesh)
    job = make_job(config, mesh=mesh, stream=stream, manifest=manifest)
    if branch_from is not None:
        _check_branch(config, source=Path(branch_from))
    with contextlib.ExitStack() as stack:

        def claim_folder() -> None:
            stack.enter_context(run_folder.exclusive(workdir))
            has_run = (workdir / run_folder.CONFIG_FILE).is_file()
            run_folder.claim(
                workdir,
                configs.to_dict(config),
                started_with=configs.to_dict(configs.load(workdir))
                if has_run
                else None,
            )
            describe_run(workdir, config, manifest)
            if branch_from is not None:
                _branch(workdir, config, source=Path(branch_from))

        processes.on_first(claim_folder)
        report(parameter_overview.get_parameter_overview(
            job.abstract_state.params, include_stats=False
        ))  # fmt: skip
        steps = checkpoint.finished_steps(workdir)
        if steps:
            report(f"going on at step {steps[-1]} of {config.train.num_steps}")
        state = loop.run(job, workdir=workdir)
    step, finished = int(state.step), int(state.step) == config.train.num_steps
    if finished:
        report(f"finished {step} steps in {workdir}")
    else:
        report(f"stopped and saved at step {step}; run the same command to go on")
    return finished


def _check_branch(config: Config, *, source: Path) -> None:
    """Refuses to branch from a run that is not the same up to the cooldown."""
    trunk = configs.load(source)
    changed = run_folder.differences(
        configs.to_dict(trunk),
        configs.to_dict(config),
        may_change=(*run_folder.MAY_CHANGE, "train.num_steps", "optimizer.cooldown"),
    )
    if trunk.optimizer.cooldown_steps:
        changed.append("optimizer.cooldown_steps: not 0 there")
    if changed:
        raise ValueError(
            f"a run can only branch from a constant-rate run of the same config, and "
            f"{source} has another ({'; '.join(changed)}); train from scratch, or "
            "branch from another run."
        )


def _branch(workdir: Path, config: Config, *, source: Path) -> None:
    """Lets a run without checkpoints start from those of a run at constant rate."""
    if checkpoint.finished_steps(workdir):
        return
    fork_step = config.train.num_steps - config.optimizer.cooldown_steps
    usable = [s for s in checkpoint.finished_steps(source) if s <= fork_step]
    if not usable:
        return
    run_folder.update_run(workdir, trunk=source.resolve().name)
    # Before the checkpoint: killed in between, the next call does both again.
    run_folder.inherit_metrics(workdir, source=source, last_step=usable[-1])
    checkpoint.inherit(workdir, source=source, step=usable[-1])


def import_run(
    source: Path | str,
    *,
    fields: Mapping[str, Any],
    workdir: Path | str,
    format: str = "diffusers",
) -> Config:
    """Makes a run folder of PyTorch weights, to be trained on, evaluated and sampled.

    The run stands at step 0 with a fresh optimizer; the weights are its parameters and
    their moving average alike.

    Args:
      source: file or folder of weights, as `export.load.open_weights` takes it.
      fields: of a run config; what its model section leaves out the weights decide.
      workdir: run folder to make; must be absent or empty, and appears only when
        complete.
      format: "diffusers" or "sd3".

    Returns:
      The resolved config of the run.

    Raises:
      ValueError: weights, config and data do not fit together.
      FileNotFoundError: the weights or the data are missing.
    """
    workdir = Path(workdir)
    weights = open_weights(source, format=format)
    model_fields = merge_model_fields(
        weights,
        fields.get("model", {}),
        position_file=workdir / run_folder.POSITION_FILE,
    )
    config = configs.from_config_dict({**fields, "model": model_fields})
    mesh = make_mesh_for(config)
    manifest = read_manifest(config)
    with new_folder(workdir.absolute(), field="workdir") as folder:
        run_folder.claim(folder, configs.to_dict(config))
        describe_run(folder, config, manifest)
        run_folder.update_run(folder, imported_from=str(source), status="imported")
        if weights.positions is not None:
            np.save(folder / run_folder.POSITION_FILE, weights.positions)
        state = _imported_state(config, weights.read_params(), mesh=mesh)
        checkpoints = checkpoint.Checkpoints(folder, config=config.checkpoint)
        checkpoints.save(0, state, data_position=make_stream(config).get_state())
        checkpoints.close()
    return config


def _imported_state(config: Config, params: Any, *, mesh: Mesh) -> TrainState:
    """A fresh state around given parameters, laid out as in training."""
    init = functools.partial(
        init_state,
        init_params=lambda params: params,
        optimizer=make_optimizer(config.optimizer, depth=config.model.depth),
    )
    shardings = state_shardings(jax.eval_shape(init, params), mesh=mesh)
    params = jax.device_put(params, shardings.params)
    return jax.jit(init, out_shardings=shardings)(params)


def evaluate(
    workdir: Path | str, *, step: int | None = None, num_samples: int | None = None
) -> dict[str, Any]:
    """Validation loss (`val_v1`) of a checkpoint, EMA and raw weights.

    Args:
      workdir: run folder.
      step: which checkpoint; the newest by default.
      num_samples: held-out examples; by default as many as the config says.

    Returns:
      {"protocol", "step", "val/loss", "val/loss_t0", .., "val_ema/loss", ..}.
    """
    config = configs.load(workdir)
    step = checkpoint.choose_step(workdir, step)
    if num_samples is not None:
        config = dataclasses.replace(
            config,
            validation=dataclasses.replace(config.validation, num_samples=num_samples),
        )
    # Any devices will do: the number does not depend on them.
    mesh = meshes.make_mesh(meshes.MeshConfig())
    network = Network(config.model)
    validate = make_validation(config, network=network, mesh=mesh)
    metrics: dict[str, Any] = {"protocol": validation.PROTOCOL, "step": step}
    for prefix, weights in (("val", "raw"), ("val_ema", "ema")):
        params = checkpoint.restore_params(
            workdir,
            with_sharding(network.abstract_params(), meshes.replicated(mesh)),
            weights=weights,
            step=step,
        )
        metrics |= {f"{prefix}/{k}": v for k, v in validate(params).items()}
    return metrics


def draw_run(workdir: Path | str, evaluation: Mapping[str, Any]) -> Path:
    """Draws the run's losses and one evaluation into its `figures/loss.png`."""
    config = configs.load(workdir)
    out = Path(workdir) / "figures" / "loss.png"
    draw_curves(
        run_folder.read_metrics(Path(workdir)),
        evaluation,
        title=f"{Path(workdir).resolve().name}: depth {config.model.depth}, "
        f"{config.objective}, step {evaluation['step']:,}",
        out=out,
    )
    return out


def sample(
    workdir: Path | str,
    prompts: Sequence[str],
    *,
    step: int | None = None,
    weights: str = "ema",
    seed: int = 0,
    **settings: Any,
) -> np.ndarray:
    """Pictures of the prompts, drawn by a trained run.

    Args:
      workdir: run folder; its data set gives the text encoder and the codec.
      prompts: one caption a picture.
      step: which checkpoint; the newest by default.
      weights: "ema" or "raw".
      seed: of the noise.
      **settings: fields of `SampleConfig` that differ from the run's; None is ignored.

    Returns:
      [B, height, width, 3] uint8.

    Raises:
      ImportError: if the text encoder's packages are not installed.
      ValueError: if a prompt is too long, or the data set has no pictures.
    """
    config = configs.load(workdir)
    return _draw(
        workdir,
        captions.encode_prompts(_picture_data(config), prompts),
        step=step,
        weights=weights,
        seed=seed,
        settings=settings,
    )


def sample_sheet(
    workdir: Path | str,
    *,
    out: Path | str | None = None,
    step: int | None = None,
    weights: str = "ema",
    seed: int = 0,
    num_seen: int = 24,
    num_held_out: int = 16,
    **settings: Any,
) -> Path:
    """Draws captions the run was trained on and captions it never saw, on one sheet.

    Needs no text encoder: the states stored with the data set are used.

    Args:
      workdir: run folder.
      out: picture file; `samples/STEP.png` in the run folder by default.
      step: which checkpoint; the newest by default.
      weights: "ema" or "raw".
      seed: of the noise.
      num_seen: pictures of training captions.
      num_held_out: pictures of validation captions.
      **settings: fields of `SampleConfig` that differ from the run's; None is ignored.

    Returns:
      The path of the sheet.
    """
    config = configs.load(workdir)
    data_config = _picture_data(config)
    step = checkpoint.choose_step(workdir, step)
    parts = [
        ("captions seen in training", "train", num_seen),
        ("captions held out", "validation", num_held_out),
    ]
    texts = [
        captions.stored_captions(data_config, split, count=count)
        for _, split, count in parts
    ]
    images = _draw(
        workdir,
        jax.tree.map(lambda *rows: np.concatenate(rows), *(text for _, text in texts)),
        step=step,
        weights=weights,
        seed=seed,
        settings=settings,
    )
    sections = []
    for (title, _, _), (names, _) in zip(parts, texts, strict=True):
        sections.append(sheet.Section(title, images[: len(names)], names))
        images = images[len(names) :]
    manifest = data.read_manifest(data_config)
    chosen = _sample_config(config, settings)
    picture = sheet.draw_sheet(
        sections,
        title=f"{manifest.name}, depth {config.model.depth}, step {step:,}: "
        f"{chosen.num_steps} {chosen.solver} steps, guidance {chosen.guidance_scale:g}",
        footer=manifest.licence,
    )
    out = Path(out or Path(workdir) / "samples" / f"{step}.png")
    sheet.save_picture(picture, out)
    return out


def _draw(
    workdir: Path | str,
    conditioning: Conditioning,
    *,
    step: int | None,
    weights: str,
    seed: int,
    settings: Mapping[str, Any],
) -> np.ndarray:
    """Samples with a checkpoint and decodes: [B, height, width, 3] uint8."""
    config = configs.load(workdir)
    network = Network(config.model)
    codec = shards.read_codec(config.data.path)
    params = checkpoint.restore_params(
        workdir,
        checkpoint.abstract_on_device(network.abstract_params()),
        weights=weights,
        step=step,
    )
    solution = sample_latents(
        network,
        params,
        sample_noise(
            seed,
            num_samples=len(conditioning.pooled),
            latent_shape=data.read_manifest(config.data).latent_shape,
        ),
        conditioning,
        unconditional=captions.empty_caption(config.data),
        formulation=formulations.parse(config.objective),
        config=_sample_config(config, settings),
    )
    return codec.decode(np.asarray(solution.latents))


def _sample_config(config: Config, settings: Mapping[str, Any]) -> SampleConfig:
    given = {name: value for name, value in settings.items() if value is not None}
    return dataclasses.replace(config.sample, **given)


def _picture_data(config: Config) -> data.DataConfig:
    """The run's data section, if there are pictures behind its latents."""
    if not isinstance(config.data, data.DataConfig):
        raise ValueError(
            "data.kind must be 'shards' to draw pictures, got a run on synthetic data; "
            "train on an encoded data set such as configs/emoji.py."
        )
    return config.data


def sweep(
    fields: Mapping[str, Any],
    *,
    workdir: Path | str,
    dry_run: bool = False,
    report: Report,
) -> list[str]:
    """Trains every cell of a depth study, one after the other; goes on if killed.

    Args:
      fields: {"base": fields of a run config, "grid": fields of `GridConfig`,
        "forecast": fields of `ForecastConfig`, may be left out}.
      workdir: sweep folder; holds one run folder a cell and `runs.csv`.
      dry_run: report the table of cells with their cost and stop.
      report: receives the table and a line for each event.

    Returns:
      Names of the cells that failed.

    Raises:
      ValueError: if the grid or any cell's config is wrong, or by the pilot's law an
        optimum would lie on the edge of the grid; nothing was trained then.
    """
    for section in ("base", "grid"):
        if section not in fields:
            raise ValueError(f"a sweep config must have the section {section}; add it.")
    workdir = Path(workdir)
    grid = schema.build(GridConfig, fields["grid"], prefix="grid.")
    expected = schema.build(
        ForecastConfig, fields.get("forecast", {}), prefix="forecast."
    )
    cells = make_cells(fields["base"], grid, flops_per_sample=_flops_per_sample)
    resolved = {cell.name: configs.from_config_dict(cell.fields) for cell in cells}
    for config in resolved.values():
        read_manifest(config)
        make_mesh_for(config)
    costs = [_cost_of(cell, resolved[cell.name]) for cell in cells]
    pilot = None
    if expected.pilot is not None:
        pilot = budget.read_pilot(expected.pilot)
        cost_per_sample = {cost.depth: cost.flops / cost.samples for cost in costs}
        budget.check_edges(
            costs,
            pilot=pilot,
            samples_for=lambda depth, flops: flops / cost_per_sample[depth],
            budgets=grid.flop_budgets,
        )
    speeds = budget.measured_speeds(workdir)
    seconds = {
        cost.name: budget.predicted_seconds(
            cost, speeds=speeds, flops_per_second=expected.flops_per_second
        )
        for cost in costs
    }
    report(budget.describe(costs, seconds=seconds, forecast=expected, pilot=pilot))
    if dry_run:
        return []

    def train_cell(cell: Cell, folder: Path) -> bool:
        return train(
            resolved[cell.name],
            workdir=folder,
            branch_from=workdir / cell.trunk if cell.trunk else None,
            report=lambda line: None,
        )

    return run_locally(
        cells,
        workdir=workdir,
        train_cell=train_cell,
        flops_of_cell={cost.name: cost.new_flops for cost in costs},
        report=report,
    )


def _flops_per_sample(fields: Mapping[str, Any]) -> float:
    """Training FLOPs of one sample of a run config."""
    config = configs.from_config_dict(fields)
    manifest = read_manifest(config)
    return flops.train_flops_per_sample(
        config.model,
        latent_shape=manifest.latent_shape,
        context_length=manifest.context_shape[0],
    )


def _cost_of(cell: Cell, config: Config) -> CellCost:
    """What a cell of a sweep is and adds."""
    per_sample = _flops_per_sample(cell.fields)
    batch_size = config.train.global_batch_size
    samples = cell.num_steps * batch_size
    shared = cell.fork_step * batch_size if cell.trunk else 0
    return CellCost(
        name=cell.name,
        depth=config.model.depth,
        sizes={
            "params": flops.num_params(config.model),
            "params_without_adaln": flops.num_params(config.model, adaln=False),
            "flops": per_sample,
        },
        samples=samples,
        flops=samples * per_sample,
        new_flops=(samples - shared) * per_sample,
        is_point=not cell.is_trunk,
    )


def layout(
    config: Config,
    *,
    num_devices: int | None = None,
    topology: str | None = None,
    json: Path | str | None = None,
    picture: Path | str | None = None,
) -> layouts.StateLayout:
    """Who holds what of a config's train state; no device is needed.

    Args:
      config: the resolved config.
      num_devices: of the mesh; or give the topology. By default those that are there.
      topology: chips, as v5p:4x4x4, v5litepod-256 or 2*v5e:16x16.
      json: file to write the figures to.
      picture: file to draw the bytes of each parameter into.

    Raises:
      ValueError: the mesh fits neither the devices nor the model.
    """
    if num_devices is not None and topology is not None:
        raise ValueError("give either --devices or --topology, not both.")
    if num_devices is not None and num_devices < 1:
        raise ValueError(f"--devices must be at least 1, got {num_devices}.")
    if topology is not None:
        chips = parse_topology(topology)
        num_devices = chips.num_chips
        meshes.check_slices(config.mesh.slice, chips.num_slices)
    sizes = config.mesh.resolve(num_devices or jax.device_count())
    network = Network(config.model)
    described = layouts.lay_out(
        network.abstract_params(),
        jax.eval_shape(
            functools.partial(
                init_state,
                init_params=network.init,
                optimizer=make_optimizer(config.optimizer, depth=config.model.depth),
            ),
            jax.random.key(config.seed),
        ),
        mesh=sizes,
    )
    if json is not None:
        layouts.write_json(described, json)
    if picture is not None:
        layouts.draw(described, picture)
    return described


def plan(
    config: Config,
    *,
    topology: str,
    num_images: int | None = None,
    json: Path | str | None = None,
    summary: Path | str | None = None,
    picture: Path | str | None = None,
) -> Plan:
    """What the TPU compiler says about a config; no TPU is needed.

    Args:
      config: the resolved config.
      topology: chips, as v5p:4x4x4, v5litepod-256 or 2*v5e:16x16.
      num_images: training budget; by default as many as the config trains on.
      json: file to write all figures to.
      summary: file to write the headline figures to, as configs/plans keeps them.
      picture: file to draw time by class and memory into.

    Raises:
      ValueError: no such topology, a mesh or batch that does not fit it, or a step
        that does not fit the memory of a chip.
      ImportError: the TPU compiler is not installed.
    """
    slices = parse_topology(topology)
    sizes = config.mesh.resolve(slices.num_chips)
    sizes.check_batch(
        config.train.global_batch_size, micro_batches=config.train.micro_batches
    )
    manifest = read_manifest(config)
    mesh = meshes.make_mesh(sizes, devices=make_devices(slices))
    stream = make_stream(config)
    job = make_job(config, mesh=mesh, stream=stream, manifest=manifest)
    rate = jax.ShapeDtypeStruct((), np.float32, sharding=meshes.replicated(mesh))
    planned = plan_step(
        job.train_step,
        job.abstract_state,
        with_sharding(stream.spec, meshes.batch_sharding(mesh)),
        rate,
        topology=slices,
        mesh_shape=mesh.shape,
        num_params=flops.num_params(config.model),
        flops_per_sample=job.flops_per_sample,
        global_batch_size=config.train.global_batch_size,
        num_images=num_images
        or config.train.num_steps * config.train.global_batch_size,
    )
    if json is not None:
        plan_report.write_json(planned, json)
    if summary is not None:
        plan_report.write_json(planned, summary, headline=True)
    if picture is not None:
        plan_report.draw(planned, picture)
    return planned


def search_plans(
    config: Config,
    *,
    topology: str,
    limit: int = 0,
    json: Path | str | None = None,
    report: Callable[[str], None] = print,
) -> list[plan_search.Outcome]:
    """Plans a config on several meshes, batches and remat policies.

    Args:
      config: the resolved config; its batch is the middle of those tried.
      topology: as for `plan`.
      limit: compilations at most; 0: no limit.
      json: file to write the outcomes to after each; those it holds already from an
        earlier search of the same model and topology are not compiled again.
      report: told each outcome and the progress.

    Raises:
      ValueError: no such topology.
      ImportError: the TPU compiler is not installed.
    """
    slices = parse_topology(topology)
    check_compiler()
    # What the options leave alone; with another model, old outcomes do not count.
    fixed = dataclasses.replace(config.model, remat="none"), config.data
    key = f"{slices} {_digest(repr((*fixed, config.train.micro_batches)))}"
    done = plan_search.read_json(json, key=key) if json is not None else []

    def plan_option(option: plan_search.Option) -> Plan:
        batch_size = option.per_chip_batch_size * slices.num_chips
        changed = dataclasses.replace(
            config,
            mesh=meshes.MeshConfig(**option.mesh),
            model=dataclasses.replace(config.model, remat=option.remat),
            train=dataclasses.replace(config.train, global_batch_size=batch_size),
        )
        return plan(changed, topology=topology)

    def save(outcomes: list[plan_search.Outcome]) -> None:
        if json is not None:
            plan_search.write_json(outcomes, json, key=key)

    per_chip = config.train.global_batch_size // slices.num_chips
    candidates = plan_search.options(
        topology=slices,
        width=config.model.width,
        num_heads=config.model.depth,
        num_params=flops.num_params(config.model),
        per_chip_batch_size=max(1, per_chip),
    )
    report(f"{len(candidates)} options on {slices}, {len(done)} known already")
    return plan_search.search(
        candidates, plan_option, limit=limit, done=done, report=report, save=save
    )


def coordinates(
    config: Config,
    *,
    depths: Sequence[int],
    num_steps: int,
    parameterisation: str,
    out: Path | str,
) -> dict[str, dict[str, float]]:
    """Checks whether training steps move activations alike at every depth.

    Writes `coordinates.json` and `coordinates.png`.

    Args:
      config: the resolved config; its depth is replaced, its peak rate is used.
      depths: of the models; the smallest is the base depth if the config has none.
      num_steps: training steps, on the run's first batch.
      parameterisation: "standard", "mup", or "both" to compare them.
      out: folder to write into; made if missing.

    Returns:
      parameterisation -> activation -> slope of log change over log width.

    Raises:
      ValueError: a wrong setting, before anything is computed.
    """
    from rfjax.scaling import coordinate_figure

    read_manifest(config)
    base_depth = config.optimizer.base_depth or min(depths)
    names = PARAMETERISATIONS if parameterisation == "both" else (parameterisation,)
    optimizers = [
        dataclasses.replace(
            config.optimizer, parameterisation=name, base_depth=base_depth
        )
        for name in names
    ]
    stream = data.make_train_stream(
        config.data,
        global_batch_size=config.train.global_batch_size,
        seed=config.seed,
    )
    batch = next(iter(stream))
    stream.close()
    points = [
        point
        for optimizer in optimizers
        for point in check_coordinates(
            batch,
            model=config.model,
            optimizer=optimizer,
            formulation=formulations.parse(config.objective),
            shift=config.shift,
            depths=depths,
            num_steps=num_steps,
            seed=config.seed,
        )
    ]
    slopes = fit_slopes(points)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "base_depth": base_depth,
        "learning_rate": config.optimizer.learning_rate,
        "num_steps": num_steps,
        "slopes": slopes,
        "points": [dataclasses.asdict(point) for point in points],
    }
    partial = out / "coordinates.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(out / "coordinates.json")
    partial = out / "coordinates.png.partial"
    coordinate_figure.draw_coordinates(points).savefig(partial, format="png")
    partial.replace(out / "coordinates.png")
    return slopes


def bench_step(
    config: Config,
    *,
    rounds: int = 5,
    peer: str | None = None,
    json: Path | str | None = None,
    report: Report = lambda line: None,
) -> StepReport:
    """Times the train step of a config on the devices that are there.

    Args:
      config: the resolved config.
      rounds: how often everything is timed, in turns.
      peer: "diffusers" to time the same step in PyTorch, on the CPU in float32.
      json: file to write the figures to.
      report: receives a line for each round.

    Raises:
      ValueError: a wrong setting, or a peer that cannot do the same work.
      ImportError: the peer is not installed.
    """
    if rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {rounds}.")
    mesh = make_mesh_for(config)
    manifest = read_manifest(config)
    stream = make_stream(config, mesh=mesh)
    job = make_job(config, mesh=mesh, stream=stream, manifest=manifest)
    host_batch = next(stream)
    actions = {}
    if peer is not None:
        actions[peer] = _peer_step(config, host_batch, peer=peer)
    batch = meshes.put_batch(host_batch, mesh=mesh)
    state = job.init_state()
    mean_loss = make_mean_loss(
        Network(config.model, constrain=make_constrain(mesh)),
        formulation=formulations.parse(config.objective),
        shift=config.shift,
        seed=config.seed,
    )
    forward = jax.jit(mean_loss)
    backward = jax.jit(jax.value_and_grad(mean_loss))

    def train_step() -> None:
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
        num_params=flops.num_params(config.model),
        flops_per_sample=job.flops_per_sample,
        peak_flops=chip.peak_flops if chip else None,
        peer_name=peer,
        peer=tuple(seconds.pop(peer, ())),
        parts={name: tuple(times) for name, times in seconds.items()},
    )
    if json is not None:
        whole_files.write_json(json, measured.to_json())
    return measured


def _peer_step(config: Config, batch: Batch, *, peer: str) -> Callable[[], None]:
    """The peer's step on the same examples."""
    if peer != "diffusers":
        raise ValueError(f"--peer must be diffusers, got {peer!r}.")
    rf = formulations.parse("rf/lognorm(0.00,1.00)")
    if (
        jax.default_backend() != "cpu"
        or config.model.compute_dtype != "float32"
        or config.train.micro_batches != 1
        or formulations.parse(config.objective) != rf
    ):
        raise ValueError(
            "--peer=diffusers does the same work on a CPU only, with "
            "model.compute_dtype=float32, train.micro_batches=1 and objective="
            "rf/lognorm(0.00,1.00); set them, or leave out --peer."
        )
    adam = config.optimizer
    return make_step(
        diffusers_config(config.model),
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
        num_params=flops.num_params(config.model),
    )


def bench_data(
    root: Path | str | None, *, rounds: int = 5, json: Path | str | None = None
) -> ReadingReport:
    """Times reading a data set against bare ArrayRecord reads, in turns.

    Args:
      root: data folder; by default random records in the layout of SD3 at 256 px.
      rounds: how often both are timed.
      json: file to write the figures to.
    """
    if root is not None:
        measured = measure_reading(root, rounds=rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_random_dataset(Path(folder) / "random")
            measured = measure_reading(Path(folder) / "random", rounds=rounds)
    if json is not None:
        whole_files.write_json(json, dataclasses.asdict(measured))
    return measured


# -- Parts of a run ----------------------------------------------------------------


def make_stream(config: Config, *, mesh: Mesh | None = None) -> loop.DataStream:
    """The training batches from the first on: this process's share, or all rows."""
    index, count = (0, 1) if mesh is None else meshes.reading_share(mesh)
    return data.make_train_stream(
        config.data,
        global_batch_size=config.train.global_batch_size,
        seed=config.seed,
        process_index=index,
        process_count=count,
    )


def make_job(
    config: Config, *, mesh: Mesh, stream: loop.DataStream, manifest: Manifest
) -> loop.Job:
    """Builds network, optimizer and jitted step on a mesh; nothing is compiled yet.

    Raises:
      ValueError: if the mesh does not divide a parameter or the image tokens.
    """
    meshes.MeshConfig(**mesh.shape).check_tokens(
        flops.num_image_tokens(config.model, latent_shape=manifest.latent_shape)
    )
    network = Network(config.model, constrain=make_constrain(mesh))
    depth = config.model.depth
    optimizer = make_optimizer(config.optimizer, depth=depth)
    init = functools.partial(
        init_state,
        init_params=make_init(network.init, config=config.optimizer, depth=depth),
        optimizer=optimizer,
    )
    init_key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, init_key)
    shardings = state_shardings(shapes, mesh=mesh)
    step = make_train_step(
        network,
        optimizer=optimizer,
        formulation=formulations.parse(config.objective),
        shift=config.shift,
        ema=config.ema,
        seed=config.seed,
        micro_batches=config.train.micro_batches,
    )
    validate = make_validation(config, network=network, mesh=mesh)

    def evaluate_state(state: TrainState, step: int) -> dict[str, float]:
        del step
        return {
            f"{prefix}/{name}": value
            for prefix, params in (("val", state.params), ("val_ema", state.ema_params))
            for name, value in validate(params).items()
        }

    return loop.Job(
        config=config.train,
        checkpoint=config.checkpoint,
        mesh=mesh,
        abstract_state=with_sharding(shapes, shardings),
        init_state=lambda: jax.jit(init, out_shardings=shardings)(init_key),
        train_step=jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, meshes.replicated(mesh)),
            compiler_options=compiler_options(mesh),
        ),
        stream=stream,
        learning_rate=functools.partial(
            learning_rate, config=config.optimizer, num_steps=config.train.num_steps
        ),
        evaluate=evaluate_state,
        evaluate_every_steps=config.validation.every_steps,
        flops_per_sample=flops.train_flops_per_sample(
            config.model,
            latent_shape=manifest.latent_shape,
            context_length=manifest.context_shape[0],
        ),
    )


def make_validation(config: Config, *, network: Network, mesh: Mesh):
    """The evaluator of the run's held-out samples, checked at once."""
    batch_size = config.validation.batch_size
    # Rounded up to what the mesh divides: the number does not depend on it.
    batch_size += -batch_size % meshes.num_batch_shards(mesh)
    index, count = meshes.reading_share(mesh)
    batches = functools.partial(
        data.validation_batches,
        config.data,
        batch_size=batch_size,
        num_samples=config.validation.num_samples,
        process_index=index,
        process_count=count,
    )
    batches()  # raises now, not after hours, if the split is missing or too small
    return validation.make_validation(
        network,
        formulation=formulations.parse(config.objective),
        mesh=mesh,
        batches=batches,
    )


def make_mesh_for(config: Config) -> Mesh:
    """The mesh of all visible devices, checked against the batch."""
    sizes = config.mesh.resolve(jax.device_count())
    sizes.check_batch(
        config.train.global_batch_size, micro_batches=config.train.micro_batches
    )
    return meshes.make_mesh(sizes)


def read_manifest(config: Config) -> Manifest:
    """What the data is, checked against the model that is to learn it.

    Raises:
      ValueError: if model and data disagree on a size.
    """
    manifest = data.read_manifest(config.data)
    height, width, channels = manifest.latent_shape
    config.model.check_latents(height, width)
    for field, needed in (
        ("latent_channels", channels),
        ("context_dim", manifest.context_shape[1]),
        ("pooled_dim", manifest.pooled_dim),
    ):
        if getattr(config.model, field) != needed:
            raise ValueError(
                f"model.{field} must be {needed} for data set {manifest.name}, "
                f"got {getattr(config.model, field)}; set it to {needed}."
            )
    tokens = max(height, width) // config.model.patch_size
    if config.model.max_grid_tokens < tokens:
        raise ValueError(
            f"model.max_grid_tokens must be at least {tokens} for latents of {height} "
            f"x {width}, got {config.model.max_grid_tokens}."
        )
    return manifest


def describe_run(workdir: Path, config: Config, manifest: Manifest) -> None:
    """Writes run.json: what a later reader needs to place this run among others.

    Raises:
      ValueError: if the run was started on other data under the same path.
    """
    data_hash = _digest(shards.manifest_to_json(manifest))
    path = workdir / run_folder.RUN_FILE
    if path.is_file():
        started_on = json.loads(path.read_text("utf-8"))["data_hash"]
        if started_on != data_hash:
            raise ValueError(
                f"run folder {workdir} was started on data set {started_on}, data.path "
                f"now holds {data_hash}; give it the old data, or use a new --workdir."
            )
    length = manifest.context_shape[0]
    run_folder.update_run(
        workdir,
        depth=config.model.depth,
        params=flops.num_params(config.model),
        params_without_adaln=flops.num_params(config.model, adaln=False),
        train_flops_per_sample=flops.train_flops_per_sample(
            config.model, latent_shape=manifest.latent_shape, context_length=length
        ),
        image_tokens=flops.num_image_tokens(
            config.model, latent_shape=manifest.latent_shape
        ),
        context_tokens=length,
        data=manifest.name,
        data_hash=data_hash,
        validation_protocol=validation.PROTOCOL,
        seed=config.seed,
        learning_rate=config.optimizer.learning_rate,
        parameterisation=config.optimizer.parameterisation,
        cooldown_steps=config.optimizer.cooldown_steps,
        config_hash=_digest(json.dumps(configs.to_dict(config), sort_keys=True)),
        code_version=__version__,
        num_devices=jax.device_count(),
        device=jax.devices()[0].device_kind,
    )


def with_sharding(shapes: Any, shardings: Any) -> Any:
    """Puts shardings (a tree like `shapes`, or one for all) on ShapeDtypeStructs."""
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        shardings,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
