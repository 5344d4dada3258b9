# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from rfjax import checksums
from rfjax.scaling.report.folder import run_fit

FIGURES = {
    "loss_curves",
    "loss_flops",
    "loss_surface",
    "residuals",
    "per_timestep",
    "prediction",
    "isoflop",
}


@pytest.fixture
def report(sweep, tmp_path):
    return run_fit(
        runs=sweep,
        out=tmp_path / "report",
        num_bootstraps=100,
        budgets=[1e15],
        forecasts=[{"depth": 7, "samples": 1e7}],
        json_file=tmp_path / "copy" / "fit.json",
    )


def test_points_in_mid_run_are_fitted_on_request(sweep, report, tmp_path):
    options = {"num_bootstraps": 100, "holdout_largest": False, "out": tmp_path / "mid"}
    every = run_fit(runs=sweep, mid_run=True, **options).document
    assert (report.document["num_points"], every["num_points"]) == (20, 60)


def test_rows_are_excluded_on_request_with_the_reason(sweep, tmp_path):
    options = {"runs": sweep, "num_bootstraps": 100, "holdout_largest": False}
    kept = run_fit(where="depth >= 2", out=tmp_path / "kept", **options).document
    assert kept["num_points"] == 16
    assert {row["reason"] for row in kept["excluded"]} == {"left out: not depth >= 2"}
    for where in ("depth", "dephts > 1", "depth >="):
        with pytest.raises(ValueError, match="where must be a condition on columns"):
            run_fit(where=where, out=tmp_path / "bad", **options)
    assert not (tmp_path / "bad").exists()


def test_a_sweep_becomes_a_page_figures_and_json(report, planted, tmp_path):
    out = tmp_path / "report"
    assert {path.stem for path in out.glob("*.png")} == FIGURES
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    document = json.loads((out / "fit.json").read_text())
    assert document == json.loads((tmp_path / "copy" / "fit.json").read_text())
    for name, value in planted.laptop.items():
        assert set(document[name]) == {"value", "low", "high"}
        assert document[name]["low"] <= value <= document[name]["high"]
    assert document["size_measure"] == "params"
    assert document["loss"] == "val_ema/loss"
    assert len(document["runs"]) == len(document["config_hashes"]) == 20
    assert document["code_versions"] == ["0.1.0"]
    assert document["validation_protocols"] == ["val_v1"]
    assert document["options"]["delta"] == 1e-3
    assert document["options"]["num_bootstraps"] == 100
    assert document["num_mid_run_points"] == 40
    assert set(document["per_timestep"]) == {f"{k / 8:g}" for k in range(8)}
    assert len(document["holdout"]["predictions"]) == 4
    assert document["compute_optimal"]["budgets"][0]["flops"] == 1e15
    forecast = document["forecasts"][0]
    assert forecast["depth"] == 7
    assert forecast["size"] == pytest.approx(50_000 * 7**3)
    truth = planted.loss(planted.laptop, forecast["size"], 1e7)
    assert forecast["outcome"]["low"] < truth < forecast["outcome"]["high"]

    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert not re.search(r'(src|href)="?http', page)  # self-contained
    assert not list(tmp_path.glob(".report*"))
    table = pd.read_csv(out / "points.csv")
    assert len(table) == 60
    text = report.summary()
    assert text.startswith("L(N, D) = E + A / N^alpha + B / D^beta\n  E = 0.4")
    assert "held out: a fit without size" in text


def test_a_csv_becomes_a_report_and_an_old_report_is_replaced(planted, tmp_path):
    table = planted.table(
        planted.chinchilla, np.logspace(8, 10, 5), np.logspace(9, 11, 5), noise=0.003
    )
    table.loc[3, "loss"] = np.nan
    table = table.rename(columns={"params": "N", "samples": "D", "loss": "L"})
    table.to_csv(tmp_path / "points.csv", index=False)
    out = tmp_path / "report"
    out.mkdir()
    (out / "old.png").write_text("")
    written = checksums.compute(out, [out / "old.png"])
    (out / "fit.json").write_text(json.dumps({"files": written}))
    columns = {"params": "N", "samples": "D", "loss": "L"}
    report = run_fit(
        table=tmp_path / "points.csv", columns=columns, out=out, num_bootstraps=100
    )
    names = [path.name for path in out.iterdir()]
    assert sorted(names) == sorted([*report.document["files"], "fit.json"])
    assert "old.png" not in report.document["files"]
    assert report.document["excluded"] == [
        {"row": 3, "run": "", "reason": "loss is not a finite number"}
    ]
    assert "loss is not a finite number" in (out / "index.html").read_text()
    assert "6 N D" in report.document["compute_optimal"]["cost"]["source"]


