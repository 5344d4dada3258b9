# SPDX-License-Identifier: Apache-2.0
"""Launchers: the contract of each, the one that trains here, how another is made."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import typing
from pathlib import Path
from typing import ClassVar

import pytest

from rfjax import commands, main, run_folder, schema, stopping, whole_files
from rfjax.scaling.study.launchers import LAUNCHERS, Launch, make_jobs
from rfjax.scaling.study.manifest import SweepCell
from rfjax.scaling.study.pace import Pace
from rfjax.train.divergence import TrainingDiverged

NUM_STEPS = 5
RUN = {  # what every run.json says
    "depth": 1, "params": 1, "image_tokens": 1, "context_tokens": 1,
    "train_flops_per_sample": 1.0,
}  # fmt: skip


def cell(name, *, num_steps=NUM_STEPS, trunk=None):
    return SweepCell(name=name, num_steps=num_steps, new_flops=1.0, trunk=trunk)


def launch(tmp_path, behaviour, names=("a", "b", "c"), *, kind="local", num_steps=5):
    """Trains by `behaviour(name)`; returns (failed, calls, lines)."""
    calls, lines = [], []

    def train_cell(cell):
        calls.append(cell.name)
        (tmp_path / cell.name).mkdir(parents=True, exist_ok=True)
        finished = behaviour(cell.name)
        status = "finished" if finished else "stopped"
        run_folder.update_run(
            tmp_path / cell.name, **RUN, status=status, step=NUM_STEPS
        )
        if not finished:
            raise stopping.Stopped(signal.SIGTERM)

    failed = schema.build(LAUNCHERS[kind], {}).launch(
        Launch(
            workdir=tmp_path,
            jobs=make_jobs([cell(name, num_steps=num_steps) for name in names]),
            train_cell=train_cell,
            report=lines.append,
        )
    )
    return failed, calls, lines


@pytest.mark.parametrize("kind", LAUNCHERS)
def test_a_launcher_keeps_its_contract(kind, tmp_path):
    """What needs no cluster: its fields, and that finished cells are left alone."""
    launcher = LAUNCHERS[kind]
    assert launcher.__doc__
    assert launcher.launch.__doc__
    assert launcher.__dataclass_params__.frozen
    assert isinstance(launcher.runs_here, bool)
    assert set(typing.get_type_hints(launcher.launch)) == {"launch", "return"}
    launch(tmp_path, lambda name: True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    failed, calls, _ = launch(tmp_path, lambda name: True, kind=kind)
    assert (failed, calls) == ([], [])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_cells_that_share_a_trunk_are_one_job(tmp_path):
    cells = [cell("t"), cell("a", trunk="t"), cell("alone"), cell("b", trunk="t")]
    jobs = make_jobs(cells)
    assert [[c.name for c in job] for job in jobs] == [["t", "a", "b"], ["alone"]]
    for name in ("t", "alone"):
        (tmp_path / name).mkdir()
        run_folder.update_run(tmp_path / name, status="finished", step=NUM_STEPS)
    left = Launch(workdir=tmp_path, jobs=jobs, train_cell=None, report=print)
    assert [[c.name for c in job] for job in left.unfinished_jobs()] == [["a", "b"]]


def test_wrong_launchers_are_named(sweep_fields, tmp_path):
    for kind, section, message in (
        (
            "lcoal",
            {},
            r"launcher must be local, got .lcoal.; did you mean local",
        ),
        (None, {"kind": "slurn"}, r"launcher\.kind must be one of local, got 'slurn'"),
        (
            None,
            {"kind": "local", "queue": "a"},
            r"launcher\.queue is not a config f",
        ),
        ("local", [], r"launcher must be a section of fields, got \[\]"),
    ):
        fields = sweep_fields | {"launcher": section}
        with pytest.raises(ValueError, match=message):
            commands.sweep(fields, workdir=tmp_path / "sweep", launcher=kind)
    assert not (tmp_path / "sweep").exists()


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


def test_failures_are_warnings(tmp_path):
    said, warned = [], []

    def train_cell(cell):
        raise ValueError("no room")

    launch = Launch(
        workdir=tmp_path,
        jobs=make_jobs([cell("a")]),
        train_cell=train_cell,
        report=said.append,
        warn=warned.append,
    )
    assert schema.build(LAUNCHERS["local"], {}).launch(launch) == ["a"]
    assert said == []
    assert warned == [f"a failed (attempt {number}): no room" for number in (1, 2)]


def sweep_in_time(folder, *, overhead, speed_of_depth, depths, lengths):
    """(seconds left by `Pace`, seconds that are left) after every cell of a sweep.

    A cell takes `overhead` seconds, ten times that if it is the first of its depth, and
    its FLOPs at the speed of its depth.
    """
    cells = [
        SweepCell(
            name=f"d{depth}-{length}", num_steps=1, new_flops=length * depth**3,
            depth=depth,
        )
        for depth in depths
        for length in lengths
    ]  # fmt: skip
    seconds = [
        overhead * (10 if c.name.endswith(f"-{lengths[0]}") else 1)
        + c.new_flops / speed_of_depth(c.depth)
        for c in cells
    ]
    pace, found = Pace(folder), []
    for number, (done, spent) in enumerate(zip(cells, seconds, strict=True), 1):
        run = {"depth": done.depth, "train_flops_per_sample": float(done.depth**3)}
        (folder / done.name).mkdir(parents=True)
        run_folder.update_run(folder / done.name, **run)
        speed = speed_of_depth(done.depth) / done.depth**3
        lines = [
            {"step": step, "samples": step, "perf/samples_per_second": measured}
            for step, measured in enumerate((speed / 50, speed, speed), 1)
        ]  # the first interval includes compilation
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / done.name / "metrics.jsonl").write_text(text)
        pace.add(done, seconds=spent)
        found.append((pace.seconds_left(cells[number:]), sum(seconds[number:])))
    return found


@pytest.mark.parametrize("overhead", [0.0, 5.0, 60.0])
def test_the_time_left_is_honest_or_not_given(tmp_path, overhead):
    """Small models come first, and by FLOPs alone they are eight times too slow."""
    found = sweep_in_time(
        tmp_path,
        overhead=overhead,
        speed_of_depth=lambda depth: depth**0.6,  # measured in notebooks/study
        depths=(1, 2, 3, 4, 5, 6),
        lengths=(10, 20, 40),
    )
    given = [number for number, (guess, _) in enumerate(found) if guess is not None]
    assert given == list(range(6, 18)), "from the first cell of depth 3 on"
    for guess, truth in found[6:-1]:
        assert truth / 1.6 < guess < 1.6 * truth
    for guess, truth in found[15:]:  # all depths measured
        assert guess == pytest.approx(truth)
    assert found[-1] == (0, 0)


def test_no_time_is_given_before_one_is_known(tmp_path):
    pace = Pace(tmp_path)
    rest = [SweepCell(name="b", num_steps=1, new_flops=1.0, depth=1)]
    assert pace.seconds_left(rest) is None
    pace.add(cell("a"), seconds=1.0)
    assert pace.seconds_left(rest) is None  # no speed was measured
    found = sweep_in_time(
        tmp_path, overhead=1.0, speed_of_depth=float, depths=(1,), lengths=(10, 20, 40)
    )
    assert found[0][0] is None  # of a cell that need not compile nothing is known
    assert found[1][0] == pytest.approx(found[1][1])


def test_the_line_of_a_sweep_counts_cells(tmp_path, capsys):
    launch(tmp_path, lambda name: True, names=("a", "b"))
    line = capsys.readouterr().err.split("\r")[-1]
    assert "sweep: 2/2 cells" in line
    assert "FLOP" not in line
    assert "ends about" not in line


def test_a_cell_that_diverges_is_tried_once_and_does_not_end_the_sweep(tmp_path):
    def behaviour(name):
        if name == "b":
            raise TrainingDiverged("train/loss must stay finite")
        return True

    failed, calls, lines = launch(tmp_path, behaviour)
    assert (failed, calls) == (["b"], ["a", "b", "c"])
    assert "b diverged, the others go on: train/loss must stay finite" in lines


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


# -- Another launcher, as short as it gets -----------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptLauncher:
    """Writes a shell script that trains the cells one after the other.

    Attributes:
      path: of the script.
    """

    path: str = "sweep.sh"
    runs_here: ClassVar[bool] = False

    def launch(self, launch: Launch) -> list[str]:
        """Writes a line per cell that is not finished."""
        cells = [cell for job in launch.unfinished_jobs() for cell in job]
        lines = [shlex.join(cell.command_line(launch.workdir)) for cell in cells]
        whole_files.write_text(self.path, "\n".join(["set -e", *lines, ""]))
        launch.report(f"wrote {self.path}; run it with sh")
        return []


@pytest.fixture
def script(sweep_fields, tmp_path, monkeypatch):
    """The script of a sweep in `tmp_path / "sweep"`."""
    monkeypatch.setitem(LAUNCHERS, "script", ScriptLauncher)
    path = tmp_path / "sweep.sh"
    # A mesh for other machines: only a launcher that runs here looks for its devices.
    base = sweep_fields["base"] | {"mesh": {"data": 3}}
    section = {"launcher": {"kind": "script", "path": str(path)}}
    options = {"workdir": tmp_path / "sweep", "report": lambda line: None}
    elsewhere = sweep_fields | {"base": base} | section
    with pytest.raises(ValueError, match="devices"):
        commands.sweep(elsewhere, launcher="local", **options)
    commands.sweep(elsewhere, **options)
    commands.sweep(sweep_fields | section, launcher="script", **options)
    return path


def test_a_launcher_of_ten_lines_submits_a_sweep(script, sweep_fields, tmp_path):
    """Each line does its cell alone; the next sweep finds them finished."""
    lines = [shlex.split(line) for line in script.read_text().splitlines()[1:]]
    assert [words[:2] for words in lines] == [["rfjax", "train"]] * 3
    for words in lines:  # in this process: a new one takes seconds to start
        assert main.run(words[1:]) == 0

    def files():
        return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    said, folder = [], tmp_path / "sweep"
    before = files()
    assert not commands.sweep(sweep_fields, workdir=folder, report=said.append).failed
    assert sum("finished before" in line for line in said) == 3
    after = files()
    assert (after.pop(folder / "runs.csv").count(b"\n")) > 3
    assert after == before, "nothing but the table was written"


@pytest.mark.slow
def test_the_script_of_a_launcher_runs(script, tmp_path):
    tool = tmp_path / "bin" / "rfjax"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m rfjax.main "$@"\n')
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    root = Path(__file__).parents[3]
    subprocess.run(
        ["sh", script], check=True, cwd=root, env=os.environ | {"PATH": path}
    )
    runs = [run_folder.read_run(p.parent) for p in tmp_path.glob("sweep/*/run.json")]
    assert [run["status"] for run in runs] == ["finished"] * 3
