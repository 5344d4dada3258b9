# SPDX-License-Identifier: Apache-2.0
"""Sweeps: cells that are files, trained together or alone, here or elsewhere."""

import copy
import dataclasses
import json
import shutil
from typing import ClassVar

import jax
import numpy as np
import pytest

from rfjax import checkpoint, commands, main, run_folder, whole_files
from rfjax.config import config_to_dict, from_config_dict, load_config
from rfjax.models import make_model
from rfjax.scaling.study import manifest, runs
from rfjax.scaling.study.launchers import LAUNCHERS
from rfjax.scaling.study.manifest import SweepCell
from rfjax.scaling.study.sweep import choose_cells

TRUNK, SHORT, LONG = CELLS = ("d01-trunk-seed0", "d01-n128-seed0", "d01-n192-seed0")


def silent(line):
    """Reports nothing."""


@dataclasses.dataclass(frozen=True)
class IdleLauncher:
    """Leaves the cells as files."""

    runs_here: ClassVar[bool] = False

    def launch(self, launch):
        return []


@pytest.fixture
def plan(sweep_fields, monkeypatch):
    """Changes of the fields -> the sweep with them, its cells written, none trained."""
    monkeypatch.setitem(LAUNCHERS, "idle", IdleLauncher)

    def write(workdir, *, base=(), grid=()):
        fields = copy.deepcopy(sweep_fields)
        for section, values in dict(base).items():
            fields["base"][section] |= values
        fields["grid"] |= dict(grid)
        commands.sweep(fields, workdir=workdir, launcher="idle", report=silent)
        return workdir

    return write


@pytest.fixture(scope="module")
def branched(sweep_fields, tmp_path_factory):
    """A finished sweep; only copies of it may be changed."""
    workdir = tmp_path_factory.mktemp("sweep") / "branched"
    assert not commands.sweep(sweep_fields, workdir=workdir, report=silent).failed
    return workdir


@pytest.fixture
def copied(branched, tmp_path):
    """The same elsewhere."""
    shutil.copytree(branched, tmp_path / "elsewhere" / "copied")
    return tmp_path / "elsewhere" / "copied"


def ema_params(workdir):
    config = load_config(workdir)
    abstract = make_model(config.model).abstract_params()
    return jax.tree.leaves(checkpoint.restore_params(workdir, abstract))


def equal(left, right):
    return all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))


