# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pandas as pd
import pytest

from rfjax.scaling.laws.frontier import frontier, isoflop_exponent, isoflop_parabolas


def test_the_frontier_is_what_no_other_row_beats():
    table = pd.DataFrame(
        {
            "train_flops": [4.0, 1.0, 2.0, 3.0, 2.0],
            "loss": [0.5, 1.0, 0.8, 0.9, 0.7],
        }
    )
    best = frontier(table, loss="loss")
    assert best["train_flops"].tolist() == [1.0, 2.0, 4.0]
    assert best["loss"].tolist() == [1.0, 0.7, 0.5]


def isoflop_table(law, loss, *, sizes, budgets):
    size, flops = (axis.ravel() for axis in np.meshgrid(sizes, budgets))
    samples = flops / (6 * size)
    return pd.DataFrame(
        {
            "params": size,
            "samples": samples,
            "train_flops": flops,
            "loss": loss(law, size, samples),
        }
    )


def test_parabolas_find_the_exponent_of_a_symmetric_law(planted):
    # With alpha = beta the parabola's bias cancels out of the exponent: one half.
    law = {"E": 1.5, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    table = isoflop_table(
        law, planted.loss, sizes=np.logspace(7, 12, 41), budgets=np.logspace(18, 21, 25)
    )
    found = isoflop_parabolas(table, loss="loss", size_measure="params")
    assert all(not parabola.reason for parabola in found)
    assert isoflop_exponent(found) == pytest.approx(0.5, abs=0.08)


def own_sizes_per_budget(planted, *, budgets, jitter=0.0, num_sizes=14):
    """IsoFLOP runs as they are published: each budget has sizes around its optimum."""
    generator = np.random.default_rng(0)
    law = planted.chinchilla
    rows = []
    for flops in budgets:
        best = 0.12 * np.sqrt(flops)
        for size in best * np.geomspace(0.15, 6, num_sizes) * generator.uniform(1, 1.1):
            spent = flops * np.exp(jitter * generator.normal())
            samples = spent / (6 * size)
            rows.append((size, samples, spent, planted.loss(law, size, samples)))
    return pd.DataFrame(rows, columns=["params", "samples", "train_flops", "loss"])


@pytest.mark.parametrize("jitter", [0.0, 0.015])
def test_every_budget_of_the_table_has_its_parabola(planted, jitter):
    budgets = np.geomspace(6e18, 3e21, 8)
    table = own_sizes_per_budget(planted, budgets=budgets, jitter=jitter)
    found = isoflop_parabolas(table, loss="loss", size_measure="params")
    assert [parabola.flops for parabola in found] == pytest.approx(budgets, rel=0.02)
    assert [parabola.num_rows for parabola in found] == [14] * 8
    assert [parabola.reason for parabola in found] == [""] * 8
    law = planted.chinchilla
    ratio = law["alpha"] * law["A"] / (law["beta"] * law["B"])
    exponents = law["beta"] / (law["alpha"] + law["beta"])
    best = ratio ** (1 / (law["alpha"] + law["beta"])) * (budgets / 6) ** exponents
    sizes = [parabola.best_size for parabola in found]
    assert sizes == pytest.approx(best, rel=0.25)  # the curves are no parabolas
    assert isoflop_exponent(found) == pytest.approx(exponents, abs=0.02)
    # In another unit it is the same.
    billions = table.assign(params=table["params"] / 1e9)
    again = isoflop_parabolas(billions, loss="loss", size_measure="params")
    assert [p.best_size * 1e9 for p in again] == pytest.approx(sizes, rel=1e-6)


def test_budgets_that_are_left_out_say_why(planted):
    table = own_sizes_per_budget(planted, budgets=np.geomspace(1e19, 1e21, 4))
    few = table.drop(table.index[3:14])  # the first budget keeps three sizes
    chain = few.iloc[-14:].copy()  # and one is no budget: its rows go on and on
    few.loc[chain.index, "train_flops"] *= 1.08 ** np.arange(14)
    found = isoflop_parabolas(few, loss="loss", size_measure="params")
    assert [parabola.num_rows for parabola in found] == [3, 14, 14, 14]
    assert found[0].reason == "3 sizes, at least 4 are needed"
    assert found[3].reason.startswith("its rows are no one budget: their FLOPs differ")
    assert np.isnan(found[0].best_size)
    assert not any(parabola.reason for parabola in found[1:3])


def test_a_grid_of_sizes_and_samples_is_interpolated(planted):
    table = planted.table(
        planted.chinchilla, np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 1e11, 8)
    )
    table["train_flops"] = 6 * table["params"] * table["samples"]
    found = isoflop_parabolas(table, loss="loss", size_measure="params")
    assert len(found) > 3
    assert {parabola.num_rows for parabola in found} == {0}


def test_a_minimum_outside_the_sizes_is_no_minimum(planted):
    table = isoflop_table(
        planted.chinchilla,
        planted.loss,
        sizes=np.logspace(11, 12, 5),
        budgets=np.logspace(18, 19, 5),
    )
    found = isoflop_parabolas(table, loss="loss", size_measure="params")
    assert {parabola.reason for parabola in found} == {
        "the minimum lies below the smallest size"
    }
    assert np.isnan(found[0].best_size)
    assert isoflop_exponent(found) is None


def test_two_sizes_make_no_parabola(planted):
    table = isoflop_table(
        planted.chinchilla, planted.loss, sizes=[1e8, 1e9], budgets=[1e18, 1e19]
    )
    assert isoflop_parabolas(table, loss="loss", size_measure="params") == []
