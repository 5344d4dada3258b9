# SPDX-License-Identifier: Apache-2.0
"""Parts of a run: what every command that trains, measures or plans is built of.

Here the parts are wired: config -> data -> objective -> model -> step -> evaluation.
Everything is checked before anything is compiled or written.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from rfjax import __version__, run_folder, whole_files
from rfjax.checksums import digest
from rfjax.commands.memory import check_memory
from rfjax.config import Config, config_to_dict, load_config
from rfjax.data import TrainStream, trained_on
from rfjax.data.implausible import describe_bad_rows
from rfjax.data.joined import name_of_record
from rfjax.data.manifest import Manifest
from rfjax.data.order import shares_of
from rfjax.errors import MissingFileError, UserError
from rfjax.evaluation import Evaluator, Subject, validation
from rfjax.flow import formulations
from rfjax.models import Model, make_model
from rfjax.parallel import agreement, processes
from rfjax.parallel.compiler import compiler_options
from rfjax.parallel.mesh import (
    MeshConfig,
    make_mesh,
    reading_share,
    replicated,
)
from rfjax.parallel.sharding import MeshLayout, state_shardings
from rfjax.train import loop
from rfjax.train.optimizer import learning_rate, make_init, make_optimizer
from rfjax.train.state import TrainState, init_state
from rfjax.train.step import make_train_step


def load_trained(
    workdir: Path | str,
    *,
    data: Path | str | None = None,
    encoders: Sequence[Path | str] = (),
) -> Config:
    """The config of a run whose data is read again, which is there.

    Args:
      workdir: run folder.
      data: folder of the data set, if it was moved, or is to be another.
      encoders: folders where the weights of its encoders are now, if they were moved.

    Raises:
      MissingFileError: `workdir` is not a run folder, or its data is not found.
      UserError: only other data is in its place.
    """
    config = load_config(workdir)
    record = run_folder.read_run(Path(workdir))
    found, _ = trained_on.find(
        config.data, record, given=None if data is None else str(data)
    )
    if encoders:
        found = dataclasses.replace(found, encoders=checked_folders(encoders))
    return dataclasses.replace(config, data=found)


def checked_folders(encoders: Sequence[Path | str]) -> tuple[str, ...]:
    """The folders of --encoders, once it is certain that they are there.

    Raises:
      MissingFileError: one is not.
    """
    for folder in encoders:
        if not Path(folder).is_dir():
            raise MissingFileError(
                f"--encoders must be a folder, got {str(folder)!r}; name the one that "
                "holds the weights, as text_encoder and vae of a pipeline."
            )
    return tuple(map(str, encoders))


def read_manifest(config: Config) -> Manifest:
    """What the data is, checked against the model that will be trained on it.

    Raises:
      UserError: if model and data disagree on a size.
    """
    manifest = config.data.manifest()
    for shape in manifest.latent.shapes:
        config.model.check_data(
            name=manifest.name,
            latent_shape=shape,
            context_dim=manifest.context_shape[1],
            pooled_dim=manifest.pooled_dim,
        )
    return manifest


# JAX's settings that decide which program is compiled, or what it draws.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)


def check_agreement(config: Config, **flags: Any) -> None:
    """Refuses, in every process of a job, what one of them was given differently.

    Args:
      config: the resolved config of this process.
      **flags: further arguments of the command.

    Raises:
      UserError: the processes differ in config, flags, settings of JAX or data.
      MissingFileError: the data is missing here.
    """
    if not processes.is_joined():
        return
    resolved = run_folder.flatten({"config": config_to_dict(config)})
    settings = {name: getattr(jax.config, name) for name in _SETTINGS}
    agreement.check_same(processes.share(resolved | flags | settings))
    data_hash = digest(read_manifest(config).to_json())
    agreement.check_same(processes.share({"hash of the data set": data_hash}))


def make_mesh_for(config: Config) -> Mesh:
    """The mesh of all visible devices, checked against the batch."""
    sizes = config.mesh.resolve(jax.device_count())
    sizes.check_batch(
        config.train.global_batch_size, micro_batches=config.train.micro_batches
    )
    return make_mesh(sizes)


def make_reading_mesh(config: Config) -> Mesh:
    """The mesh that a finished run is evaluated and sampled on, of all devices.

    The run's own mesh where it fits; else parameters in as many shards as divide the
    width, so that a large model finds room on whatever devices there are.
    """
    num_devices = jax.device_count()
    shards = math.gcd(num_devices, config.model.width)
    other = MeshConfig(data=num_devices // shards, fsdp=shards)
    try:
        sizes = config.mesh.resolve(num_devices)
        _check_mesh(config, sizes)
    except UserError:
        sizes = other
    return make_mesh(sizes)


def _check_mesh(config: Config, sizes: MeshConfig) -> None:
    """Raises UserError if a mesh does not divide the model or its image tokens."""
    axes = dataclasses.asdict(sizes)
    model = make_model(config.model)
    shapes = model.abstract_params()
    abstract = AbstractMesh(tuple(axes.values()), tuple(axes))
    state_shardings(shapes, params=shapes, dims=model.dims, mesh=abstract)
    _check_tokens(config, sizes, config.data.manifest())


def _check_tokens(config: Config, sizes: MeshConfig, manifest: Manifest) -> None:
    """Raises UserError if a mesh does not divide the image tokens of some bucket."""
    for shape in manifest.latent.shapes:
        sizes.check_tokens(config.model.num_image_tokens(shape))


def abstract_params_on(model: Model, *, mesh: Mesh) -> Any:
    """The parameters as ShapeDtypeStructs in the layout that they have in training."""
    shapes = model.abstract_params()
    shardings = state_shardings(shapes, params=shapes, dims=model.dims, mesh=mesh)
    return with_sharding(shapes, shardings)


def make_stream(config: Config, *, mesh: Mesh | None = None) -> TrainStream:
    """The training batches from the first on: this process's share, or all rows."""
    index, count = (0, 1) if mesh is None else reading_share(mesh)
    return config.data.train_stream(
        global_batch_size=config.train.global_batch_size,
        seed=config.seed,
        process_index=index,
        process_count=count,
    )


