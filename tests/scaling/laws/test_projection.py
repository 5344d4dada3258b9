# SPDX-License-Identifier: Apache-2.0
import numpy as np
from scipy import optimize

from rfjax.scaling.laws import projection


def test_least_squares_stays_non_negative_as_scipy_does():
    generator = np.random.default_rng(0)
    designs = generator.uniform(size=(40, 9, 3))
    target = generator.normal(size=9)
    found, residual_sum = projection.nonnegative_least_squares(designs, target)
    expected = [optimize.nnls(design, target) for design in designs]
    np.testing.assert_allclose(found, [z for z, _ in expected], atol=1e-9)
    np.testing.assert_allclose(residual_sum, [norm**2 for _, norm in expected])
    free = np.linalg.lstsq(designs[0], target, rcond=None)[0]
    assert (found == 0).any()
    assert not np.allclose(free, found[0])


def test_exponents_on_the_grid_are_found_at_once(planted):
    law = planted.laptop | {"alpha": 0.3, "beta": 0.5}
    table = planted.table(law, np.logspace(5, 7, 5), np.logspace(5, 7, 5))
    log_inputs = np.log(table[["params", "samples"]].to_numpy())
    centre = log_inputs.mean(axis=0)
    starts = projection.project_starts(
        log_inputs - centre,
        table["loss"].to_numpy(),
        exponents=np.array([0.1, 0.3, 0.5, 0.9]),
        num_starts=3,
    )
    assert starts.shape == (3, 5)
    expected = [law["E"], *np.log([law["A"], law["B"]]) - [0.3, 0.5] * centre, 0.3, 0.5]
    np.testing.assert_allclose(starts[0], expected, rtol=1e-6)