def contents(folder):
    """Everything that is there, locks aside: those are of whoever looks."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != run_folder.LOCK_FILE
    }


def train_alone(workdir, name):
    """Trains a cell by its command line."""
    (cell,) = (c for c in manifest.read(workdir).cells if c.name == name)
    assert main.run(cell.command_line(workdir)[1:]) == 0


# -- Together ------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(sweep_fields, tmp_path):
    lines = []
    options = {"workdir": tmp_path / "sweep", "report": lines.append}
    assert not commands.sweep(sweep_fields, dry_run=True, **options).failed
    assert LONG in lines[0]
    bad_grid = {"depths": [1], "num_samples": [128], "dephts": 3}
    for bad, message in (
        ({"grid": bad_grid}, r"grid\.dephts is not a config field"),
        ({"forcast": {}}, r"forcast is not a config field; did you mean forecast"),
    ):
        with pytest.raises(ValueError, match=message):
            commands.sweep(sweep_fields | bad, **options)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_becomes_a_runs_table(branched):
    table = runs.load_runs(branched)
    ends = table[table["cooldown_end"]]
    assert sorted(ends["samples"]) == [128, 192], "the trunk's end is no point"
    assert set(ends["trunk"]) == {TRUNK}
    assert (ends["val_ema/loss"] > 0).all()
    assert (branched / "runs.csv").read_text().count("\n") == len(table) + 1
    record = json.loads((branched / SHORT / "run.json").read_text())
    assert ends["params"].iloc[0] == record["params"]


def test_a_branch_is_the_run_from_scratch_to_the_bit(branched, sweep_fields, tmp_path):
    grid = sweep_fields["grid"] | {"schedule": "independent"}
    alone = sweep_fields | {"grid": grid}
    assert not commands.sweep(alone, workdir=tmp_path, report=silent).failed
    scratch = ema_params(tmp_path / LONG)
    assert equal(ema_params(branched / LONG), scratch)
    assert not equal(ema_params(branched / TRUNK), scratch), "control"
    steps = [line["step"] for line in run_folder.read_metrics(branched / LONG)]
    assert steps == sorted(steps), "the trunk's lines come first"


def test_lengths_can_be_added_later_and_left_out_again(copied, sweep_fields):
    longer = sweep_fields["grid"] | {"num_samples": [128, 192, 256]}
    lines = []
    options = {"workdir": copied, "report": lines.append}
    assert not commands.sweep(sweep_fields | {"grid": longer}, **options).failed
    assert sum("finished before" in line for line in lines) == 2
    ends = runs.load_runs(copied).query("cooldown_end")
    assert sorted(ends["samples"]) == [128, 192, 256]
    # The trunk, which is longer now than asked for, serves as well.
    lines.clear()
    assert not commands.sweep(sweep_fields, **options).failed
    assert sum("finished before" in line for line in lines) == 3


def test_two_sweeps_cannot_share_a_folder(plan, tmp_path):
    with run_folder.exclusive(tmp_path):
        with pytest.raises(ValueError, match="in use by another"):
            plan(tmp_path)
    assert contents(tmp_path) == {}


# -- Alone ---------------------------------------------------------------------------


def test_every_cell_is_a_file_before_one_starts(plan, tmp_path):
    workdir = plan(tmp_path / "sweep")
    listed = manifest.read(workdir)
    assert tuple(cell.name for cell in listed.cells) == CELLS
    assert [(cell.trunk, cell.fork_step, cell.num_steps) for cell in listed.cells] == [
        (None, None, 3),
        (TRUNK, 2, 4),
        (TRUNK, 3, 6),
    ]
    trunk, short, long = (cell.new_flops for cell in listed.cells)
    assert 0 < short < trunk == long
    for name in CELLS:
        fields = json.loads((workdir / name / "config.json").read_text())
        assert fields == config_to_dict(from_config_dict(fields)), "complete"
        assert run_folder.config_hash(fields) in listed.config_hashes
        assert not list((workdir / name).glob("run.json"))
    with pytest.raises(FileNotFoundError, match="holds no run"):
        runs.load_runs(workdir)


def test_a_cell_alone_is_the_cell_of_the_sweep_to_the_bit(plan, branched, tmp_path):
    """Trained from its files, the branch on a copy of the folder somewhere else."""
    workdir = plan(tmp_path / "sweep")
    train_alone(workdir, TRUNK)
    table = runs.load_runs(workdir)
    assert set(table["run"]) == {TRUNK}, "no row of what has not started"
    moved = tmp_path / "another" / "machine"
    shutil.copytree(workdir, moved)
    shutil.move(workdir, tmp_path / "gone")
    train_alone(moved, LONG)
    assert equal(ema_params(moved / LONG), ema_params(branched / LONG))
    record, expected = (run_folder.read_run(f / LONG) for f in (moved, branched))
    assert record == expected
    # Control: what is compared depends on the config.
    other = plan(tmp_path / "other", grid={"seeds": [1], "num_samples": [192]})
    train_alone(other, "d01-n192-seed1")
    assert not equal(ema_params(other / "d01-n192-seed1"), ema_params(branched / LONG))


def test_a_branch_leaves_the_trunk_where_it_is_told_to(branched, copied, tmp_path):
    lines = []
    options = {"workdir": tmp_path / "run", "report": lines.append}
    trunk, config = copied / TRUNK, load_config(branched / SHORT)
    for source, message in (
        (f"{trunk}:1", r":1 must name a checkpoint up to step 2, .* steps \[2, 3\]"),
        (f"{trunk}:3", r":3 must name a checkpoint up to step 2, where the cooldown"),
        (tmp_path / "none", r"none holds no config\.json; train it first"),
        (f"{trunk}:new", r":new holds no config\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            commands.train(config, branch_from=source, **options)
    assert not (tmp_path / "run").exists()
    long = load_config(branched / LONG)
    commands.train(long, branch_from=f"{trunk}:2", **options)
    assert lines[0] == f"branching from {trunk} at step 2"
    assert equal(ema_params(tmp_path / "run"), ema_params(branched / LONG))
    # A run on its way needs the checkpoint no more, which the trunk may have dropped.
    shutil.rmtree(trunk / "checkpoints" / "2")
    commands.train(long, branch_from=f"{trunk}:2", **options)


def test_a_branch_of_another_config_is_refused(branched, tmp_path):
    config = load_config(branched / SHORT)
    options = {"workdir": tmp_path / "run", "report": silent}
    other = dataclasses.replace(config, seed=1)
    for step in ("", ":2"):
        trunk = f"{branched / TRUNK}{step}"
        with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
            commands.train(other, branch_from=trunk, **options)
    with pytest.raises(ValueError, match="cooldown_steps: not 0 there"):
        commands.train(config, branch_from=branched / LONG, **options)
    shutil.copytree(branched / TRUNK, tmp_path / "rate:7")  # no step, but a name
    with pytest.raises(ValueError, match=r"rate:7 has another \(seed: 0 there"):
        commands.train(other, branch_from=tmp_path / "rate:7", **options)


def test_a_branch_that_was_killed_while_it_branched_starts_again(
    plan, branched, tmp_path, monkeypatch
):
    """Its config was there first, and it has the trunk's metrics and no checkpoint."""
    workdir = plan(tmp_path)
    shutil.copytree(branched / TRUNK, workdir / TRUNK, dirs_exist_ok=True)

    def kill(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "inherit", kill)
        with pytest.raises(KeyboardInterrupt):
            train_alone(workdir, LONG)
    assert run_folder.read_metrics(workdir / LONG)
    train_alone(workdir, LONG)
    assert equal(ema_params(workdir / LONG), ema_params(branched / LONG))


