# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from rfjax.scaling.laws.backtest import hold_out_largest
from rfjax.scaling.laws.fit import FitOptions

HOW = {
    "law": "chinchilla",
    "size_measure": "params",
    "loss": "loss",
    "options": FitOptions(num_bootstraps=400),
}


def test_the_largest_model_is_predicted(planted):
    sizes = np.logspace(5.3, 7.3, 6)
    table = planted.table(planted.laptop, sizes, np.logspace(5, 7, 5), noise=0.003)
    result = hold_out_largest(table, **HOW)
    assert result.held_out_size == sizes.max()
    assert len(result.predictions) == 5
    assert len(result.fit.points) == 25
    assert all(abs(point.relative_error) < 0.02 for point in result.predictions)
    assert all(point.inside for point in result.predictions)


def test_a_model_that_breaks_the_law_is_outside(planted):
    table = planted.table(
        planted.laptop, np.logspace(5.3, 7.3, 6), np.logspace(5, 7, 5), noise=0.003
    )
    table.loc[table["params"] == table["params"].max(), "loss"] *= 1.08
    result = hold_out_largest(table, **HOW)
    assert not any(point.inside for point in result.predictions)
    assert result.predictions[0].relative_error == pytest.approx(-0.07, abs=0.03)


def test_three_sizes_are_too_few_to_hold_one_out(planted):
    table = planted.table(planted.laptop, np.logspace(5, 7, 3), np.logspace(5, 7, 5))
    with pytest.raises(
        ValueError, match="A and alpha are not identified: size takes 2"
    ):
        hold_out_largest(table, **HOW)