@pytest.mark.parametrize("law", ["size", "samples", "compute"])
def test_the_laws_of_one_input_are_reported_too(planted, tmp_path, law):
    flops = np.logspace(14, 18, 9)
    frame = pd.DataFrame({"loss": 0.5 + (3e11 / flops) ** 0.2})
    for name in ("params", "samples", "train_flops"):
        frame[name] = flops
    frame.to_csv(tmp_path / "points.csv", index=False)
    report = run_fit(
        table=tmp_path / "points.csv", out=tmp_path / "out", law=law, num_bootstraps=100
    )
    assert (tmp_path / "out" / "law.png").is_file()
    assert report.document["E"]["value"] == pytest.approx(0.5)
    assert report.document["compute_optimal"] is None


def test_a_refused_fit_writes_nothing(planted, tmp_path):
    table = planted.table(planted.laptop, np.logspace(5, 7, 9), [1e6])
    table.to_csv(tmp_path / "points.csv", index=False)
    with pytest.raises(ValueError, match="B and beta are not identified"):
        run_fit(table=tmp_path / "points.csv", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["points.csv"]


def tree(folder):
    """Every file below a folder with its content, links as links."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    "name", ["sweep", "sweep/..", ".", "..", "link", "report", "file", "listed"]
)
def test_what_is_no_report_is_left_alone(sweep, tmp_path, monkeypatch, name):
    """A report there, or a file of that name, does not make the folder a report."""
    work = tmp_path / "work"
    (work / "here").mkdir(parents=True)
    monkeypatch.chdir(work / "here")
    shutil.copytree(sweep, work / "here" / "sweep")
    run_fit(runs="sweep", out="report", num_bootstraps=100, holdout_largest=False)
    for folder in ("sweep", ".", "..", "listed"):
        (work / "here" / folder).mkdir(exist_ok=True)
        shutil.copy("report/fit.json", folder)
    (work / "here" / "report" / "thesis.tex").write_text("years of work")
    (work / "here" / "link").symlink_to("sweep")
    (work / "here" / "file").write_text("kept")
    # A report holds only files; a folder of such a name is not part of it.
    (work / "here" / "listed" / "index.html").mkdir()
    (work / "here" / "listed" / "index.html" / "thesis.tex").write_text("kept")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"^out .*(must|holds files that no earlier)"):
        run_fit(runs="sweep", out=name, num_bootstraps=100, holdout_largest=False)
    assert tree(tmp_path) == before


def test_a_file_that_appears_while_the_report_is_made_stays(
    sweep, tmp_path, monkeypatch
):
    options = {"runs": sweep, "num_bootstraps": 100, "holdout_largest": False}
    run_fit(out=tmp_path / "report", **options)

    def page(*args):
        (tmp_path / "report" / "notes.txt").write_text("kept")
        return ""

    monkeypatch.setattr("rfjax.scaling.report.folder.page", page)
    with pytest.raises(ValueError, match=r"no earlier report wrote \(notes\.txt\)"):
        run_fit(out=tmp_path / "report", **options)
    assert (tmp_path / "report" / "notes.txt").read_text() == "kept"
    assert (tmp_path / "report" / "index.html").stat().st_size > 1000
    assert not list(tmp_path.glob(".*"))


def test_an_edited_report_stays(sweep, tmp_path):
    options = {"runs": sweep, "num_bootstraps": 100, "holdout_largest": False}
    run_fit(out=tmp_path / "report", **options)
    run_fit(out=tmp_path / "report", **options)  # control
    (tmp_path / "report" / "index.html").write_text("my notes on the fit")
    with pytest.raises(ValueError, match=r"no earlier report wrote \(index\.html\)"):
        run_fit(out=tmp_path / "report", **options)
    assert (tmp_path / "report" / "index.html").read_text() == "my notes on the fit"


def test_one_source_of_rows_is_needed(tmp_path):
    with pytest.raises(ValueError, match="exactly one of runs .* and table"):
        run_fit(out=tmp_path / "out")
