# SPDX-License-Identifier: Apache-2.0
"""Training on data of several aspect buckets."""

import dataclasses
import importlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rfjax import checkpoint, commands, run_folder
from rfjax.commands import job
from rfjax.config import from_config_dict
from rfjax.config_files import apply_overrides, load_config_file
from rfjax.data import shards
from rfjax.errors import UserError
from rfjax.models import make_model
from rfjax.parallel.mesh import MeshConfig, make_mesh, put_batch

CONFIG = Path(__file__).parents[2] / "configs" / "debug.py"
OVERRIDES = (
    "--config.model.depth=1",
    "--config.model.latent_channels=4",
    "--config.model.context_dim=6",
    "--config.model.pooled_dim=5",
    "--config.model.grid_tokens=2",
    "--config.model.max_grid_tokens=3",
    "--config.train.num_steps=6",
    "--config.train.global_batch_size=8",
    "--config.train.log_every_steps=1",
    "--config.optimizer.warmup_steps=1",
    "--config.optimizer.cooldown_steps=0",
    "--config.checkpoint.every_steps=2",
    "--config.checkpoint.keep=3",
    "--config.validation.every_steps=3",
    "--config.validation.batch_size=8",
)
BUCKETS = {(2, 6), (4, 4), (6, 2)}


@pytest.fixture
def make_config(bucketed_root):
    return lambda *overrides: config_of(bucketed_root, *overrides)


def config_of(root, *overrides):
    fields = load_config_file(str(CONFIG))
    fields["data"] = {"kind": "shards", "path": str(root)}
    return from_config_dict(apply_overrides(fields, [*OVERRIDES, *overrides]))


def train(config, workdir):
    commands.train(config, workdir=workdir, report=lambda line: None)
    return workdir


def params_of(workdir):
    shapes = make_model(config_of("d").model).abstract_params()
    return checkpoint.restore_params(workdir, shapes, weights="raw")


def losses(workdir):
    lines = run_folder.read_metrics(workdir)
    return np.array([line["train/loss"] for line in lines if "train/loss" in line])


def validation(workdir):
    lines = run_folder.read_metrics(workdir)
    found = [line for line in lines if "val/loss" in line][-1]
    return {k: v for k, v in found.items() if k.startswith(("val/", "val_ema/"))}


@pytest.fixture(scope="module")
def whole(bucketed_root, tmp_path_factory):
    """Trained without interruption on eight devices."""
    return train(config_of(bucketed_root), tmp_path_factory.mktemp("runs") / "whole")


def test_a_run_reads_all_buckets_and_resumes_to_the_bit(whole, make_config, tmp_path):
    stream = job.make_stream(make_config())
    sizes = [next(stream).latents.shape[1:3] for _ in range(6)]
    stream.close()
    assert set(sizes) == BUCKETS
    assert len(set(losses(whole))) == 6  # control: steps do differ
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for step in (4, 6):
        shutil.rmtree(workdir / checkpoint.FOLDER / str(step))
    train(make_config(), workdir)
    assert losses(workdir).tolist() == losses(whole).tolist()
    assert validation(workdir) == validation(whole)
    jax.tree.map(np.testing.assert_array_equal, params_of(workdir), params_of(whole))


def test_one_device_trains_like_eight(whole, make_config, tmp_path, monkeypatch):
    """The loss of each bucket too; and batches of validation may be of any size."""
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    monkeypatch.setattr(job, "make_mesh_for", lambda config: alone)
    config = make_config("--config.validation.batch_size=3")
    workdir = train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(workdir), losses(whole), rtol=1e-5)
    expected = validation(whole)
    for name, value in validation(workdir).items():
        assert value == pytest.approx(expected[name], rel=1e-5)


def test_validation_has_the_loss_of_each_bucket(whole):
    metrics = validation(whole)
    counts = {"2x6": 3, "4x4": 5, "6x2": 4}  # of the validation split
    for weights in ("val", "val_ema"):
        own = [metrics[f"{weights}/loss_{name}"] for name in counts]
        mean = np.average(own, weights=list(counts.values()))
        assert metrics[f"{weights}/loss"] == pytest.approx(mean, rel=1e-6)
        assert np.ptp(own) > 1e-3  # control
    evaluation = commands.evaluate(whole)
    assert evaluation.metrics["val/loss_6x2"] == metrics["val/loss_6x2"]
    lines = [line.split() for line in str(evaluation).splitlines()]
    assert [f"{metrics[f'{v}/loss_6x2']:.4f}" for v in ("val", "val_ema")] == next(
        line[:2] for line in lines if line[-1:] == ["6x2"]
    )


