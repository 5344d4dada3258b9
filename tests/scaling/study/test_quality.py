# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pandas as pd
import pytest

from rfjax.scaling.study import quality, runs

LOSS = runs.DEFAULT_LOSS


def usable(table, loss=LOSS):
    return quality.mark_unusable(table, loss=loss, inputs=("params", "samples"))


def reasons_of(table):
    return dict(zip(table["run"], table["reason"], strict=True))


def test_only_cooled_down_points_are_fitted(sweep):
    table = usable(runs.load_runs(sweep))
    assert len(quality.fitted_rows(table)) == 20
    assert len(quality.fitted_rows(table, mid_run=True)) == 60
    assert quality.excluded_rows(table).empty


def test_diverged_runs_and_impossible_losses_are_named(tmp_path, new_run):
    new_run(tmp_path / "good", depth=1, samples=100, loss=0.5)
    new_run(tmp_path / "gone", depth=2, samples=100, loss=0.9, status="diverged")
    new_run(tmp_path / "nan", depth=3, samples=100, loss=float("nan"), points=1)
    new_run(tmp_path / "minus", depth=4, samples=100, loss=-0.1, points=1)
    table = usable(runs.load_runs(tmp_path))
    reasons = reasons_of(table)
    assert reasons == {
        "good": "",
        "gone": "the run diverged",
        "nan": "val_ema/loss is not a finite number",
        "minus": "val_ema/loss is negative",
    }
    assert quality.fitted_rows(table)["run"].tolist() == ["good"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("validation_protocol", "val_v2"), ("data", "emoji"), ("data_hash", "d2")],
)
def test_losses_that_were_not_measured_alike_are_refused(
    tmp_path, new_run, field, value
):
    new_run(tmp_path / "a", depth=1, samples=100, loss=0.5)
    new_run(tmp_path / "b", depth=2, samples=100, loss=0.5, **{field: value})
    table = usable(runs.load_runs(tmp_path))
    with pytest.raises(ValueError, match=f"mix several values of {field}: .*{value}"):
        quality.fitted_rows(table)


def test_losses_over_different_numbers_of_examples_are_refused(tmp_path, new_run):
    new_run(tmp_path / "a", depth=1, samples=100, loss=0.5)
    new_run(tmp_path / "b", depth=2, samples=100, loss=0.4)
    new_run(tmp_path / "few", depth=3, samples=100, loss=0.3, validated_on=2)
    table = usable(runs.load_runs(tmp_path))
    assert table["validation_samples"].tolist() == [64] * 6 + [2] * 3
    message = (
        r"several values of validation_samples: 64 \(2 rows: a, b\), 2 \(1 rows: few\);"
        r".* as with --where=\"validation_samples == 64\"\."
    )
    table.to_csv(tmp_path / "runs.csv", index=False)
    for each in (table, usable(runs.load_table(tmp_path / "runs.csv"))):
        with pytest.raises(ValueError, match=message):
            quality.fitted_rows(each)
        alike = quality.mark_unusable(
            each, loss=LOSS, inputs=("params",), where="validation_samples == 64"
        )
        assert quality.fitted_rows(alike)["run"].tolist() == ["a", "b"]


def test_a_run_that_changes_its_number_of_examples_is_not_one_curve(tmp_path, new_run):
    new_run(tmp_path / "a", depth=1, samples=100, loss=0.5)
    path = tmp_path / "a" / "metrics.jsonl"
    first = path.read_text().replace('"val/num_samples": 64', '"val/num_samples": 8', 1)
    path.write_text(first)
    table = usable(runs.load_runs(tmp_path))
    assert len(quality.fitted_rows(table)) == 1  # control: the last row alone
    with pytest.raises(ValueError, match=r"64 \(2 rows: a\), 8 \(1 rows: a\)"):
        quality.fitted_rows(table, mid_run=True)
    new_run(tmp_path / "old", depth=2, samples=100, loss=0.4, validated_on=None)
    with pytest.raises(ValueError, match=r"64 \(1 rows: a\), unknown \(1 rows: old\)"):
        quality.fitted_rows(usable(runs.load_runs(tmp_path)))


