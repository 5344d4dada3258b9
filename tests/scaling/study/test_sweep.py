# SPDX-License-Identifier: Apache-2.0
"""Sweeps: the grid of cells, and a launcher that may be killed at any moment."""

import dataclasses
import json
import signal

import jax
import numpy as np
import pytest

from rfjax import checkpoint, commands, run_folder, stopping
from rfjax import config as configs
from rfjax.config_files import load_config_file
from rfjax.models import make_model
from rfjax.scaling.study import runs
from rfjax.scaling.study.grid import Cell
from rfjax.scaling.study.sweep import run_locally

NUM_STEPS = 5


def launch(tmp_path, behaviour, names=("a", "b", "c"), num_steps=NUM_STEPS):
    """Trains by `behaviour(name)`; returns (failed, calls, lines)."""
    calls, lines = [], []

    def train_cell(cell, folder):
        calls.append(cell.name)
        folder.mkdir(parents=True, exist_ok=True)
        finished = behaviour(cell.name)
        status = "finished" if finished else "stopped"
        run_folder.update_run(folder, status=status, step=NUM_STEPS)
        if not finished:
            raise stopping.Stopped(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rfjax.scaling.study.sweep.write_table", lambda workdir: None)
        failed = run_locally(
            [Cell(name, {"train": {"num_steps": num_steps}}) for name in names],
            workdir=tmp_path,
            train_cell=train_cell,
            flops_of_cell=dict.fromkeys(names, 1.0),
            report=lines.append,
        )
    return failed, calls, lines


def test_finished_cells_are_skipped(tmp_path):
    _, calls, _ = launch(tmp_path, lambda name: True, names=("a",))
    assert calls == ["a"]
    failed, calls, lines = launch(tmp_path, lambda name: True)
    assert (failed, calls) == ([], ["b", "c"])
    assert "finished before" in lines[0]


def test_a_cell_that_grew_goes_on(tmp_path):
    """A trunk gets longer when longer lengths are added to a study."""
    launch(tmp_path, lambda name: True, names=("a",))
    _, calls, _ = launch(tmp_path, lambda name: True, names=("a",), num_steps=6)
    assert calls == ["a"]


def test_a_cell_that_fails_is_tried_twice_and_does_not_end_the_sweep(tmp_path):
    def behaviour(name):
        if name == "b":
            raise ValueError("diverged")
        return True

    failed, calls, lines = launch(tmp_path, behaviour)
    assert (failed, calls) == (["b"], ["a", "b", "b", "c"])
    assert any("b failed (attempt 2): diverged" in line for line in lines)


def test_a_request_to_stop_stops_the_sweep(tmp_path):
    called = []

    def behaviour(name):
        called.append(name)
        return name != "b"

    with pytest.raises(stopping.Stopped):
        launch(tmp_path, behaviour)
    assert called == ["a", "b"]
    _, calls, _ = launch(tmp_path, lambda name: True)
    assert calls == ["b", "c"]


def test_a_request_that_comes_too_late_for_a_cell_still_stops_the_sweep(tmp_path):
    """Trained to its end, the cell has nothing to stop; the next must not start."""
    called = []

    def behaviour(name):
        called.append(name)
        with stopping.handling() as stop:
            stop.unsaved = True
            signal.raise_signal(signal.SIGTERM)
            stop.unsaved = False
        return True

    with pytest.raises(stopping.Stopped):
        launch(tmp_path, behaviour)
    assert called == ["a"]
    assert run_folder.read_run(tmp_path / "a")["status"] == "finished"


def test_two_sweeps_cannot_share_a_folder(tmp_path):
    with run_folder.exclusive(tmp_path):
        with pytest.raises(ValueError, match="in use by another"):
            launch(tmp_path, lambda name: True)


@pytest.fixture(scope="module")
def fields():
    """A sweep of one tiny model and two lengths."""
    base = load_config_file("configs/debug.py")
    base["optimizer"] |= {"warmup_steps": 1}
    base["data"] |= {"latent_shape": [4, 4, 16], "num_validation": 8}
    base["checkpoint"] = {"every_steps": 100, "keep": 1}
    grid = {"depths": [1], "num_samples": [128, 192], "cooldown_fraction": 0.5}
    return {"base": base, "grid": grid}


@pytest.fixture(scope="module")
def branched(fields, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep") / "branched"
    assert not commands.sweep(fields, workdir=workdir).failed
    return workdir


def ema_params(workdir):
    config = configs.load(workdir)
    abstract = make_model(config.model).abstract_params()
    return jax.tree.leaves(
        checkpoint.restore_params(workdir, checkpoint.abstract_on_device(abstract))
    )


def equal(left, right):
    return all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))


def test_a_dry_run_writes_nothing(fields, tmp_path):
    lines = []
    options = {"workdir": tmp_path / "sweep", "report": lines.append}
    assert not commands.sweep(fields, dry_run=True, **options).failed
    assert "d01-n192-seed0" in lines[0]
    assert not (tmp_path / "sweep").exists()
    bad = fields | {"grid": {"depths": [1], "num_samples": [128], "dephts": 3}}
    with pytest.raises(ValueError, match=r"grid\.dephts is not a config field"):
        commands.sweep(bad, **options)


def test_a_sweep_becomes_a_runs_table(branched):
    table = runs.load_runs(branched)
    ends = table[table["cooldown_end"]]
    assert sorted(ends["samples"]) == [128, 192], "the trunk's end is no point"
    assert set(ends["trunk"]) == {"d01-trunk-seed0"}
    assert (ends["val_ema/loss"] > 0).all()
    assert (branched / "runs.csv").read_text().count("\n") == len(table) + 1
    record = json.loads((branched / "d01-n128-seed0/run.json").read_text())
    assert ends["params"].iloc[0] == record["params"]


def test_a_branch_is_the_run_from_scratch_to_the_bit(branched, fields, tmp_path):
    alone = fields | {"grid": fields["grid"] | {"schedule": "independent"}}
    assert not commands.sweep(alone, workdir=tmp_path).failed
    name = "d01-n192-seed0"
    scratch = ema_params(tmp_path / name)
    assert equal(ema_params(branched / name), scratch)
    assert not equal(ema_params(branched / "d01-trunk-seed0"), scratch), "control"
    steps = [line["step"] for line in run_folder.read_metrics(branched / name)]
    assert steps == sorted(steps), "the trunk's lines come first"


def test_lengths_can_be_added_later(branched, fields):
    longer = fields | {"grid": fields["grid"] | {"num_samples": [128, 192, 256]}}
    lines = []
    assert not commands.sweep(longer, workdir=branched, report=lines.append).failed
    assert sum("finished before" in line for line in lines) == 2
    ends = runs.load_runs(branched).query("cooldown_end")
    assert sorted(ends["samples"]) == [128, 192, 256]


def test_a_branch_of_another_config_is_refused(branched, tmp_path):
    config = configs.load(branched / "d01-n128-seed0")
    options = {"workdir": tmp_path / "run", "report": lambda line: None}
    other = dataclasses.replace(config, seed=1)
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        commands.train(other, branch_from=branched / "d01-trunk-seed0", **options)
    with pytest.raises(ValueError, match="cooldown_steps: not 0 there"):
        commands.train(config, branch_from=branched / "d01-n192-seed0", **options)
