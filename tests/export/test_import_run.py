# SPDX-License-Identifier: Apache-2.0
"""From PyTorch weights to a run that is evaluated and trained on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from rfjax import checkpoint, commands, run_folder
from rfjax.commands.job import make_job_here
from rfjax.config import config_to_dict, load_config
from rfjax.export import load, save, scheduler
from rfjax.main import run as command_line
from rfjax.models import make_model
from rfjax.train.optimizer import make_optimizer
from rfjax.train.state import init_state
from rfjax.types import Conditioning

MODEL = "diffusion_pytorch_model.safetensors"
SIZES = {"context_dim": 8, "pooled_dim": 6, "latent_channels": 4}
FIELDS = {
    "model": {"compute_dtype": "float32"},
    "data": {
        "kind": "synthetic",
        "latent_shape": [8, 4, 4],
        "context_shape": [3, 8],
        "pooled_dim": 6,
        "num_train": 32,
        "num_validation": 8,
    },
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    "ema": {"every_steps": 1},
    "train": {"num_steps": 2, "global_batch_size": 8, "log_every_steps": 1},
    "validation": {"batch_size": 8, "num_samples": 8},
    "checkpoint": {"every_steps": 1},
}


@pytest.fixture
def weights(make_config, make_leaves, tmp_path):
    """A diffusers folder; depth 2, and the first block has dual attention."""
    config = make_config(depth=2, qk_norm=True, dual_attention_blocks=1, **SIZES)
    leaves, folder = make_leaves(config), tmp_path / "weights"
    save.write_diffusers(leaves.__getitem__, make_model(config), folder)
    return folder, leaves


def stored(workdir, weights, step=None):
    network = make_model(load_config(workdir).model)
    params = checkpoint.restore_params(
        workdir,
        network.abstract_params(),
        weights=weights,
        step=step,
    )
    return traverse_util.flatten_dict(params, sep="/")


def test_import_then_export_gives_the_same_bytes(weights, tmp_path):
    source, leaves = weights
    workdir = tmp_path / "run"
    config = commands.import_weights(source, fields=FIELDS, workdir=workdir).config
    assert config == load_config(workdir)
    assert (config.model.depth, config.model.dual_attention_blocks) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights"]
    for kind in ("raw", "ema"):
        found = stored(workdir, kind)
        for path, leaf in leaves.items():
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    record = json.loads((workdir / "run.json").read_text())
    assert record["imported_from"] == str(source)
    assert record["depth"] == 2

    save.export_run(workdir, out=tmp_path / "again", weights="raw")
    again = tmp_path / "again" / "transformer" / MODEL
    assert again.read_bytes() == (source / MODEL).read_bytes()


EULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.42.1",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift_terminal": None,
    "time_shift_type": "exponential",
}
DYNAMIC = {
    "base_shift": 0.25,
    "max_shift": 1.15,
    "base_image_seq_len": 64,
    "max_image_seq_len": 4096,
}


@pytest.fixture
def pipeline(weights, tmp_path):
    """Makes a pipeline of the weights and a scheduler_config.json."""

    def make(scheduler):
        folder = tmp_path / "pipeline"
        (folder / "scheduler").mkdir(parents=True)
        weights[0].rename(folder / "transformer")
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(scheduler))
        return folder

    return make


@pytest.mark.parametrize(
    ("scheduler", "sample"),
    [
        (EULER, {"shift": 3.0}),
        (EULER | {"use_dynamic_shifting": True, **DYNAMIC}, {"dynamic_shift": DYNAMIC}),
    ],
)
def test_a_round_trip_gives_back_both_configs(pipeline, tmp_path, scheduler, sample):
    """Also what rfjax has no field for, as the default size of pictures."""
    source = pipeline(scheduler)
    path, claims = source / "transformer" / "config.json", {"sample_size": 96}
    claims |= {"out_channels": None, "_diffusers_version": "0.42.1"}
    network = json.loads(path.read_text()) | claims
    path.write_text(json.dumps(network | {"_name_or_path": "/home/me/sd3"}))

    for given in (source / "transformer" / MODEL, tmp_path / "out"):
        workdir, out = tmp_path / f"run-{given.name}", tmp_path / "out"
        imported = commands.import_weights(given, fields=FIELDS, workdir=workdir)
        found = config_to_dict(imported.config)["sample"]
        assert {name: found[name] for name in sample} == sample
        assert imported.warnings == ()
        if not out.exists():
            save.export_run(workdir, out=out)
        assert json.loads((out / "transformer" / "config.json").read_text()) == network
        path = out / "scheduler" / "scheduler_config.json"
        assert json.loads(path.read_text()) == scheduler


@pytest.mark.parametrize(
    ("content", "fields", "not_followed"),
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 2.0},
         {"shift": 2.0, "solver": "heun"}, []),
        (EULER | {"use_karras_sigmas": True, "shift_terminal": 0.02}, {"shift": 3.0},
         ["shift_terminal = 0.02", "use_karras_sigmas = True"]),
        (EULER | {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {},
         ["time_shift_type = 'linear'"]),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True,
          "flow_shift": 5.0}, {"shift": 5.0}, ["_class_name = 'UniPCMultistepSch"]),
        ({}, {}, []),
    ],
)  # fmt: skip
def test_what_schedulers_say(content, fields, not_followed):
    assert scheduler.sample_fields(content) == fields
    found = scheduler.not_followed(content)
    for text, start in zip(found, not_followed, strict=True):
        assert text.startswith(start)


def test_what_a_user_says_of_sampling_counts(pipeline, tmp_path):
    source = pipeline(EULER | {"use_dynamic_shifting": True, "use_beta_sigmas": True})
    fields = FIELDS | {"sample": {"shift": 2.0}}
    workdir = tmp_path / "run"
    imported = commands.import_weights(source, fields=fields, workdir=workdir)
    assert (imported.config.sample.shift, imported.config.sample.dynamic_shift) == (
        2.0,
        None,
    )
    assert "warning: sample.dynamic_shift is None, the weights'" in str(imported)
    assert "has use_beta_sigmas = True, which only PyTorch follows" in str(imported)
    save.export_run(workdir, out=tmp_path / "out")
    path = tmp_path / "out" / "scheduler" / "scheduler_config.json"
    found = json.loads(path.read_text())
    assert (found["shift"], found.get("use_dynamic_shifting")) == (2.0, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "for a rectified flow, .* got 'DDIMSched"),
        (EULER | {"num_train_timesteps": 500}, "num_train_timesteps = 1000, got 500"),
        (EULER | {"shift": "3"}, "sample.shift"),
        (EULER | {"shift": -1.0}, "sample.shift"),
        ([], "must hold a JSON object"),
    ],
)
def test_schedulers_that_do_not_fit(pipeline, tmp_path, content, message):
    source, workdir = pipeline(content), tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        commands.import_weights(source, fields=FIELDS, workdir=workdir)
    assert not workdir.exists()


def test_the_optimizer_is_fresh(weights, tmp_path):
    """The stored state is the one that training makes of these parameters."""
    source, leaves = weights
    workdir = tmp_path / "run"
    config = commands.import_weights(source, fields=FIELDS, workdir=workdir).config
    job, _ = make_job_here(config)
    checkpoints = checkpoint.Checkpoints(workdir, config=config.checkpoint)
    found, position = checkpoints.restore_newest(job.abstract_state)
    checkpoints.close()
    assert position == job.stream.get_state()
    expected = init_state(
        jax.random.key(0),
        init_params=lambda _: traverse_util.unflatten_dict(leaves, sep="/"),
        optimizer=make_optimizer(config.optimizer, model=make_model(config.model)),
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_an_imported_run_is_evaluated_and_trained(weights, tmp_path):
    source, leaves = weights
    workdir = tmp_path / "run"
    config = commands.import_weights(source, fields=FIELDS, workdir=workdir).config
    metrics = commands.evaluate(workdir).metrics
    assert metrics["step"] == 0
    assert metrics["val/loss"] == metrics["val_ema/loss"] > 0

    lines = []
    commands.train(config, workdir=workdir, report=lines.append)
    assert "resuming at step 0 of 2" in lines
    assert checkpoint.finished_steps(workdir)[-1] == 2
    trained = stored(workdir, "raw")
    path = "dual_blocks/image_only/value/kernel"
    assert 0 < np.abs(trained[path] - leaves[path]).max() < 0.01  # two small updates


@pytest.mark.slow
def test_stored_positions_are_used_and_given_back(weights, tmp_path):
    source, _ = weights
    tensors = load_file(source / MODEL)
    table = tensors["pos_embed.pos_embed"]
    table[...] = np.random.default_rng(0).standard_normal(table.shape)
    save_file(tensors, source / MODEL, metadata={"format": "pt"})

    workdir = tmp_path / "run"
    config = commands.import_weights(source, fields=FIELDS, workdir=workdir).config
    assert config.model.position_file == str(workdir / run_folder.POSITION_FILE)
    # In the folder itself, so that it is found wherever the run is moved.
    stored_config = json.loads((workdir / "config.json").read_text())
    assert stored_config["model"]["position_file"] == run_folder.POSITION_FILE
    workdir = workdir.rename(tmp_path / "moved")
    config = load_config(workdir)
    save.export_run(workdir, out=tmp_path / "again")
    again = load_file(tmp_path / "again" / "transformer" / MODEL)
    np.testing.assert_array_equal(again["pos_embed.pos_embed"], table)

    # The network sees them: with the computed ones it is another function.
    params = traverse_util.unflatten_dict(stored(workdir, "ema"), sep="/")
    rng = np.random.default_rng(0)
    text = Conditioning(
        context=rng.standard_normal((1, 3, 8), np.float32),
        pooled=rng.standard_normal((1, 6), np.float32),
    )
    latents = rng.standard_normal((1, 8, 4, 4), np.float32)

    def velocity(model):
        function = jax.jit(
            lambda params: make_model(model).bind(params)(
                latents, jnp.ones(1) / 2, text
            ),
            compiler_options={"xla_backend_optimization_level": 0},  # compiles faster
        )
        return np.asarray(function(params))

    computed = dataclasses.replace(config.model, position_file=None)
    assert np.abs(velocity(config.model) - velocity(computed)).max() > 1e-2

    # A flipped bit in them would train and export another model without a word.
    path = workdir / run_folder.POSITION_FILE
    flipped = bytearray(path.read_bytes())
    flipped[-7] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"positions\.npy is damaged .* its checksum"):
        save.export_run(workdir, out=tmp_path / "not")
    assert commands.verify(workdir=workdir).damage["position table"]
    assert not (tmp_path / "not").exists()


def test_command(weights, tmp_path, capsys):
    source, _ = weights
    config, workdir = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps(FIELDS))
    args = ["import", f"--from={source}", f"--config={config}", f"--workdir={workdir}"]
    assert command_line([*args, "--config.model.depth=3"]) == 1
    assert "model.depth is 3, the weights say 2" in capsys.readouterr().err
    assert not workdir.exists()
    assert command_line(args) == 0
    assert "imported a model of depth 2" in capsys.readouterr().out
    assert command_line(args) == 1
    assert "workdir must be a new or empty folder" in capsys.readouterr().err
    config.write_text("{")
    assert command_line(args) == 1
    assert "must be JSON" in capsys.readouterr().err


def test_data_of_another_size(weights, tmp_path):
    data = FIELDS["data"] | {"pooled_dim": 7}
    with pytest.raises(ValueError, match="model.pooled_dim must be 7 for data set"):
        commands.import_weights(
            weights[0], fields=FIELDS | {"data": data}, workdir=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_of_a_failed_import(weights, tmp_path):
    source, _ = weights
    tensors = load_file(source / MODEL)
    tensors["proj_out.bias"][0] = np.nan
    save_file(tensors, source / MODEL, metadata={"format": "pt"})
    load.open_weights(source)  # nothing is wrong with names and shapes
    with pytest.raises(ValueError, match="NaN or infinity in proj_out.bias"):
        commands.import_weights(source, fields=FIELDS, workdir=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