def test_a_cell_trained_twice_is_never_averaged(tmp_path, new_run):
    new_run(tmp_path / "a", depth=1, samples=100, loss=0.5, points=1)
    new_run(tmp_path / "copy", depth=1, samples=100, loss=0.5, points=1)
    new_run(tmp_path / "b", depth=2, samples=100, loss=0.4, points=1)
    new_run(tmp_path / "other", depth=2, samples=100, loss=0.41, points=1)
    new_run(tmp_path / "seed", depth=2, samples=100, loss=0.42, points=1, seed=1)
    table = usable(runs.load_runs(tmp_path))
    reasons = reasons_of(table)
    assert reasons["a"] == reasons["seed"] == ""
    assert reasons["copy"].startswith("repeats an earlier row: row 0")
    assert reasons["b"] == reasons["other"]
    assert "several losses: 0.4, 0.41" in reasons["b"]


def test_bad_rows_of_a_csv_are_named(tmp_path):
    frame = pd.DataFrame(
        {
            "params": [1e8, 2e8, 3e8, 4e8, "x", 6e8, 6e8, 7e8, 7e8],
            "samples": [1e9] * 9,
            "loss": ["3", "nan", "-1", "diverged", "2", "1", "1", "1", "2"],
        }
    )
    frame.to_csv(tmp_path / "points.csv", index=False)
    table = usable(runs.load_table(tmp_path / "points.csv"), "loss")
    assert table["reason"].tolist() == [
        "",
        "loss is not a finite number",
        "loss is negative",
        "loss is not a finite number: diverged",
        "params is not a positive number: x",
        "",
        "repeats an earlier row: row 5, same loss",
        *["one cell with several losses: 1, 2"] * 2,
    ]
    assert quality.fitted_rows(table)["loss"].tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    "text", ["1,000,000", "1 000 000", "1'000'000", "1_000_000", "1,5", "2,5e6"]
)
def test_a_number_with_separators_is_named(tmp_path, text):
    frame = pd.DataFrame({"params": [text, "1e6"], "samples": 1e6, "loss": 1.0})
    frame.to_csv(tmp_path / "points.csv", index=False)
    table = usable(runs.load_table(tmp_path / "points.csv"), "loss")
    assert table["reason"].tolist() == [f"params has a separator in it: {text}", ""]
    rows = quality.count_rows(table, quality.fitted_rows(table), with_remedies=True)
    assert rows == (
        "1 of 2 rows usable: 1 'params has a separator in it' (write numbers as "
        "1000000.5 or 1e6)"
    )


def test_rows_that_differ_in_what_the_law_leaves_out_are_different_cells():
    table = pd.DataFrame(
        {
            "params": [1.0, 2.0, 2.0, 2.0, 2.0],
            "samples": [5.0, 5.0, 6.0, 6.0, 6.0],
            "train_flops": [9.0, 9.0, 9.0, 8.0, 8.0],
            "loss": [4.0, 3.0, 2.0, 1.0, 1.5],
            "reason": "",
            "cooldown_end": True,
        }
    )
    for inputs in (("train_flops",), ("params",), ("samples",), ("params", "samples")):
        found = quality.mark_unusable(table, loss="loss", inputs=inputs)
        assert found["reason"].tolist() == [
            "", "", "", *["one cell with several losses: 1, 1.5"] * 2
        ]  # fmt: skip


def test_a_condition_tells_apart_what_would_be_one_cell():
    table = pd.DataFrame(
        {"params": [1.0, 1.0], "loss": [2.0, 3.0], "rate": ["a", "b"], "reason": ""}
    )
    found = quality.mark_unusable(
        table, loss="loss", inputs=("params",), where="rate == 'b'"
    )
    assert found["reason"].tolist() == ["left out: not rate == 'b'", ""]


def test_the_same_index_twice_marks_only_the_row():
    table = pd.DataFrame({"params": [1.0, 2.0], "loss": [2.0, -3.0], "reason": ""})
    found = quality.mark_unusable(
        pd.concat([table, table + {"params": 3, "loss": 0, "reason": ""}]),
        loss="loss",
        inputs=("params",),
    )
    assert found["reason"].tolist() == ["", "loss is negative"] * 2


def test_marking_leaves_the_callers_table_alone():
    table = pd.DataFrame({"params": [1.0], "samples": [1.0], "loss": [np.nan]})
    table["reason"] = ""
    usable(table, "loss")
    assert table["reason"].tolist() == [""]


def test_missing_columns_are_named():
    table = pd.DataFrame({"N": [1.0], "loss": [2.0], "reason": [""]})
    with pytest.raises(ValueError, match="no column params, samples; it has N, loss"):
        usable(table, "loss")
