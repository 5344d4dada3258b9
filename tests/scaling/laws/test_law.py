# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from rfjax.scaling.laws import law as laws


def test_a_law_about_a_centre_is_the_formula(planted):
    law = planted.chinchilla
    size, samples = np.array([1e8, 3e9]), np.array([2e9, 5e11])
    theta = np.array(
        [law["E"], np.log(law["A"]), np.log(law["B"]), law["alpha"], law["beta"]]
    )
    centre = np.log([1e9, 1e10])
    moved = laws.recentre(theta, shift=-centre)
    log_inputs = np.log(np.stack([size, samples], axis=1)) - centre
    np.testing.assert_allclose(
        laws.predict_loss(moved[None], log_inputs)[0],
        planted.loss(law, size, samples),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        laws.natural_parameters(moved, law=laws.LAWS["chinchilla"], log_centre=centre),
        list(law.values()),
        rtol=1e-12,
    )


def test_the_compute_law_is_reported_by_its_scale():
    # (C0 / C)^gamma with C0 = 1e12, gamma = 0.1 is 10^1.2 C^-0.1.
    theta = np.array([0.5, 1.2 * np.log(10), 0.1])
    natural = laws.natural_parameters(
        theta, law=laws.LAWS["compute"], log_centre=np.zeros(1)
    )
    np.testing.assert_allclose(natural, [0.5, 1e12, 0.1], rtol=1e-12)


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match=r"law must be one of .*compute, got 'kaplan'"):
        laws.get_law("kaplan")
