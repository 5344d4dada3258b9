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