def make_job(
    config: Config, *, mesh: Mesh, stream: TrainStream, manifest: Manifest
) -> loop.Job:
    """Builds network, optimizer and jitted step on a mesh; nothing is compiled yet.

    Raises:
      UserError: if the mesh does not divide a parameter or the image tokens.
    """
    _check_tokens(config, MeshConfig(**mesh.shape), manifest)
    model = make_model(config.model, layout=MeshLayout(mesh))
    optimizer = make_optimizer(config.optimizer, model=model)
    init = make_init_state(config, model=model)
    init_key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, init_key)
    shardings = state_shardings(
        shapes, params=shapes.params, dims=model.dims, mesh=mesh
    )
    step = make_train_step(
        model,
        optimizer=optimizer,
        formulation=formulations.parse(config.objective),
        shift=config.shift,
        ema=config.ema,
        seed=config.seed,
        micro_batches=config.train.micro_batches,
    )
    evaluators = make_evaluators(config, model=model, mesh=mesh)
    return loop.Job(
        config=config.train,
        checkpoint=config.checkpoint,
        mesh=mesh,
        abstract_state=with_sharding(shapes, shardings),
        init_state=lambda: jax.jit(init, out_shardings=shardings)(init_key),
        train_step=jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
            compiler_options=compiler_options(mesh),
        ),
        stream=stream,
        learning_rate=functools.partial(
            learning_rate, config=config.optimizer, num_steps=config.train.num_steps
        ),
        evaluators=evaluators,
        metric_writers=config.metric_writers,
        flops_per_sample=flops_per_sample(config, manifest),
        bad_validation=functools.partial(_describe_bad_validation, config),
    )


def _describe_bad_validation(config: Config) -> str | None:
    """What is wrong with the held-out examples of a run; None if nothing is."""
    records = config.data.records("validation")
    batches = config.data.validation_batches(
        batch_size=1, num_samples=config.validation.num_samples
    )
    for batch, _ in batches:
        bad = describe_bad_rows(
            batch, name_of=lambda index: name_of_record(records, index)
        )
        if bad is not None:
            return f"validation {bad}"
    return None


