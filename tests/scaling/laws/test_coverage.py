# SPDX-License-Identifier: Apache-2.0
"""Many synthetic studies of one planted law: are estimates and intervals honest?"""

import numpy as np
import pytest

from rfjax.scaling.laws.fit import FitOptions, fit_law

DESIGNS = {  # name -> (law, sizes, samples)
    "laptop": ("laptop", np.logspace(5.3, 7.3, 7), np.logspace(5, 7, 5)),
    "table": ("chinchilla", np.logspace(7.5, 10.2, 25), np.logspace(8.5, 11.5, 10)),
}


def run_studies(planted, *, design, noise, num_studies, num_bootstraps):
    """Estimates [S, 5] and whether each interval holds the truth, by method."""
    name, sizes, samples = DESIGNS[design]
    law = getattr(planted, name)
    estimates, profile, bootstrap, predicted = [], [], [], []
    beyond = {"size": 3 * sizes.max(), "samples": 3 * samples.max()}
    future = planted.loss(law, beyond["size"], beyond["samples"])
    for seed in range(num_studies):
        table = planted.table(law, sizes, samples, noise=noise, seed=seed)
        fit = fit_law(table, options=FitOptions(num_bootstraps=num_bootstraps))
        estimates.append(list(fit.values.values()))
        profile.append([law[key] in fit.parameters[key] for key in law])
        bootstrap.append([law[key] in fit.bootstrap_parameters[key] for key in law])
        predicted.append(future in fit.predict(**beyond))
    truth = np.array(list(law.values()))
    coverage = {
        "profile": np.mean(profile, axis=0),
        "bootstrap": np.mean(bootstrap, axis=0),
        "prediction": np.mean(predicted),
    }
    return np.array(estimates), truth, coverage


def standard_scores(estimates, truth):
    """Bias over its standard error, factors A and B by their logarithms."""
    estimates, truth = estimates.copy(), truth.copy()
    estimates[:, 1:3], truth[1:3] = np.log(estimates[:, 1:3]), np.log(truth[1:3])
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
    return (estimates.mean(axis=0) - truth) / error


def test_forty_small_studies_are_unbiased_and_covered(planted):
    estimates, truth, coverage = run_studies(
        planted, design="laptop", noise=0.005, num_studies=40, num_bootstraps=100
    )
    assert (np.abs(standard_scores(estimates, truth)) < 3).all()
    # 95 % of 40 with three binomial standard errors of room.
    assert (coverage["profile"] > 0.84).all()
    # The control: estimates do scatter, so an interval of no width would fail.
    assert (estimates.std(axis=0) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.005, 0.02])
@pytest.mark.parametrize("design", ["laptop", "table"])
def test_two_hundred_studies(planted, design, noise):
    estimates, truth, coverage = run_studies(
        planted, design=design, noise=noise, num_studies=200, num_bootstraps=200
    )
    assert (coverage["profile"] >= 0.91).all(), coverage
    assert (coverage["profile"] <= 0.985).all(), coverage
    assert (coverage["bootstrap"] >= 0.88).all(), coverage
    assert coverage["prediction"] >= 0.89
    scores = np.abs(standard_scores(estimates, truth))
    # 35 points with 2 % noise determine the floor to 15 %: there the estimate of a
    # curved law has a bias of a quarter of its standard deviation.
    allowed = 5 if (design, noise) == ("laptop", 0.02) else 3
    assert (scores < allowed).all(), scores
