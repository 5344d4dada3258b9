# SPDX-License-Identifier: Apache-2.0
"""The best learning rate and its drift, found where they were planted."""

import numpy as np
import pandas as pd
import pytest

from rfjax.scaling.transfer import rates as transfer

RATES = 1e-3 * 2.0 ** np.arange(-3, 4)
DRIFTS = {"standard": -1.0, "mup": 0.0}


def planted(drifts=None, *, depths=(1, 2, 4), rates=RATES, optimum=1.3e-3):
    """Parabolas in logs, with minima at optimum * depth ** drift."""
    rows = [
        {
            "parameterisation": name,
            "depth": depth,
            "learning_rate": rate,
            "loss": depth**-0.2
            * np.exp(0.05 * np.log(rate / (optimum * depth**drift)) ** 2),
        }
        for name, drift in (drifts or DRIFTS).items()
        for depth in depths
        for rate in rates
    ]
    return pd.DataFrame(rows)


def test_planted_minima_are_found():
    best = transfer.find_best_rates(planted())
    assert len(best) == 6
    for point in best:
        expected = 1.3e-3 * point.depth ** DRIFTS[point.parameterisation]
        assert point.is_inside
        assert point.learning_rate == pytest.approx(expected, rel=1e-6)
        assert point.loss == pytest.approx(point.depth**-0.2, rel=1e-6)
    assert transfer.fit_drift(best) == pytest.approx(DRIFTS, abs=1e-6)


def test_seeds_are_averaged_and_rows_may_be_in_any_order():
    table = planted()
    up, down = table.assign(loss=table.loss + 0.1), table.assign(loss=table.loss - 0.1)
    mixed = pd.concat([up, down]).sample(frac=1, random_state=0)
    drift = transfer.fit_drift(transfer.find_best_rates(mixed))
    assert drift == pytest.approx(DRIFTS, abs=1e-6)


def test_a_minimum_at_the_end_of_the_rates_says_so():
    table = planted({"mup": 0.0}, optimum=1.0)
    best = transfer.find_best_rates(table)
    assert not any(point.is_inside for point in best)
    assert all(point.learning_rate == RATES[-1] for point in best)


def test_diverged_runs_are_the_worst():
    table = planted({"mup": 0.0})
    table.loc[table.learning_rate > 3e-3, "loss"] = np.nan
    best = transfer.find_best_rates(table)
    assert all(point.learning_rate < 2e-3 for point in best)
    table["loss"] = np.nan
    with pytest.raises(ValueError, match=r"every run of depth 1, mup, diverged"):
        transfer.find_best_rates(table)
    with pytest.raises(ValueError, match=r"learning_rate"):
        transfer.find_best_rates(table.drop(columns="learning_rate"))


def test_the_figure_has_panels_and_a_star_at_each_minimum(tmp_path):
    table = planted()
    table.loc[(table.depth == 4) & (table.learning_rate > 5e-3), "loss"] = np.inf
    figure = transfer.draw_transfer(table)
    assert [axes.get_title(loc="left")[:4] for axes in figure.axes] == ["stan", "muP:"]
    for axes, drift in zip(figure.axes, DRIFTS.values(), strict=True):
        stars = [line for line in axes.lines if line.get_marker() == "*"]
        places = [float(line.get_xdata()[0]) for line in stars]
        expected = [1.3e-3 * depth**drift for depth in (1, 2, 4)]
        assert places == pytest.approx(expected, rel=1e-5)
    figure.savefig(tmp_path / "transfer.png")
    assert (tmp_path / "transfer.png").stat().st_size > 10_000