def test_only_the_named_cells_are_trained(sweep_fields, tmp_path):
    cells = [
        SweepCell(name=name, num_steps=1, new_flops=1.0, trunk=trunk)
        for name, trunk in (("t", None), ("a", "t"), ("b", "t"), ("c", None))
    ]

    def chosen(*names):
        return "".join(cell.name for cell in choose_cells(cells, names))

    assert (chosen(), chosen("b"), chosen("c", "a")) == ("tabc", "tb", "tac")
    lines = []
    options = {"workdir": tmp_path / "sweep", "report": lines.append, "dry_run": True}
    commands.sweep(sweep_fields, cells=[SHORT], **options)
    assert SHORT in lines[0]
    assert LONG not in lines[0]
    assert lines[1].startswith(f"{TRUNK} is trained too")
    with pytest.raises(ValueError, match=f"got 'd01-n128'; did you mean {SHORT}"):
        commands.sweep(sweep_fields, cells=["d01-n128"], **options)


# -- When the sweep changes ------------------------------------------------------------


RATE = {"optimizer": {"learning_rate": 1.0}}


def test_cells_that_have_not_started_follow_the_sweep(plan, tmp_path):
    workdir = plan(tmp_path)
    plan(workdir, base=RATE)
    for name in CELLS:
        assert load_config(workdir / name).optimizer.learning_rate > 1
    # A lone cell, though, does not: it may be the wrong folder.
    config = load_config(workdir / SHORT)
    before = contents(workdir)
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        commands.train(
            dataclasses.replace(config, seed=1), workdir=workdir / SHORT, report=silent
        )
    assert contents(workdir) == before


@pytest.mark.parametrize("status", ["finished", "stopped"])
def test_cells_that_have_started_keep_their_config(plan, copied, status):
    run_folder.update_run(copied / SHORT, status=status)
    before = contents(copied)
    message = f"{SHORT} belongs to another config .*learning_rate: .* there, .* here"
    for name in (TRUNK, LONG):  # a cell that comes before, and one that comes after
        (copied / name).rename(copied / f"{name}-aside")
    with pytest.raises(ValueError, match=message):
        plan(copied, base=RATE)
    for name in (TRUNK, LONG):
        (copied / f"{name}-aside").rename(copied / name)
    assert contents(copied) == before
    # What may change between a run and its continuation changes, while it is on.
    plan(copied, base={"validation": {"every_steps": 7}})
    every_steps = load_config(copied / SHORT).validation.every_steps
    assert (every_steps == 7) == (status == "stopped")


