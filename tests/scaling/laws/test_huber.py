# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy import optimize

from rfjax.scaling.laws import huber

LOWER = np.array([0.0, -15.0, -15.0, 0.01, 0.01])
UPPER = np.array([50.0, 15.0, 15.0, 4.0, 4.0])


@pytest.fixture
def data(planted):
    """Centred log inputs and noisy log losses of a planted law."""
    table = planted.table(
        planted.laptop, np.logspace(5.3, 7.3, 4), np.logspace(5, 7, 4), noise=0.01
    )
    log_inputs = np.log(table[["params", "samples"]].to_numpy())
    return log_inputs - log_inputs.mean(axis=0), np.log(table["loss"].to_numpy())


def reference_objective(theta, log_inputs, log_loss, delta):
    """The objective as the literature writes it: a log-sum-exp, theta[0] = log E."""
    log_terms = theta[1:3] - theta[3:] * log_inputs
    predicted = np.logaddexp(np.logaddexp(log_terms[:, 0], log_terms[:, 1]), theta[0])
    size = np.abs(predicted - log_loss)
    return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum()


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 10.0])
def test_the_minimum_is_that_of_scipy(data, delta):
    start = np.array([[0.4, -2.0, -2.0, 0.5, 0.5]])
    found = huber.minimise(*data, start=start, lower=LOWER, upper=UPPER, delta=delta)
    theta = found.theta[0].copy()
    theta[0] = np.log(theta[0])
    assert found.objective[0] == pytest.approx(
        reference_objective(theta, *data, delta), rel=1e-12
    )
    polished = optimize.minimize(
        reference_objective, theta, args=(*data, delta), method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-16, "maxiter": 4000},
    )  # fmt: skip
    assert found.objective[0] <= polished.fun * (1 + 1e-9)
    far = np.array([np.log(0.4), -2.0, -2.0, 0.5, 0.5])
    independent = optimize.minimize(
        lambda theta: 1e4 * reference_objective(theta, *data, delta),
        far,
        method="BFGS",
        options={"gtol": 1e-8},
    )
    np.testing.assert_allclose(independent.x, theta, atol=2e-4)


def test_every_start_and_every_held_value_reaches_one_minimum(data):
    """A held parameter must not stall the others (the walls of the box are equal)."""
    starts = np.array([0.4, -2.0, -2.0, 0.5, 0.5]) + np.random.default_rng(0).normal(
        scale=[0.03, 0.4, 0.4, 0.1, 0.1], size=(50, 5)
    )
    lower, upper = LOWER.copy(), UPPER.copy()
    lower[3] = upper[3] = 0.6
    found = huber.minimise(*data, start=starts, lower=lower, upper=upper)
    assert (found.theta[:, 3] == 0.6).all()
    np.testing.assert_allclose(found.objective, found.objective.min(), rtol=1e-7)
    free = huber.minimise(*data, start=starts, lower=LOWER, upper=UPPER)
    np.testing.assert_allclose(free.objective, free.objective.min(), rtol=1e-7)
    assert free.objective.min() < found.objective.min()  # the control: it did bind


def test_a_weight_of_two_is_a_point_given_twice(data):
    log_inputs, log_loss = data
    weights = np.ones(len(log_loss))
    weights[3] = 2
    start = np.array([[0.4, -2.0, -2.0, 0.5, 0.5]])
    box = {"start": start, "lower": LOWER, "upper": UPPER}
    weighted = huber.minimise(log_inputs, log_loss, weights=weights, **box)
    twice = huber.minimise(
        np.vstack([log_inputs, log_inputs[3:4]]),
        np.append(log_loss, log_loss[3]),
        **box,
    )
    plain = huber.minimise(log_inputs, log_loss, **box)
    np.testing.assert_allclose(weighted.theta, twice.theta, rtol=1e-8)
    assert np.abs(weighted.theta - plain.theta).max() > 1e-6


def test_the_floor_stops_at_zero():
    x = np.linspace(-2, 2, 9)[:, None]
    log_loss = -0.3 * x[:, 0] - 0.02 * x[:, 0] ** 2  # bends the other way: E < 0
    box = {"lower": LOWER[[0, 1, 3]], "upper": UPPER[[0, 1, 3]]}
    found = huber.minimise(x, log_loss, start=np.array([[0.3, 0.0, 0.3]]), **box)
    assert found.theta[0, 0] == 0
    slope = optimize.minimize(
        lambda line: (
            1e4 * huber.huber(line[0] - line[1] * x[:, 0] - log_loss, 1e-3).sum()
        ),
        [0.0, 0.3],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-15, "maxiter": 4000},
    ).x
    np.testing.assert_allclose(found.theta[0, 1:], slope, atol=1e-5)


def test_the_mean_of_the_losses_would_stop_early(planted):
    """The trap that biased the first Chinchilla fit: why the objective is a sum."""
    table = planted.table(
        planted.chinchilla, np.logspace(7.5, 10, 8), np.logspace(9, 11.5, 8), noise=0.01
    )
    log_inputs = np.log(table[["params", "samples"]].to_numpy())
    log_loss = np.log(table["loss"].to_numpy())
    start = np.array([0.0, 5.0, 5.0, 0.5, 0.5])

    def minimum(scale):
        return optimize.minimize(
            lambda theta: (
                scale * reference_objective(theta, log_inputs, log_loss, 1e-3)
            ),
            start,
            method="L-BFGS-B",
        )

    by_mean, by_sum = minimum(1 / len(log_loss)), minimum(1.0)
    assert by_mean.nit < by_sum.nit
    centre = log_inputs.mean(axis=0)
    theta = np.array([[1.0, 0.0, 0.0, 0.5, 0.5]])
    ours = huber.minimise(
        log_inputs - centre, log_loss, start=theta, lower=LOWER, upper=UPPER
    )
    assert ours.objective[0] < by_sum.fun < by_mean.fun * len(log_loss)
    assert abs(ours.theta[0, 3] - planted.chinchilla["alpha"]) < 0.05
    assert abs(by_mean.x[3] - planted.chinchilla["alpha"]) > 0.05
