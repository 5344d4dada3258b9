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
from rfjax.config import load_config
from rfjax.export import load, save
from rfjax.main import run as command_line
from rfjax.models import make_model
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
