# SPDX-License-Identifier: Apache-2.0
"""Solvers on a velocity whose solution is known, and their grids."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri

from rfjax.flow.formulations import parse
from rfjax.flow.path import LDM_LINEAR
from rfjax.flow.solvers import GRIDS, PAPER_SETTINGS, SOLVERS, integrate, step_grid
from rfjax.flow.timesteps import DynamicShift, shift_timesteps

STD = 0.3


def _error(oracle, solver, num_steps, **options):
    """Latents ~ N(0, s^2): the flow maps noise to s noise; returns the worst error."""
    noise = jnp.linspace(0.5, 2, 4, dtype=jnp.float64)[:, None, None, None]

    @jax.jit
    def solve(noise):
        return integrate(
            oracle, noise, None, num_steps=num_steps, solver=solver, **options
        ).latents

    return float(np.abs(solve(noise) / noise - STD).max())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("adams_bashforth", 2)]
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_error_falls_at_the_order_of_the_solver(gaussian_oracle, solver, order, shift):
    errors = [
        _error(gaussian_oracle("rf", STD), solver, num_steps, shift=shift)
        for num_steps in (256, 512, 1024)
    ]
    observed = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(observed, order, atol=0.1)


def test_every_solver_has_its_order_tested():
    assert set(SOLVERS) == {"euler", "heun", "adams_bashforth"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "name", ["eps/linear", "v/linear", "eps/cos", "v/cos", "edm(-1.20,1.20)", "edm/cos"]
)
def test_every_formulation_reaches_the_latents(name, gaussian_oracle, solver):
    formulation = parse(name)
    velocity_fn = formulation.velocity_fn(gaussian_oracle(name, STD))
    coarse, fine = (
        _error(velocity_fn, solver, num_steps, formulation=formulation)
        for num_steps in (8, 120)
    )
    # Linear schedules stop short of pure noise and pure latents, and noise
    # predictions are held at a low signal, hence the wider tolerance.
    assert fine < 0.02
    assert fine < coarse


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_calls", [6, 10, 20])
def test_the_multistep_solver_is_best_for_few_calls(num_calls):
    noise = ndtri((jnp.arange(100) + 0.5) / 100)[:, None, None, None]

    def solve(solver, num_steps):
        return jax.jit(
            lambda noise: (
                integrate(
                    _two_modes, noise, None, num_steps=num_steps, solver=solver
                ).latents
            )
        )(noise)

    exact = solve("heun", 2000)
    errors = {
        solver: jnp.abs(solve(solver, num_calls // calls_per_step) - exact).mean()
        for solver, calls_per_step in [
            ("euler", 1),
            ("heun", 2),
            ("adams_bashforth", 1),
        ]
    }
    assert errors["adams_bashforth"] < 0.85 * errors["euler"]
    assert errors["adams_bashforth"] < 0.85 * errors["heun"]


def _two_modes(z, t, conditioning):
    """Optimal velocity for latents from two Gaussians at -1 and 1 of std 0.2."""
    t = t[:, None, None, None]
    variance = (1 - t) ** 2 * 0.2**2 + t**2
    mean = jnp.tanh((1 - t) * z / variance)  # of the mode, given z
    gain = (t - (1 - t) * 0.2**2) / variance
    return gain * (z - (1 - t) * mean) - mean


@pytest.mark.usefixtures("x64")
def test_one_step_of_a_straight_flow_is_exact():
    latents, noise = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2))
    for solver in SOLVERS:
        solution = integrate(
            lambda z, t, _: noise - latents,
            jnp.asarray(noise),
            None,
            num_steps=1,
            solver=solver,
        )
        np.testing.assert_allclose(solution.latents, latents, atol=1e-14)


def test_path_length_of_a_straight_flow():
    """sqrt(2 H W C) between independent unit Gaussians: 181 for 32 x 32 x 16."""
    latents, noise = np.random.default_rng(0).standard_normal((2, 2, 32, 32, 16))
    straight = integrate(
        lambda z, t, _: jnp.asarray(noise - latents, jnp.float32),
        jnp.asarray(noise, jnp.float32),
        None,
        num_steps=50,
    )
    distance = np.linalg.norm((noise - latents).reshape(2, -1), axis=1)
    np.testing.assert_allclose(straight.path_length, distance, rtol=1e-5)
    np.testing.assert_allclose(straight.path_length, 181.02, rtol=0.02)

    curved = integrate(
        lambda z, t, _: (
            jnp.asarray(noise - latents, jnp.float32)
            * (1 + 3 * jnp.sin(4 * jnp.pi * t))[:, None, None, None]
        ),
        jnp.asarray(noise, jnp.float32),
        None,
        num_steps=50,
    )
    assert (curved.path_length > 1.2 * distance).all()


@pytest.mark.parametrize("name", ["eps/linear", "v/cos"])
def test_euler_is_ddim_on_the_path_of_the_formulation(name):
    """Song et al. 2021, eq. 12 without noise, on the path's own z, in NumPy."""
    formulation = parse(name)
    timesteps = np.linspace(1, 0, 5)[1:-1]
    a, b = (np.asarray(c) for c in formulation.path.coefficients(timesteps))
    a, b = np.append(a, 1.0), np.append(b, 0.0)  # the last step is to clean latents

    def network_fn(z, t, conditioning):
        return jnp.tanh(z) * (1 + t)[:, None, None, None]

    def noise_and_latents(z, i):
        output = np.tanh(z) * (1 + b[i] / (a[i] + b[i]))
        if name.startswith("eps"):
            return output, (z - b[i] * output) / a[i]
        return b[i] * z + a[i] * output, a[i] * z - b[i] * output

    # From the first inner timestep on, where the two agree on z by construction.
    z = np.random.default_rng(0).standard_normal((3, 1, 1, 2))
    rectified = z / (a[0] + b[0])
    grid = np.asarray(step_grid(4, formulation=formulation))
    velocity_fn = formulation.velocity_fn(network_fn)
    for i in range(3):
        noise, latents = noise_and_latents(z, i)
        z = a[i + 1] * latents + b[i + 1] * noise
        t = jnp.full(3, grid[i + 1])
        velocity = velocity_fn(jnp.asarray(rectified, jnp.float32), t, None)
        rectified = rectified + (grid[i + 2] - grid[i + 1]) * np.asarray(velocity)
    np.testing.assert_allclose(rectified, z, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_grids_go_from_1_to_0(grid, num_steps):
    timesteps = np.asarray(step_grid(num_steps, grid=grid, shift=3.0))
    assert timesteps.shape == (num_steps + 1,)
    assert timesteps[0] == 1
    assert timesteps[-1] == 0
    assert (np.diff(timesteps) < 0).all()


def test_uniform_grid():
    np.testing.assert_allclose(step_grid(4), [1, 0.75, 0.5, 0.25, 0], rtol=1e-7)
    expected = shift_timesteps(np.linspace(1, 0, 51), shift=3.0)
    np.testing.assert_allclose(step_grid(50, shift=3.0), expected, rtol=1e-6)
    # Uniform in the level of a discrete schedule, not in the rectified t.
    levels = LDM_LINEAR.to_rectified(np.array([0.75, 0.5, 0.25]))
    linear = step_grid(4, formulation=parse("v/linear"))
    np.testing.assert_allclose(linear[1:-1], levels, rtol=1e-6)
    assert np.abs(linear - step_grid(4)).max() > 0.03


def test_karras_grid_is_the_default_of_edm():
    """Karras et al. 2022, eq. 5, with 18 steps: the third sigma is 42.4."""
    timesteps = np.asarray(step_grid(18, formulation=parse("edm(-1.20,1.20)")))
    sigmas = timesteps[1:] / (1 - timesteps[1:])
    np.testing.assert_allclose(sigmas[:2], [57.586, 40.786], rtol=1e-3)
    np.testing.assert_allclose(sigmas[-2], 0.002, rtol=1e-3)
    np.testing.assert_array_equal(step_grid(18, grid="karras"), timesteps)
    edm_rf = step_grid(4, formulation=parse("edm/rf"))
    np.testing.assert_array_equal(edm_rf, step_grid(4))


def test_diffusers_grid_is_that_of_diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these packages may warn on import
        pytest.importorskip("torch")
        diffusers = pytest.importorskip("diffusers")
    for shift, num_steps in [(3.0, 50), (1.0, 28), (1.5, 1)]:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(num_steps)
        grid = step_grid(num_steps, shift=shift, grid="diffusers")
        np.testing.assert_allclose(grid, scheduler.sigmas.numpy(), atol=1e-6)
    assert np.abs(step_grid(28) - step_grid(28, grid="diffusers")).max() > 1e-3
    # A dynamic shift: mu from the size of the image.
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
        calculate_shift,
    )

    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for num_tokens in (256, 1000, 4096, 9216):
        dynamic.set_timesteps(28, mu=calculate_shift(num_tokens))
        shift = DynamicShift().shift(num_tokens)
        grids = [
            step_grid(28, shift=shift, grid="diffusers", use_dynamic_shifting=once)
            for once in (True, False)
        ]
        np.testing.assert_allclose(grids[0], dynamic.sigmas.numpy(), atol=1e-6)
        assert np.abs(grids[0] - grids[1]).max() > 1e-4


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_heun_ends_as_that_of_diffusers(num_steps):
    """Its last step is one of Euler: 2 n - 1 calls of the network in n steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(num_steps)
    noise = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 2, 2, 1)
    latents = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        t = np.full(2, timestep / 1000, np.float32)
        velocity = np.array(_two_modes(jnp.asarray(latents.numpy()), t, None))
        step = scheduler.step(torch.from_numpy(velocity), timestep, latents)
        latents = step.prev_sample
    assert len(scheduler.timesteps) == 2 * num_steps - 1

    def solve(**options):
        return integrate(
            _two_modes, jnp.asarray(noise), None, num_steps=num_steps, shift=3.0,
            **options,
        ).latents  # fmt: skip

    drawn = solve(solver="heun", grid="diffusers")
    np.testing.assert_allclose(drawn, latents.numpy(), atol=1e-5)
    others = [solve(solver="heun"), solve(solver="adams_bashforth", grid="diffusers")]
    if num_steps > 1:  # one step of any is one of Euler
        for other in others:
            assert np.abs(other - latents.numpy()).max() > 1e-3


def test_dynamic_shift_is_checked():
    with pytest.raises(ValueError, match="base_image_seq_len must be below max_im"):
        DynamicShift(base_image_seq_len=4096)
    with pytest.raises(ValueError, match="max_shift must be finite, got nan"):
        DynamicShift(max_shift=float("nan"))


def test_diffusers_grid_shifts_its_ends_twice():
    last = [
        step_grid(50, shift=3.0, grid=grid)[-2] for grid in ("diffusers", "uniform")
    ]
    np.testing.assert_allclose(last, [0.00893, 3 * 0.02 / (1 + 2 * 0.02)], rtol=1e-3)


def test_integrate_can_be_jitted_and_differentiated(gaussian_oracle):
    noise = jnp.ones((2, 1, 1, 3))

    @jax.jit
    @jax.grad
    def gradient(gain):
        solution = integrate(
            lambda z, t, _: gain * z, noise, None, num_steps=3, solver="heun"
        )
        return solution.latents.sum()

    # Heun multiplies by 1 - g h + (g h)^2 / 2 per step, with h = 1/3.
    factor, slope = 1 - 1 / 3 + 1 / 18, -1 / 3 + 1 / 9
    np.testing.assert_allclose(gradient(1.0), 6 * 3 * factor**2 * slope, rtol=1e-5)


def test_low_precision_velocities_are_accepted():
    noise = jnp.ones((1, 1, 1, 2))
    solution = integrate(
        lambda z, t, _: z.astype(jnp.bfloat16), noise, None, num_steps=2
    )
    assert solution.latents.dtype == jnp.float32


def test_the_six_settings_of_the_paper():
    settings = {(s.num_steps, s.guidance_scale) for s in PAPER_SETTINGS.values()}
    assert settings == {(50, 1), (50, 2.5), (50, 5), (5, 5), (10, 5), (25, 5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"solver": "rk4"}, r"solver must be one of \['adams_bashforth', 'euler', 'he"),
        ({"grid": "log"}, r"grid must be one of \['diffusers', 'karras', 'uniform'\]"),
        ({"shift": -1.0}, "shift must be a finite number > 0, got -1"),
        (
            {"grid": "diffusers", "formulation": parse("eps/cos")},
            "grid 'diffusers' integrates rectified flow only.* got eps/cos",
        ),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        integrate(
            lambda z, t, _: z,
            jnp.ones((1, 1, 1, 1)),
            None,
            **{"num_steps": 2} | options,
        )
