# SPDX-License-Identifier: Apache-2.0
import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from rfjax.scaling.laws.fit import FitOptions, fit_law
from rfjax.scaling.laws.frontier import frontier

QUICK = FitOptions(num_bootstraps=100)
LAPTOP_GRID = np.logspace(5.3, 7.3, 7), np.logspace(5, 7, 5)
CHINCHILLA_GRID = np.logspace(7.5, 10.2, 9), np.logspace(8.5, 11.5, 8)


@pytest.mark.parametrize(
    ("law", "grid"), [("laptop", LAPTOP_GRID), ("chinchilla", CHINCHILLA_GRID)]
)
def test_a_planted_law_comes_back(planted, law, grid):
    truth = getattr(planted, law)
    fit = fit_law(planted.table(truth, *grid), options=QUICK)
    for name, value in truth.items():
        assert fit.values[name] == pytest.approx(value, rel=1e-6), name
    assert fit.noise.scale < 1e-9


def test_few_points_suffice_without_noise(planted):
    table = planted.table(planted.laptop, np.logspace(5.3, 7, 3), np.logspace(5, 7, 4))
    fit = fit_law(table, options=QUICK)
    assert fit.values == pytest.approx(planted.laptop, rel=1e-4)


def test_laws_of_one_input_come_back():
    flops = np.logspace(14, 18, 9)
    table = pd.DataFrame(
        {
            "params": flops,
            "train_flops": flops,
            "samples": flops,
            "loss": 0.5 + (3e11 / flops) ** 0.2,
        }
    )
    compute = fit_law(table, law="compute", options=QUICK)
    assert compute.values == pytest.approx(
        {"E": 0.5, "C0": 3e11, "gamma": 0.2}, rel=1e-4
    )
    factor = 3e11**0.2
    size = fit_law(table, law="size", options=QUICK)
    assert size.values == pytest.approx({"E": 0.5, "A": factor, "alpha": 0.2}, rel=1e-4)
    samples = fit_law(table, law="samples", options=QUICK)
    assert samples.values == pytest.approx(
        {"E": 0.5, "B": factor, "beta": 0.2}, rel=1e-4
    )


def test_a_wide_delta_is_least_squares(planted):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.005)
    fit = fit_law(table, options=FitOptions(delta=1.0, num_bootstraps=100))

    def log_law(inputs, floor, log_a, log_b, alpha, beta):
        size, samples = inputs
        return np.log(
            floor + np.exp(log_a - alpha * size) + np.exp(log_b - beta * samples)
        )

    inputs = np.log(table[["params", "samples"]].to_numpy()).T
    expected, _ = optimize.curve_fit(
        log_law, inputs, np.log(table["loss"]), p0=[0.4, 2.0, 3.0, 0.35, 0.4]
    )
    expected[1:3] = np.exp(expected[1:3])
    np.testing.assert_allclose(list(fit.values.values()), expected, rtol=1e-4)


IN_UNITS_OF_LOSS = ("E", "A", "B")


@pytest.mark.parametrize("unit", [1e-12, 1e-5, 1e-3, 1e5, 1e12])
def test_another_unit_of_the_loss_is_the_same_fit(planted, unit):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.01)
    fit = fit_law(table, options=QUICK)
    scaled = fit_law(table.assign(loss=unit * table["loss"]), options=QUICK)
    for kind in ("parameters", "bootstrap_parameters"):
        for name, interval in getattr(fit, kind).items():
            factor = unit if name in IN_UNITS_OF_LOSS else 1.0
            expected = dataclasses.astuple(interval.map(lambda v, k=factor: v * k))
            found = dataclasses.astuple(getattr(scaled, kind)[name])
            assert found == pytest.approx(expected, rel=1e-5, abs=0), (kind, name)
    for what in (fit.predict, fit.predict_outcome):
        before = dataclasses.astuple(what(size=1e8, samples=1e7))
        after = dataclasses.astuple(
            getattr(scaled, what.__name__)(size=1e8, samples=1e7)
        )
        assert after == pytest.approx([unit * v for v in before], rel=1e-5, abs=0)
    assert scaled.notes == fit.notes
    assert scaled.noise.scale == pytest.approx(fit.noise.scale, rel=1e-6)


