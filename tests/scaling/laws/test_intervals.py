# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

from rfjax.scaling.laws import intervals
from rfjax.scaling.laws.fit import FitOptions, fit_law
from rfjax.scaling.laws.intervals import Interval

GRID = np.logspace(5.3, 7.3, 7), np.logspace(5, 7, 5)


def test_an_interval_maps_and_contains():
    interval = Interval(1.0, 0.5, 2.0)
    assert 0.5 in interval
    assert 2.1 not in interval
    assert interval.map(np.exp).high == pytest.approx(np.e**2)


def test_percentiles_move_against_a_median_bias():
    draws = np.random.default_rng(0).normal(size=200_000)
    how = {"confidence": 0.95, "degrees_of_freedom": 10**6}
    plain = intervals.bias_corrected_interval(0.0, draws, **how)
    assert plain.low == pytest.approx(-1.96, abs=0.03)
    assert plain.high == pytest.approx(1.96, abs=0.03)
    # An estimate below its own resamples is biased upwards: the interval moves down.
    shifted = intervals.bias_corrected_interval(-0.3, draws, **how)
    assert shifted.low == pytest.approx(-0.6 - 1.96, abs=0.04)
    assert shifted.high == pytest.approx(-0.6 + 1.96, abs=0.04)
    how["degrees_of_freedom"] = 5
    few = intervals.bias_corrected_interval(0.0, draws, **how)
    assert few.high == pytest.approx(stats.t.ppf(0.975, 5), abs=0.05)


def test_the_cutoff_of_least_squares_is_the_f_test():
    cutoff = intervals.profile_cutoff(
        delta=1e3, scale=0.5, num_residuals=25, num_parameters=5, confidence=0.9
    )
    assert cutoff == pytest.approx(0.5 * 0.25 * stats.f.ppf(0.9, 1, 20))


def test_the_cutoff_of_absolute_residuals_is_that_of_median_regression():
    # Koenker and Bassett 1982: 4 f(0) times the rise of sum |r| is chi-squared.
    cutoff = intervals.profile_cutoff(
        delta=1e-6, scale=0.5, num_residuals=10**6, num_parameters=5, confidence=0.95
    )
    density = stats.norm.pdf(0) / 0.5
    expected = stats.chi2.ppf(0.95, 1) / (4 * density)
    assert cutoff / 1e-6 == pytest.approx(expected, rel=1e-4)


def test_profile_of_least_squares_is_the_textbook_interval(planted):
    """A precise study is locally linear: profile, t interval and bootstrap agree."""
    table = planted.table(planted.laptop, *GRID, noise=1e-4)
    fit = fit_law(table, options=FitOptions(delta=1.0, num_bootstraps=2000))

    def log_law(inputs, floor, log_a, log_b, alpha, beta):
        size, samples = inputs
        return np.log(
            floor + np.exp(log_a - alpha * size) + np.exp(log_b - beta * samples)
        )

    inputs = np.log(table[["params", "samples"]].to_numpy()).T
    _, covariance = optimize.curve_fit(
        log_law, inputs, np.log(table["loss"]), p0=[0.42, 2.1, 3.0, 0.35, 0.4]
    )
    reach = stats.t.ppf(0.975, len(table) - 5) * np.sqrt(np.diag(covariance))
    for name, index in (("E", 0), ("alpha", 3), ("beta", 4)):
        interval = fit.parameters[name]
        assert interval.high - interval.value == pytest.approx(reach[index], rel=0.05)
        assert interval.value - interval.low == pytest.approx(reach[index], rel=0.05)
        by_bootstrap = fit.bootstrap_parameters[name]
        width = by_bootstrap.high - by_bootstrap.low
        assert width == pytest.approx(2 * reach[index], rel=0.12)


def correlated_table(planted, seed):
    """Each run's five points share most of their error."""
    table = planted.table(planted.laptop, *GRID)
    generator = np.random.default_rng(seed)
    table["run"] = table.groupby("params").ngroup()
    shared = 0.01 * generator.normal(size=7)
    table["loss"] *= np.exp(
        shared[table["run"]] + 0.001 * generator.normal(size=len(table))
    )
    return table


def test_points_of_one_run_do_not_count_as_independent(planted):
    table = correlated_table(planted, 1)
    together = fit_law(table, options=FitOptions(num_bootstraps=400))
    apart = fit_law(table.drop(columns="run"), options=FitOptions(num_bootstraps=400))
    assert together.noise.run_correlation > 0.8
    assert apart.noise.run_correlation == 0
    assert together.values == pytest.approx(apart.values)

    def width(fit, which):
        interval = getattr(fit, which)["alpha"]
        return interval.high - interval.low

    for which in ("parameters", "bootstrap_parameters"):
        assert width(together, which) > 1.3 * width(apart, which)


def test_whole_runs_are_redrawn_together(planted):
    table = correlated_table(planted, 2)
    by_runs, by_points = (
        fit_law(table, options=FitOptions(num_bootstraps=400, resampling=name))
        for name in ("runs", "points")
    )
    np.testing.assert_array_equal(by_runs.theta, by_points.theta)
    run_of_point = by_runs.noise.run_of_point
    noise = dataclasses.replace(by_runs.noise, run_of_point=run_of_point)
    _, weights = intervals.redraw_runs(
        None, None, noise=noise, generator=np.random.default_rng(0), num_draws=20
    )
    assert (weights.sum(axis=1) == len(table)).all()
    for run in range(7):
        block = weights[:, run_of_point == run]
        assert (block == block[:, :1]).all()
    # What the runs share moves size, which a run has once; points would hide it.
    spread = {
        name: np.subtract(*np.quantile(fit.draws[:, 3], [0.9, 0.1]))
        for name, fit in (("runs", by_runs), ("points", by_points))
    }
    assert spread["runs"] > spread["points"]
