# SPDX-License-Identifier: Apache-2.0
import json

import pandas as pd
import pytest

from rfjax.scaling.laws.law import get_law
from rfjax.scaling.laws.points import select_points
from rfjax.scaling.study import runs

LOSS = runs.DEFAULT_LOSS


def test_one_row_for_every_evaluation(sweep):
    table = runs.load_runs(sweep)
    assert len(table) == 5 * 4 * 3
    assert list(table.columns[: len(runs.COLUMNS)]) == list(runs.COLUMNS)
    assert {"val/loss", LOSS, "val_ema/loss_t0", "val_ema/loss_t7"} < set(table)
    row = table[(table["run"] == "d2-1000000") & table["cooldown_end"]].iloc[0]
    assert row["params"] == 400_000
    assert row["params_without_adaln"] == 200_000
    assert row["train_flops"] == pytest.approx(384.0 * 400_000 * 1e6)
    assert row["tokens"] == 80 * 1e6
    assert row["wall_seconds"] == 60
    assert (row["depth"], row["seed"], row["data"]) == (2, 0, "emoji_scenes")
    assert row["validation_protocol"] == "val_v1"


def test_a_run_folder_alone_is_a_table(sweep):
    assert runs.load_runs(sweep / "d1-100000")["run"].unique().tolist() == ["d1-100000"]


def test_a_running_sweep_has_no_final_points_of_running_runs(tmp_path, new_run):
    new_run(tmp_path / "a", depth=1, samples=1000, loss=0.5)
    new_run(tmp_path / "b", depth=2, samples=1000, loss=0.4, status="running")
    (tmp_path / "c").mkdir()  # made, but not started
    new_run(tmp_path / "d", depth=3, samples=1000, loss=0.3, status="running", points=0)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 200, "samples": 2000, "val_ema/lo')  # being written
    table = runs.load_runs(tmp_path)
    assert table[table["cooldown_end"]]["run"].tolist() == ["a"]
    assert table["run"].tolist() == [*"aaabbbd"]
    assert table["reason"].tolist() == [""] * 6 + ["no evaluation yet"]


def test_a_cooldown_inside_a_run_counts(tmp_path, new_run):
    new_run(tmp_path / "a", depth=1, samples=1000, loss=0.5, status="running")
    path = tmp_path / "a" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["cooldown_end"] = True
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = runs.load_runs(tmp_path)
    assert table["cooldown_end"].tolist() == [False, True, False]


def test_the_end_of_a_trunk_is_no_point_and_its_branches_are_alike(tmp_path, new_run):
    new_run(tmp_path / "t", depth=1, samples=1000, loss=0.5, cooldown_steps=0)
    for name, samples in (("a", 600), ("b", 900)):
        new_run(
            tmp_path / name, depth=1, samples=samples, loss=0.4, trunk="t",
            cooldown_steps=20,
        )  # fmt: skip
    table = runs.load_runs(tmp_path)
    ends = table[table["cooldown_end"]]
    assert ends["run"].tolist() == ["a", "b"]
    points = select_points(
        ends,
        law=get_law("chinchilla"),
        size_measure="params",
        loss=LOSS,
        must_identify=False,
    )
    assert points.runs.tolist() == ["t", "t"]


def test_a_resumed_run_counts_its_last_word_and_all_its_time(tmp_path, new_run):
    new_run(tmp_path / "a", depth=1, samples=900, loss=0.5)
    again = [
        {"step": 60, "samples": 600, "perf/seconds": 15.0},
        {"step": 60, "samples": 600, LOSS: 0.4},
        {"step": 90, "samples": 900, "perf/seconds": 25.0},
        {"step": 90, "samples": 900, LOSS: 0.3},
    ]
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in again)
    table = runs.load_runs(tmp_path)
    assert table["samples"].tolist() == [300, 600, 900]
    assert table[LOSS].tolist() == [0.5, 0.4, 0.3]
    assert table["wall_seconds"].tolist() == [20, 60 + 15, 60 + 25]


def test_bad_files_are_named(tmp_path, new_run):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        runs.load_runs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        runs.load_runs(tmp_path)
    new_run(tmp_path / "a", depth=1, samples=900, loss=0.5)
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write("oops\n")
    with pytest.raises(
        ValueError, match=r"metrics.jsonl line 7 must be JSON, got 'oops'"
    ):
        runs.load_runs(tmp_path)
    (tmp_path / "a" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json must be JSON"):
        runs.load_runs(tmp_path)


def write_csv(folder, frame):
    path = folder / "points.csv"
    frame.to_csv(path, index=False)
    return path


def test_somebody_elses_table_gets_our_names(tmp_path):
    frame = pd.DataFrame({"N": [1e8, 1e9], "D": [1e9, 1e10], "L": [3.0, 2.5]})
    columns = {"params": "N", "samples": "D", "loss": "L"}
    table = runs.load_table(write_csv(tmp_path, frame), columns=columns)
    assert {"params", "samples", "loss", "cooldown_end", "reason"} == set(table)
    assert table["cooldown_end"].all()
    assert table["params"].tolist() == [1e8, 1e9]


def test_a_csv_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        runs.load_table(tmp_path / "none.csv")
    path = write_csv(tmp_path, pd.DataFrame({"N": [1.0], "loss": [2.0]}))
    with pytest.raises(ValueError, match="no column D; it has N, loss"):
        runs.load_table(path, columns={"params": "N", "samples": "D"})
    with pytest.raises(ValueError, match="one name, got several for N"):
        runs.load_table(path, columns={"params": "N", "samples": "N"})
    with pytest.raises(ValueError, match="several columns for loss"):
        runs.load_table(path, columns={"loss": "N"})


def test_a_saved_table_reads_back(sweep, tmp_path):
    table = runs.load_runs(sweep)
    table.to_csv(tmp_path / "runs.csv", index=False)
    again = runs.load_table(tmp_path / "runs.csv")
    assert again[LOSS].tolist() == pytest.approx(table[LOSS].tolist())
    for column in ("run", "cooldown_end", "reason"):
        assert again[column].tolist() == table[column].tolist()