@pytest.mark.parametrize("column", ["params", "samples", "train_flops"])
@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_another_unit_of_an_input_changes_only_its_own_factor(planted, column, unit):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.01)
    table["train_flops"] = 6 * table["params"] * table["samples"]
    law, factor, exponent = {
        "params": ("chinchilla", "A", "alpha"),
        "samples": ("chinchilla", "B", "beta"),
        "train_flops": ("compute", "C0", "gamma"),
    }[column]
    if law == "compute":
        table = frontier(table, loss="loss")
    fit = fit_law(table, law=law, options=QUICK)
    scaled = fit_law(
        table.assign(**{column: unit * table[column]}), law=law, options=QUICK
    )
    for name in set(fit.parameters) - {factor}:
        expected = dataclasses.astuple(fit.parameters[name])
        found = dataclasses.astuple(scaled.parameters[name])
        assert found == pytest.approx(expected, rel=1e-4), name
    power = 1.0 if law == "compute" else fit.values[exponent]
    assert scaled.values[factor] == pytest.approx(
        fit.values[factor] * unit**power, rel=1e-3
    )


@pytest.mark.parametrize("unit", [1e-5, 1.0, 1e5])
def test_an_independent_optimiser_finds_the_same_minimum(planted, unit):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.005)
    table["loss"] *= unit
    fit = fit_law(table, options=FitOptions(delta=0.01, num_bootstraps=100))
    inputs = np.log(table[["params", "samples"]].to_numpy())

    def residuals(theta):
        floor, log_a, log_b, alpha, beta = theta
        terms = np.exp([log_a, log_b] - np.array([alpha, beta]) * inputs).sum(axis=1)
        return np.log(unit * (floor + terms)) - np.log(table["loss"])

    found = optimize.least_squares(
        residuals, [0.4, 2.0, 3.0, 0.35, 0.4], loss="huber", f_scale=0.01,
        xtol=1e-14, ftol=1e-14, gtol=1e-14,
    ).x  # fmt: skip
    expected = [unit * found[0], *(unit * np.exp(found[1:3])), *found[3:]]
    np.testing.assert_allclose(list(fit.values.values()), expected, rtol=1e-4)


def test_an_outlier_hardly_matters(planted):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.002)
    clean = fit_law(table, options=QUICK)
    table.loc[4, "loss"] *= 1.2
    robust = fit_law(table, options=QUICK)
    squares = fit_law(table, options=FitOptions(delta=1.0, num_bootstraps=100))
    moved = abs(robust.values["beta"] - clean.values["beta"])
    assert moved < 0.2 * abs(squares.values["beta"] - clean.values["beta"])


def test_a_thousand_bootstraps_are_quick(planted):
    table = planted.table(
        planted.chinchilla, np.logspace(7.5, 10.2, 25), np.logspace(8.5, 11.5, 10),
        noise=0.01,
    )  # fmt: skip
    start = time.perf_counter()
    fit = fit_law(table, options=FitOptions(num_bootstraps=1000))
    assert time.perf_counter() - start < 60
    assert fit.draws.shape == (1000, 5)


def test_the_same_table_gives_the_same_fit(planted):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.01)
    first, second = (fit_law(table, options=QUICK) for _ in range(2))
    assert first.parameters == second.parameters
    np.testing.assert_array_equal(first.draws, second.draws)
    shuffled = fit_law(table.sample(frac=1, random_state=0), options=QUICK)
    assert shuffled.values == pytest.approx(first.values, rel=1e-5)


def test_the_size_measure_is_the_requested_one(planted):
    table = planted.table(planted.laptop, *LAPTOP_GRID)
    table["params_without_adaln"] = table["params"]
    table["train_flops"] = 6 * table["params"] * table["samples"]
    table["params"] = table["params"] ** 1.1
    assert fit_law(table, options=QUICK).values["alpha"] == pytest.approx(0.35 / 1.1)
    without = fit_law(table, size_measure="params_without_adaln", options=QUICK)
    assert without.values["alpha"] == pytest.approx(0.35)
    by_flops = fit_law(table, size_measure="flops", options=QUICK)
    assert by_flops.values["A"] == pytest.approx(8.0 * 6**0.35)