def test_a_cell_that_starts_now_does_so_with_the_config_that_it_has(plan, tmp_path):
    workdir = plan(tmp_path)
    before = contents(workdir)
    with run_folder.exclusive(workdir / LONG):  # as `rfjax train` does first
        plan(workdir)  # nothing has changed
        with pytest.raises(ValueError, match=f"{LONG} is in use by another"):
            plan(workdir, base=RATE)
        assert contents(workdir) == before


def test_a_sweep_of_an_earlier_version_resumes_before_its_first_step(plan, tmp_path):
    """It kept no list of cells, and its configs had fewer fields."""
    workdir = plan(tmp_path)
    wanted = contents(workdir)
    (workdir / "sweep.json").unlink()
    path = workdir / LONG / "config.json"
    fields = json.loads(path.read_text())
    del fields["metric_writers"], fields["model"]["kind"]
    path.write_text(json.dumps(fields))
    plan(workdir)
    assert contents(workdir) == wanted
    fields["seed"] = 77  # control: edited besides
    path.write_text(json.dumps(fields))
    (workdir / "sweep.json").unlink()
    with pytest.raises(ValueError, match="that no sweep wrote"):
        plan(workdir)


def test_a_branch_before_its_trunk_is_still_a_branch(plan, branched, tmp_path):
    """Laws count runs of one trunk as related, in whatever order they were trained."""
    workdir = plan(tmp_path)
    train_alone(workdir, LONG)
    assert run_folder.read_run(workdir / LONG)["trunk"] == TRUNK
    assert equal(ema_params(workdir / LONG), ema_params(branched / LONG))


def test_a_branch_from_a_damaged_checkpoint_is_refused(copied, tmp_path):
    trunk = copied / TRUNK
    step = checkpoint.finished_steps(trunk)[-1]
    largest = max(
        (
            path
            for path in (trunk / "checkpoints" / str(step)).rglob("*")
            if path.is_file()
        ),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    config = load_config(copied / LONG)
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        commands.train(config, workdir=tmp_path / "new", branch_from=f"{trunk}:{step}")
    assert not checkpoint.finished_steps(tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (f"{LONG}/thesis.tex", "years of work", r"is not empty and holds no config\."),
        (LONG, "years of work", r"is not empty and holds no config\.json"),
        (f"{LONG}/config.json", '{"lr": 1}', r"config\.json that no sweep wrote, or"),
        (f"{LONG}/config.json", "years of work", r"config\.json must be JSON"),
        ("sweep.json", '{"cells": [{"x": 1}]}', r"sweep\.json that no sweep wrote"),
        ("sweep.json", "years of work", r"sweep\.json that no sweep wrote"),
        ("runs.csv", "years of work", r"runs\.csv that no sweep wrote"),
    ],
)
def test_files_of_others_are_not_overwritten(plan, tmp_path, name, content, message):
    path = tmp_path / "sweep" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        plan(tmp_path / "sweep")
    assert contents(tmp_path) == before


def test_a_config_that_was_edited_by_hand_is_not_overwritten(plan, tmp_path):
    workdir = plan(tmp_path)
    path = workdir / LONG / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    before = contents(workdir)
    with pytest.raises(ValueError, match=r"no sweep wrote, or that was edited"):
        plan(workdir)
    assert contents(workdir) == before


def test_killed_between_any_two_writes_a_sweep_resumes(plan, tmp_path, monkeypatch):
    """The first sweep, one that changes its cells, and one that changes them again."""
    real, left = whole_files.write_json, [0]

    def write_or_die(path, value):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(path, value)

    def killed_after(number, workdir, **changes):
        left[0] = number
        with monkeypatch.context() as patch:
            patch.setattr(whole_files, "write_json", write_or_die)
            with pytest.raises(KeyboardInterrupt):
                plan(workdir, **changes)

    second, third = {"base": RATE}, {"grid": {"learning_rate_exponent": -1.0}}
    fresh = contents(plan(tmp_path / "fresh", **third))
    for number in range(4):  # the list and three configs
        workdir = tmp_path / str(number)
        killed_after(number, workdir)
        plan(workdir)
        killed_after(number, workdir, **second)
        killed_after(3 - number, workdir, **third)
        plan(workdir, **third)
        assert contents(workdir).keys() == fresh.keys()
        for name in CELLS:
            assert load_config(workdir / name) == load_config(tmp_path / "fresh" / name)
