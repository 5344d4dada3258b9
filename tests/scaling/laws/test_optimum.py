# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from rfjax.scaling.laws.depth import depth_of_size, size_of_depth, why_no_depths
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


@pytest.mark.parametrize(
    ("depths", "reason"),
    [
        ([1, 2, 4, 8], ""),
        ([1, np.nan, 4, np.nan], ""),
        ([12, 12, 12, 12], "depth must take at least 2 values .* got 1"),
        ([12, np.nan, np.nan, np.nan], "depth must take at least 2 values .* got 1"),
        ([np.nan] * 4, "depth must take at least 2 values .* got 0"),
        (
            [1, 2, 2, 4],
            "models of one depth must have one params, those of depth 2",
        ),
        ([8, 4, 2, 1], "params must rise with the depth"),
    ],
)
def test_depths_that_do_not_give_the_sizes_stop_no_optimum(
    planted, fit, depths, reason
):
    sizes = np.array([1e8, 8e8, 64e8, 512e8])
    table = pd.DataFrame({"params": sizes, "depth": np.array(depths, dtype=float)})
    found = why_no_depths(table, size_measure="params")
    assert re.match(reason, found) if reason else found == ""
    best = optimum(fit, flops=1e21, cost=Cost(6.0, 1.0, ""), table=table)
    assert (best.depth is None) == (best.trainable is None) == bool(reason)


@pytest.mark.parametrize("flops", [1e18, 3e20, 1e21, 3e21])
def test_what_can_be_trained_is_the_better_whole_depth(planted, fit, flops):
    depths = np.arange(1, 9)
    table = pd.DataFrame({"params": 1e8 * depths**3, "depth": depths})
    cost = Cost(6.0, 1.0, "")
    best = optimum(fit, flops=flops, cost=cost, table=table)
    by_hand = {
        depth: planted.loss(
            planted.chinchilla, 1e8 * depth**3, flops / (6e8 * depth**3)
        )
        for depth in range(1, 20)
    }
    assert best.trainable.depth == min(by_hand, key=by_hand.get)
    assert best.trainable.size == pytest.approx(1e8 * best.trainable.depth**3)
    assert best.trainable.loss.value == pytest.approx(min(by_hand.values()))
    assert best.trainable.loss.value >= best.loss.value
    assert abs(best.trainable.depth - max(best.depth.value, 1)) < 1


def test_an_optimum_beyond_the_points_says_how_far(fit):
    cost = Cost(6.0, 1.0, "")
    assert optimum(fit, flops=1e21, cost=cost).beyond == ""
    far = optimum(fit, flops=1e26, cost=cost)
    ratio = 1e26 / (6 * 10**10.2 * 10**11.5)
    assert far.beyond.startswith(f"FLOPs {ratio:.0f} times the largest, size ")
    assert "samples" in far.beyond
    near = optimum(fit, flops=1e15, cost=cost).beyond
    assert "FLOPs 1/" in near
    assert "size 1/" in near


def test_a_law_without_samples_has_no_optimum(planted):
    table = planted.table(planted.laptop, np.logspace(5, 7, 9), [1e6])
    fit = fit_law(table, law="size", options=QUICK)
    with pytest.raises(ValueError, match="needs a law of size and samples"):
        optimum(fit, flops=1e18, cost=Cost(6.0, 1.0, ""))