def test_predictions_hold_the_truth_and_outcomes_are_wider(planted):
    table = planted.table(planted.laptop, *LAPTOP_GRID, noise=0.004)
    fit = fit_law(table)
    truth = planted.loss(planted.laptop, 5e7, 1e7)
    law = fit.predict(size=5e7, samples=1e7)
    outcome = fit.predict_outcome(size=5e7, samples=1e7)
    assert truth in law
    assert law.high / law.low < outcome.high / outcome.low < 1.04
    with pytest.raises(ValueError, match="is a function of size, samples, got size"):
        fit.predict(size=5e7)


# --- What is refused, and why ---------------------------------------------------------


def test_too_few_points_are_refused(planted):
    table = planted.table(planted.laptop, np.logspace(5, 7, 3), np.logspace(5, 7, 3))
    with pytest.raises(ValueError, match="needs at least 7 points .* got 6"):
        fit_law(table.iloc[[0, 1, 3, 5, 7, 8]])


def test_one_data_budget_identifies_no_beta(planted):
    table = planted.table(planted.laptop, np.logspace(5, 7, 9), [1e6])
    with pytest.raises(
        ValueError,
        match="B and beta are not identified: samples takes 1 distinct value",
    ):
        fit_law(table)
    reduced = fit_law(table, law="size", options=QUICK)
    assert reduced.values["alpha"] == pytest.approx(0.35)
    floor = planted.laptop["E"] + planted.laptop["B"] / 1e6 ** planted.laptop["beta"]
    assert reduced.values["E"] == pytest.approx(floor)


def test_size_and_samples_in_lockstep_are_refused(planted):
    size = np.logspace(7, 9, 12)
    loss = planted.loss(planted.chinchilla, size, 20 * size)
    table = pd.DataFrame({"params": size, "samples": 20 * size, "loss": loss})
    with pytest.raises(ValueError, match="size and samples rise in lockstep"):
        fit_law(table)


def test_a_term_that_the_data_do_not_show_is_refused():
    size, samples = (
        axis.ravel() for axis in np.meshgrid(np.logspace(5, 7, 5), np.logspace(5, 7, 5))
    )
    step = np.where(size < 2e5, 2.0, 1.0) + 5 / samples**0.3
    table = pd.DataFrame({"params": size, "samples": samples, "loss": step})
    with pytest.raises(ValueError, match="edge of the search: alpha"):
        fit_law(table)


def test_noise_alone_identifies_no_exponent():
    generator = np.random.default_rng(0)
    flops = np.logspace(14, 15, 8)
    loss = 1 + 0.02 * generator.normal(size=8)
    table = pd.DataFrame({"train_flops": flops, "loss": loss})
    with pytest.raises(ValueError, match="gamma is not identified|edge of the search"):
        fit_law(table, law="compute")


@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e8])
def test_a_floor_at_zero_is_noted(unit):
    size = np.logspace(5, 8, 12)
    loss = unit * np.exp(-0.01 * np.log(size) ** 2)
    table = pd.DataFrame({"params": size, "loss": loss})
    fit = fit_law(table, law="size", options=QUICK)
    assert fit.values["E"] == 0
    assert any("floor E is at its bound 0" in note for note in fit.notes)


@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_a_loss_without_a_logarithm_is_refused(planted, bad):
    table = planted.table(planted.laptop, *LAPTOP_GRID)
    table.loc[3, "loss"] = bad
    with pytest.raises(ValueError, match="loss must be a positive number"):
        fit_law(table)


def test_missing_columns_and_unknown_measures_are_named(planted):
    table = planted.table(planted.laptop, *LAPTOP_GRID)
    with pytest.raises(ValueError, match="no column val_ema/loss; it has params"):
        fit_law(table, loss="val_ema/loss")
    with pytest.raises(ValueError, match="size_measure must be one of params, .*'N'"):
        fit_law(table, size_measure="N")
    with pytest.raises(ValueError, match="no column train_flops"):
        fit_law(table, size_measure="flops")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"delta": 0.0}, "delta must be positive"),
        ({"confidence": 95}, "confidence must lie between 0 and 1, got 95"),
        ({"num_bootstraps": 10}, "num_bootstraps must be at least 100, got 10"),
        ({"resampling": "days"}, "resampling must be one of residuals, runs, points"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**wrong)
