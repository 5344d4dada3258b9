# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from rfjax.scaling.laws import noise


def correlated(generator, *, num_runs=400, per_run=5, between=0.02, within=0.01):
    runs = np.repeat(np.arange(num_runs), per_run)
    shared = between * generator.normal(size=num_runs)
    return shared[runs] + within * generator.normal(size=len(runs)), runs


def test_what_runs_share_is_found():
    residuals, runs = correlated(np.random.default_rng(0))
    found = noise.estimate_noise(residuals, runs=runs, num_parameters=5)
    assert found.run_correlation == pytest.approx(0.8, abs=0.04)
    assert found.scale == pytest.approx(np.hypot(0.02, 0.01), rel=0.05)
    shuffled = np.random.default_rng(1).permutation(runs)
    control = noise.estimate_noise(residuals, runs=shuffled, num_parameters=5)
    assert control.run_correlation < 0.05


def test_redrawn_residuals_look_like_the_residuals():
    residuals, runs = correlated(np.random.default_rng(0))
    found = noise.estimate_noise(residuals, runs=runs, num_parameters=5)
    drawn = found.draw(np.random.default_rng(1), 50)
    assert drawn.std() == pytest.approx(residuals.std(), rel=0.02)
    neighbours = np.corrcoef(drawn[:, 0::5].ravel(), drawn[:, 1::5].ravel())[0, 1]
    assert neighbours == pytest.approx(0.8, abs=0.03)
    new = found.draw_new(np.random.default_rng(2), 20_000)
    assert new.std() == pytest.approx(residuals.std(), rel=0.03)


def test_the_scale_is_hardly_moved_by_outliers():
    residuals = 0.01 * np.random.default_rng(0).normal(size=500)
    scale = noise.robust_scale(residuals, num_parameters=5)
    assert scale == pytest.approx(0.01, rel=0.05)
    residuals[:10] = 1.0
    assert noise.robust_scale(residuals, num_parameters=5) < 0.0115
    assert residuals.std() > 0.1  # the control


def test_no_residuals_no_noise():
    found = noise.estimate_noise(np.zeros(9), runs=np.arange(9), num_parameters=3)
    assert found.scale == 0
    assert (found.draw(np.random.default_rng(0), 4) == 0).all()
