# SPDX-License-Identifier: Apache-2.0
"""What is fitted, what is left out, and what is said about it."""

import html
import io
import re

import numpy as np
import pandas as pd
import pytest

from rfjax.scaling.laws.fit import FitOptions
from rfjax.scaling.laws.law import CannotFit
from rfjax.scaling.report.analysis import analyse
from rfjax.scaling.report.figures import draw_all
from rfjax.scaling.report.figures.gallery import caption_all
from rfjax.scaling.report.figures.law import loss_surface
from rfjax.scaling.report.figures.models import Models
from rfjax.scaling.report.page import page, summary
from rfjax.scaling.study.runs import load_table

QUICK = {"options": FitOptions(num_bootstraps=100), "holdout_largest": False}


@pytest.fixture
def grid(planted):
    """Five sizes times eight numbers of samples."""
    sizes, samples = np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 8)
    return planted.table(planted.chinchilla, sizes, samples, noise=0.003)


@pytest.fixture
def read(tmp_path):
    """A table by way of a CSV."""

    def write_and_read(table):
        table.to_csv(tmp_path / "points.csv", index=False)
        return load_table(tmp_path / "points.csv")

    return write_and_read


def thousands(column):
    return [f"{int(value):,}" for value in column]


@pytest.mark.parametrize(
    ("change", "law", "message"),
    [
        (
            lambda t: pd.concat([t, t.assign(loss=1.01 * t["loss"])]),
            "chinchilla",
            r"^0 of 80 rows usable: 80 'one cell with several losses' \(tell repeated",
        ),
        (
            lambda t: t.assign(params=thousands(t["params"])),
            "chinchilla",
            r"^0 of 40 rows usable: 40 'params has a separator in it' \(write numbers",
        ),
        (
            lambda t: t.drop(columns="params"),
            "samples",
            "^0 of 40 rows usable: 40 'one cell with several losses'",
        ),
        (
            lambda t: t.assign(cooldown_end=False),
            "chinchilla",
            r"^0 of 40 rows usable: 40 'the learning rate has .* \(--mid-run fits",
        ),
        (
            lambda t: t.assign(loss=np.where(t["params"] < 5e8, np.nan, t["loss"])),
            "chinchilla",
            "^8 of 40 rows usable: 32 'loss is not a finite .* A and alpha are not id",
        ),
        (
            lambda t: t.assign(loss=1.8 + 482 / t["params"] ** 0.35),
            "samples",
            "The law leaves out params, which takes 5 values in these rows",
        ),
        (
            lambda t: t.assign(loss="diverged"),
            "size",
            "^0 of 40 rows usable: 40 'loss is not a finite number' .*another by --lo",
        ),
    ],
)
def test_a_table_without_usable_rows_says_why(grid, read, change, law, message):
    with pytest.raises(CannotFit, match=message) as refusal:
        analyse(read(change(grid)), loss="loss", law=law, **QUICK)
    assert "\n" not in str(refusal.value)


def test_equal_rows_count_once_and_the_summary_says_so(grid, read):
    study = analyse(read(pd.concat([grid, grid])), loss="loss", **QUICK)
    assert len(study.fit.points) == 40
    assert "40 of 80 rows usable: 40 'repeats an earlier row'" in summary(study)
    once = analyse(read(grid), loss="loss", **QUICK)
    assert study.fit.values == pytest.approx(once.fit.values, rel=1e-9)
    assert "usable" not in summary(once)


def test_laws_of_one_input_keep_the_rows_that_differ_in_another(planted, read):
    """Without a column run or seed, a budget is many cells and a size several."""
    sizes = np.geomspace(1e7, 1e10, 22)
    budgets = np.geomspace(1e19, 1e21, 8)
    size, flops = (axis.ravel() for axis in np.meshgrid(sizes, budgets))
    table = pd.DataFrame(
        {"params": size, "samples": flops / (6 * size), "train_flops": flops}
    )
    table["loss"] = planted.loss(planted.chinchilla, size, table["samples"])
    compute = analyse(read(table), loss="loss", law="compute", **QUICK)
    assert compute.fit.points.log_inputs[:, 0] == pytest.approx(np.log(budgets))
    assert "8 of 176 rows usable: 168 'a row that costs no more" in summary(compute)
    table["loss"] = 2 + 400 / size**0.3
    law = analyse(read(table), loss="loss", law="size", **QUICK)
    assert len(law.fit.points) == 176
    assert law.fit.values == pytest.approx({"E": 2, "A": 400, "alpha": 0.3}, rel=1e-4)


