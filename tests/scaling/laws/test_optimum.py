# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from rfjax.scaling.laws.depth import depth_of_size, size_of_depth
from rfjax.scaling.laws.fit import FitOptions, fit_law
from rfjax.scaling.laws.optimum import Cost, allocation_exponent, cost_of, optimum

QUICK = FitOptions(num_bootstraps=100)


@pytest.fixture
def fit(planted):
    table = planted.table(
        planted.chinchilla, np.logspace(7.5, 10.2, 9), np.logspace(8.5, 11.5, 8)
    )
    return fit_law(table, options=QUICK)


@pytest.mark.parametrize("omega", [1.0, 1.2])
def test_the_optimum_is_where_a_search_finds_it(planted, fit, omega):
    cost = Cost(6.0, omega, "by hand")
    best = optimum(fit, flops=1e21, cost=cost)

    def loss(log_size):
        size = np.exp(log_size)
        return planted.loss(planted.chinchilla, size, cost.samples(size, 1e21))

    search = optimize.minimize_scalar(
        loss, bounds=np.log([1e6, 1e12]), method="bounded", options={"xatol": 1e-10}
    )
    assert best.size.value == pytest.approx(np.exp(search.x), rel=1e-4)
    assert best.loss.value == pytest.approx(search.fun)
    assert cost.flops(best.size.value, best.samples.value) == pytest.approx(1e21)
    assert best.depth is None


def test_the_allocation_exponent_is_the_published_one(fit):
    # Besiroglu et al. 2024: beta / (alpha + beta) = 0.5126.
    exponent = allocation_exponent(fit, cost=Cost(6.0, 1.0, ""))
    assert exponent.value == pytest.approx(0.5126, abs=1e-4)


def test_the_cost_follows_the_flops_of_the_table(planted):
    table = planted.table(planted.laptop, np.logspace(5, 7, 4), np.logspace(5, 7, 4))
    assumed = cost_of(table, size_measure="params")
    assert (assumed.kappa, assumed.omega) == (6.0, 1.0)
    assert "6 N D" in assumed.source
    table["train_flops"] = 50 * table["params"] ** 1.1 * table["samples"]
    measured = cost_of(table, size_measure="params")
    assert measured.kappa == pytest.approx(50)
    assert measured.omega == pytest.approx(1.1)
    by_flops = cost_of(table, size_measure="flops")
    assert (by_flops.kappa, by_flops.omega) == (1.0, 1.0)


def test_depths_are_read_between_and_beyond_the_models():
    table = pd.DataFrame({"depth": [1, 2, 4], "params": [10.0, 80.0, 640.0]})
    depths = np.array([1.0, 1.5, 3.0, 8.0])
    sizes = size_of_depth(table, depths, size_measure="params")
    np.testing.assert_allclose(sizes, 10 * depths**3)
    np.testing.assert_allclose(
        depth_of_size(table, sizes, size_measure="params"), depths
    )
    with pytest.raises(ValueError, match="depth must take at least 2 values"):
        depth_of_size(table[:1], sizes, size_measure="params")


def test_a_law_without_samples_has_no_optimum(planted):
    table = planted.table(planted.laptop, np.logspace(5, 7, 9), [1e6])
    fit = fit_law(table, law="size", options=QUICK)
    with pytest.raises(ValueError, match="needs a law of size and samples"):
        optimum(fit, flops=1e18, cost=Cost(6.0, 1.0, ""))
