# SPDX-License-Identifier: Apache-2.0
"""What is fitted, what is left out, and what is said about it."""

import numpy as np
import pandas as pd
import pytest

from rfjax.scaling.laws.fit import FitOptions
from rfjax.scaling.laws.law import CannotFit
from rfjax.scaling.report.analysis import analyse
from rfjax.scaling.report.page import summary
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