@pytest.mark.parametrize(
    ("depth", "note"),
    [
        (12.0, "without a depth: depth must take at least 2 values"),
        (np.nan, "without a depth: depth must take at least 2 values"),
        (["a", "2"] * 20, "without a depth: depth must take at least 2 values"),
        ([1.0, np.nan, 3.0, 4.0, 5.0] * 8, ""),
    ],
)
def test_a_depth_column_that_is_no_use_stops_no_fit(grid, read, depth, note):
    study = analyse(read(grid.assign(depth=depth)), loss="loss", **QUICK)
    assert len(study.fit.points) == 40
    notes = [text for text in study.notes if "depth" in text]
    assert [note in text for text in notes] == [True] * bool(note)
    assert (study.optima[0].trainable is None) == bool(note)
    models = Models(study)
    assert models.by_depth == (note == "" and not np.isnan(depth).any())


@pytest.mark.parametrize("spoil", [None, "missing", "a text", "negative"])
def test_flops_that_are_not_known_for_every_row_are_assumed(grid, read, spoil):
    table = grid.assign(train_flops=6.0 * grid["params"] * grid["samples"])
    if spoil is not None:
        values = {"missing": np.nan, "a text": "much", "negative": -1.0}
        table = table.astype({"train_flops": object})
        table.loc[3, "train_flops"] = values[spoil]
    study = analyse(read(table), loss="loss", **QUICK)
    assert study.cost.source.startswith("assumed: 1 of 40 rows" if spoil else "a power")
    assert study.cost.kappa == pytest.approx(6)
    assert len(study.isoflops) > 3


def test_a_law_of_one_input_says_what_it_leaves_out(planted, read):
    sizes = np.geomspace(1e6, 1e10, 22)
    table = pd.DataFrame({"params": sizes, "samples": 20 * sizes})
    table["loss"] = 2 + 400 / sizes**0.3
    study = analyse(read(table), loss="loss", law="size", **QUICK)
    assert study.notes == (
        "The law leaves out samples, which takes 22 values in these rows: its effect "
        "counts as noise. Choose rows of one value by --where.",
    )
    one = analyse(read(table.assign(samples=1e9)), loss="loss", law="size", **QUICK)
    assert one.notes == ()


def test_models_beyond_the_points_are_noted(grid, read):
    table = read(grid.assign(depth=np.cbrt(grid["params"] / 1e7)))
    inside = analyse(table, loss="loss", budgets=[1e19], **QUICK)
    assert inside.notes == ()
    far = analyse(
        table,
        loss="loss",
        budgets=[1e19],
        forecasts=[{"size": 1e12, "samples": 1e10}],
        **QUICK,
    )
    assert far.forecasts[0].beyond == "size 1000 times the largest"
    assert "beyond the fitted points are extrapolated" in far.notes[0]
    with pytest.raises(CannotFit, match="whole number of blocks, got 2.5"):
        analyse(
            table, loss="loss", forecasts=[{"depth": 2.5, "samples": 1e10}], **QUICK
        )


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_surface_shows_the_path_that_its_caption_promises(grid, read, factor):
    """Also where the runs are far from it, as with too few samples for their size."""
    table = grid.assign(train_flops=6 * grid["params"] * grid["samples"])
    table["loss"] = 1.8 + 482 / table["params"] ** 0.35
    table["loss"] += 2085 * factor**0.35 / table["samples"] ** 0.36
    study = analyse(read(table), loss="loss", **QUICK)
    caption = caption_all(study)["loss_surface"]
    axes = loss_surface(study).axes[0]
    best = study.optima[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left <= best.size.value <= right
    assert bottom <= best.samples.value <= top
    assert "Black: the compute-optimal path" in caption


def test_names_of_columns_and_runs_are_shown_as_they_are(planted, read):
    """No formula in figures, no markup in the page."""
    name = r"$\frac$_<b>&\"'^"
    sizes, samples = np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 8)
    table = planted.table(planted.chinchilla, sizes, samples, noise=0.003)
    table = table.assign(**{name: table["loss"], "run": "a"})
    table["run"] += table.index.astype(str)
    table.loc[3, [name, "run"]] = np.nan, f"{name} left out"
    study = analyse(read(table), loss=name, **QUICK)
    _, _, figure = next(iter(draw_all(study)))
    figure.savefig(io.BytesIO(), format="png")
    text = page(study, [("loss", name, b"")])
    assert html.escape(name) in text
    assert f"{html.escape(name)} left out" in text
    assert "<b>" not in text
    assert not re.search(r'="[^"]*<', text), "no attribute ends early"