def make_init_state(
    config: Config, *, model: Model
) -> Callable[[jax.Array], TrainState]:
    """Key -> fresh train state; under `jax.eval_shape` it says what there will be."""
    return functools.partial(
        init_state,
        init_params=make_init(config.optimizer, model=model),
        optimizer=make_optimizer(config.optimizer, model=model),
    )


def make_job_here(config: Config) -> tuple[loop.Job, Manifest]:
    """`make_job` on all visible devices, and what its data is."""
    mesh = make_mesh_for(config)
    manifest = read_manifest(config)
    check_memory(config, mesh=mesh)
    stream = make_stream(config, mesh=mesh)
    return make_job(config, mesh=mesh, stream=stream, manifest=manifest), manifest


def make_evaluators(config: Config, *, model: Model, mesh: Mesh) -> list[Evaluator]:
    """The validation loss and the run's other evaluators, checked at once."""
    subject = Subject(
        model=model,
        formulation=formulations.parse(config.objective),
        mesh=mesh,
        data=config.data,
    )
    evaluators = [
        each.make(subject) for each in (config.validation, *config.evaluators)
    ]
    names = [f"{e.name}{suffix}" for e in evaluators for suffix in ("", "_ema")]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"evaluators must write metrics of different names, got {name}/ twice; "
                "leave one out (the validation loss, val/, is always measured)."
            )
    return evaluators


def describe_run(workdir: Path, config: Config, manifest: Manifest) -> None:
    """Writes run.json: what a later reader needs to place this run among others.

    Raises:
      UserError: if the run was started on other data under the same path.
    """
    data_hash = digest(manifest.to_json())
    run = run_folder.read_run(workdir, required=["data_hash"])
    if run and run["data_hash"] != data_hash:
        raise UserError(
            f"run folder {workdir} was started on data set {run['data_hash']}, "
            f"the data section now describes {data_hash}; name the old data with "
            "--config.data.path=DIR, or use a new --workdir."
        )
    model = make_model(config.model)
    folders = [str(Path(folder).resolve()) for folder in config.data.folders()]
    run_folder.update_run(
        workdir,
        depth=config.model.depth,
        params=model.num_params,
        params_without_adaln=model.num_params_without_adaln,
        train_flops_per_sample=flops_per_sample(config, manifest),
        image_tokens=_mean_of_buckets(
            config, lambda bucket: config.model.num_image_tokens((*bucket, 1))
        ),
        context_tokens=manifest.context_shape[0],
        data=manifest.name,
        data_hash=data_hash,
        data_path=folders if len(folders) > 1 else next(iter(folders), None),
        validation_protocol=validation.PROTOCOL,
        seed=config.seed,
        learning_rate=config.optimizer.learning_rate,
        parameterisation=config.optimizer.parameterisation,
        cooldown_steps=config.optimizer.cooldown_steps,
        config_hash=run_folder.config_hash(
            whole_files.read_json(workdir / run_folder.CONFIG_FILE)
        ),
        code_version=__version__,
        num_devices=jax.device_count(),
        device=jax.devices()[0].device_kind,
    )


def flops_per_sample(config: Config, manifest: Manifest) -> int:
    """Model FLOPs of forward and backward for one example of the data.

    Of several buckets it is their mean.
    """
    return _mean_of_buckets(
        config, lambda bucket: flops_of_bucket(config, manifest, bucket)
    )


def flops_of_bucket(config: Config, manifest: Manifest, bucket: Sequence[int]) -> int:
    """Model FLOPs of forward and backward for one example with (H, W) latents."""
    return make_model(config.model).train_flops(
        latent_shape=(*bucket[:2], manifest.latent_shape[-1]),
        context_length=manifest.context_shape[0],
    )


def _mean_of_buckets(config: Config, measure: Callable[[tuple], int]) -> int:
    """The mean of what each (H, W) of latents has, by its share of the examples."""
    shares = shares_of(config.data.groups("train"), config.data.weights())
    return round(sum(share * measure(bucket) for bucket, share in shares.items()))


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
