# SPDX-License-Identifier: Apache-2.0
"""Sweeps: the grid of cells, and a launcher that may be killed at any moment."""

import json

import pytest

from rfjax import commands, run_folder
from rfjax.main import load_config_file
from rfjax.scaling import runs
from rfjax.scaling.grid import Cell, GridConfig, make_cells
from rfjax.scaling.sweep import run_locally

BASE = {
    "model": {"context_dim": 32},
    "optimizer": {"learning_rate": 4e-3},
    "train": {"global_batch_size": 8},
}


def test_cells_follow_the_rules():
    grid = GridConfig(
        depths=(4, 1), num_steps=(100, 40), seeds=(0, 1), learning_rate_exponent=-1.0
    )
    cells = make_cells(BASE, grid)
    assert [cell.name for cell in cells][:3] == [
        "d01-s40-seed0", "d01-s40-seed1", "d01-s100-seed0",
    ]  # fmt: skip
    assert len({cell.name for cell in cells}) == 8
    rates = {c.fields["model"]["depth"]: c.fields["optimizer"] for c in cells}
    assert rates[1]["learning_rate"] == pytest.approx(8e-3)
    assert rates[4]["learning_rate"] == pytest.approx(2e-3)
    assert cells[0].fields["optimizer"]["cooldown_steps"] == 8
    assert BASE["optimizer"] == {"learning_rate": 4e-3}, "the base stays as it was"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": ()}, r"grid\.depths must hold different values, at least one"),
        ({"num_steps": (5, 5)}, r"grid\.num_steps must hold different values"),
        ({"depths": (0, 1)}, r"grid\.depths must be positive, got \[0, 1\]"),
        ({"cooldown_fraction": 1.0}, r"grid\.cooldown_fraction must be in \[0, 1\)"),
        ({"reference_depth": 0}, r"grid\.reference_depth must be at least 1"),
    ],
)
def test_wrong_grids_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GridConfig(**({"depths": (1, 2), "num_steps": (10,)} | fields))


def launch(tmp_path, behaviour, names=("a", "b", "c")):
    """Trains by `behaviour(name)`; returns (failed, calls, lines)."""
    calls, lines = [], []

    def train_cell(cell, folder):
        calls.append(cell.name)
        folder.mkdir(parents=True, exist_ok=True)
        finished = behaviour(cell.name)
        run_folder.update_run(folder, status="finished" if finished else "stopped")
        return finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rfjax.scaling.sweep.write_table", lambda workdir: None)
        failed = run_locally(
            [Cell(name, {}) for name in names],
            workdir=tmp_path,
            train_cell=train_cell,
            report=lines.append,
        )
    return failed, calls, lines


def test_finished_cells_are_skipped(tmp_path):
    _, calls, _ = launch(tmp_path, lambda name: True, names=("a",))
    assert calls == ["a"]
    failed, calls, lines = launch(tmp_path, lambda name: True)
    assert (failed, calls) == ([], ["b", "c"])
    assert "finished before" in lines[0]


def test_a_cell_that_fails_is_tried_twice_and_does_not_end_the_sweep(tmp_path):
    def behaviour(name):
        if name == "b":
            raise ValueError("diverged")
        return True

    failed, calls, lines = launch(tmp_path, behaviour)
    assert (failed, calls) == (["b"], ["a", "b", "b", "c"])
    assert any("b failed (attempt 2): diverged" in line for line in lines)


def test_a_request_to_stop_stops_the_sweep(tmp_path):
    _, calls, lines = launch(tmp_path, lambda name: name != "b")
    assert calls == ["a", "b"]
    assert "run the same command to go on" in lines[-1]
    _, calls, _ = launch(tmp_path, lambda name: True)
    assert calls == ["b", "c"]


def test_two_sweeps_cannot_share_a_folder(tmp_path):
    with run_folder.exclusive(tmp_path):
        with pytest.raises(ValueError, match="in use by another"):
            launch(tmp_path, lambda name: True)


def test_a_small_sweep_end_to_end(tmp_path):
    """Real training, through to the runs table that a fit reads."""
    fields = {
        "base": load_config_file("configs/debug.py"),
        "grid": {"depths": [1], "num_steps": [4, 6], "cooldown_fraction": 0.5},
    }
    fields["base"]["optimizer"] |= {"warmup_steps": 1}
    fields["base"]["data"] |= {"latent_shape": [4, 4, 16], "num_validation": 8}
    lines = []
    options = {"workdir": tmp_path / "sweep", "report": lines.append}
    assert commands.sweep(fields, dry_run=True, **options) == []
    assert "d01-s6-seed0" in lines[0]
    assert not (tmp_path / "sweep").exists()
    assert commands.sweep(fields, **options) == []
    table = runs.load(tmp_path / "sweep")
    ends = table[table["cooldown_end"]]
    assert sorted(ends["samples"]) == [4 * 32, 6 * 32]
    assert (ends["val_ema/loss"] > 0).all()
    assert (tmp_path / "sweep" / "runs.csv").read_text().count("\n") == len(table) + 1
    record = json.loads((tmp_path / "sweep/d01-s4-seed0/run.json").read_text())
    assert ends["params"].iloc[0] == record["params"]
    bad = fields | {"grid": {"depths": [1], "num_steps": [4], "dephts": 3}}
    with pytest.raises(ValueError, match=r"grid\.dephts is not a config field"):
        commands.sweep(bad, **options)