def test_every_bucket_is_compiled_before_the_first_step(make_config):
    prepared, _ = job.make_job_here(make_config())
    step = prepared.step_for_all_sizes()
    state, batches = prepared.init_state(), {}
    while set(batches) != BUCKETS:
        batch = next(prepared.stream)
        batches[batch.latents.shape[1:3]] = put_batch(batch, mesh=prepared.mesh)
    prepared.stream.close()
    compilations = []
    listener = lambda event, *_, **__: compilations.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for batch in batches.values():
            state, _ = step(state, batch, 1e-3)
        assert not [event for event in compilations if "compile" in event]
        # Control: the listener hears of a compilation.
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert [event for event in compilations if "compile" in event]
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_flops_are_the_mean_over_buckets(make_config, whole):
    config = make_config()
    model = make_model(config.model)
    flops = {
        bucket: model.train_flops(latent_shape=(*bucket, 4), context_length=3)
        for bucket in BUCKETS
    }
    shares = {(2, 6): 17 / 56, (4, 4): 30 / 56, (6, 2): 9 / 56}
    mean = sum(flops[bucket] * shares[bucket] for bucket in BUCKETS)
    recorded = run_folder.read_run(whole)["train_flops_per_sample"]
    assert recorded == pytest.approx(mean, abs=1)
    assert recorded != flops[(4, 4)] != flops[(2, 6)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--config.train.global_batch_size=16"],
            r"train.global_batch_size must be at most the examples of each bucket, got "
            r"16 for 9 of 6x2 latents; choose at most 9",
        ),
        (
            ["--config.model.max_grid_tokens=2"],
            r"model.max_grid_tokens must be at least 3 for latents of 2 x 6, got 2",
        ),
        (
            ["--config.mesh.data=4", "--config.mesh.sequence=2"],
            r"mesh.sequence must divide the image tokens .* got 2 for 3 tokens",
        ),
    ],
)
def test_what_does_not_fit_a_bucket_is_refused(
    make_config, tmp_path, overrides, message
):
    """Before anything is compiled or written, whatever fits the square."""
    with pytest.raises(UserError, match=message):
        train(make_config(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sheets_draw_each_caption_in_its_own_bucket(whole, tmp_path, monkeypatch):
    drawn = []
    module = importlib.import_module("rfjax.commands.sample")
    draw_sheet = module.sheet.draw_sheet

    def listen(sections, **options):
        drawn.extend(sections)
        return draw_sheet(sections, **options)

    monkeypatch.setattr(module.sheet, "draw_sheet", listen)
    out = tmp_path / "sheet.png"
    module.sample_sheet(whole, out=out, num_seen=12, num_held_out=12, num_steps=2)
    assert out.is_file()
    seen, held_out = drawn
    sizes = {"validation 2": (4, 12), "validation 3": (8, 8), "validation 8": (12, 4)}
    for caption, size in sizes.items():  # two pixels a latent
        image = held_out.images[held_out.captions.index(caption)]
        assert image.shape == (*size, 3)
    assert len({image.shape for image in seen.images}) == 3


def test_prompts_are_drawn_in_the_bucket_that_is_asked_for(bucketed_root, whole):
    module = importlib.import_module("rfjax.commands.sample")
    manifest = shards.read_manifest(bucketed_root)
    sizes = {None: (4, 4), 1.0: (4, 4), 16: (2, 6), 2.5: (2, 6), 0.4: (6, 2)}
    for aspect, size in sizes.items():  # width over height
        assert module._shape_of(manifest, aspect) == (*size, 4)
    square = dataclasses.replace(
        manifest, latent=dataclasses.replace(manifest.latent, buckets=())
    )
    with pytest.raises(UserError, match=r"--aspect needs data of several aspect bucke"):
        module._shape_of(square, 1.5)
    with pytest.raises(UserError, match=r"--aspect goes with --prompt=TEXT, got 1.5"):
        commands.sample(whole, of_data=True, aspect=1.5)
