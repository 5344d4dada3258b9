# SPDX-License-Identifier: Apache-2.0
"""The 61 names, and every formulation on the rectified path."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax.flow.formulations import REGISTRY, parse
from rfjax.flow.path import COSINE, EDM, LDM_LINEAR, RECTIFIED_FLOW
from rfjax.flow.timesteps import CosMap, LogitNormal, Mode, Uniform

# As printed in the tables of the paper, with a plain minus sign.
PRINTED = """
    rf/lognorm(0.00,1.00) rf/lognorm(1.00,0.60) rf/lognorm(0.50,0.60) rf/mode(1.29)
    rf/lognorm(0.50,1.00) eps/linear rf/mode(1.75) rf/cosmap edm(0.00,0.60) rf v/linear
    edm(0.60,1.20) v/cos edm/cos edm/rf edm(-1.20,1.20) rf/lognorm(-0.50,1.00)
""".split()


def test_the_paper_compares_61():
    assert len(REGISTRY) == 61
    assert set(PRINTED) <= set(REGISTRY)
    families = [re.sub(r"\(.*", "", name) for name in REGISTRY]
    counts = {family: families.count(family) for family in families}
    assert counts == {
        "eps/linear": 1,
        "v/linear": 1,
        "eps/cos": 1,
        "v/cos": 1,
        "rf": 1,
        "rf/mode": 8,
        "rf/lognorm": 30,
        "rf/cosmap": 1,
        "edm": 15,
        "edm/rf": 1,
        "edm/cos": 1,
    }
    assert len(set(REGISTRY.values())) == 61


@pytest.mark.parametrize(
    "name", [*REGISTRY, "rf/lognorm(0.25,1.00)", "rf/mode(-0.1)", "edm(-0.4,1)"]
)
def test_names_are_printed_back(name):
    assert str(parse(name)) == name


@pytest.mark.parametrize(
    ("name", "path", "prediction", "density"),
    [
        ("rf", RECTIFIED_FLOW, "velocity", Uniform()),
        ("rf/cosmap", RECTIFIED_FLOW, "velocity", CosMap()),
        ("rf/lognorm(-0.50,1.40)", RECTIFIED_FLOW, "velocity", LogitNormal(-0.5, 1.4)),
        ("rf/lognorm(0.25,1.00)", RECTIFIED_FLOW, "velocity", LogitNormal(0.25, 1.0)),
        ("rf/mode(-1.00)", RECTIFIED_FLOW, "velocity", Mode(-1.0)),
        ("rf/mode(0.50)", RECTIFIED_FLOW, "velocity", Mode(0.5)),
        ("v/cos", COSINE, "v", Uniform()),
        ("eps/cos", COSINE, "noise", Uniform()),
        ("edm(-1.20,1.80)", EDM(-1.2, 1.8), "F", Uniform()),
        ("edm/rf", RECTIFIED_FLOW, "F", Uniform()),
        ("edm/cos", COSINE, "F", Uniform()),
    ],
)
def test_names_mean_what_they_say(name, path, prediction, density):
    formulation = parse(name)
    assert formulation.path == path
    assert formulation.prediction == prediction
    assert formulation.density == density


def test_names_of_the_paper_mean_the_exact_grid():
    """Seven scales from -1 to 1.75, which the paper prints with two decimals."""
    assert parse("rf/mode(1.29)").density.scale == pytest.approx(1.75 - 2.75 / 6)
    assert parse("rf/mode(0.38)").density.scale == 0.375
    assert parse("rf/mode(1.30)").density.scale == 1.3


def test_discrete_schedules_train_on_their_levels():
    for name in ("eps/linear", "v/linear"):
        formulation = parse(name)
        assert formulation.path == LDM_LINEAR
        assert formulation.density.num_levels == 1000


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("rf/lognorm(0,00,1.00)", r"rf/lognorm\(0\.00,1\.00\)"),
        ("eps/cosine", "eps/cos"),
        ("rf/cosmaps", "rf/cosmap"),
        ("", "the nearest are"),
    ],
)
def test_wrong_names_list_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"one of the 61 names.*{nearest}"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rf/mode(1.76)", r"mode scale s must be in \[-1, 2/\(pi - 2\)"),
        ("rf/lognorm(0.00,0.00)", "lognorm standard deviation s must be .* > 0"),
        ("edm(0.00,-1.00)", "edm standard deviation P_s must be .* > 0"),
    ],
)
def test_parameters_out_of_range(name, message):
    with pytest.raises(ValueError, match=message):
        parse(name)


def test_oracles_of_all_formulations_are_the_same_velocity(
    formulation_name, gaussian_oracle
):
    """E[noise - latents | z] for latents ~ N(0, s^2), in closed form."""
    # Inside the range of every path: edm(0.60,0.60) never has less noise than 0.07.
    t = jnp.linspace(0.08, 0.92, 9)
    std = 0.7
    z = jnp.asarray(
        np.random.default_rng(0).normal(size=(len(t), 2, 3, 4)), jnp.float32
    )
    network_fn = gaussian_oracle(formulation_name, std)
    velocity_fn = parse(formulation_name).velocity_fn(network_fn)
    velocity = jax.jit(velocity_fn)(z, t, None)
    gain = (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2)
    expected = gain[:, None, None, None] * z
    np.testing.assert_allclose(velocity, expected, rtol=2e-3, atol=2e-4)
    if not formulation_name.startswith("rf"):
        assert jnp.abs(network_fn(z, t, None) - expected).max() > 0.1


def test_velocity_is_finite_at_the_ends(formulation_name):
    z = jnp.full((2, 1, 1, 3), 2.0)
    asked = []

    def network_fn(network_input, timesteps, conditioning):
        asked.append(timesteps)
        return jnp.tanh(network_input)

    velocity_fn = parse(formulation_name).velocity_fn(network_fn)
    velocity = velocity_fn(z, jnp.array([0.0, 1.0]), None)
    assert jnp.isfinite(velocity).all()
    np.testing.assert_allclose(asked[0], [0, 1], atol=0.08)


def test_variance_preserving_networks_start_from_unit_noise():
    """At t = 1 the input is the noise itself, as in latent diffusion."""
    inputs = []

    def network_fn(network_input, timesteps, conditioning):
        inputs.append(network_input)
        return network_input

    z = jnp.full((1, 1, 1, 3), 2.0)
    for name in ("eps/linear", "v/linear", "eps/cos", "v/cos", "edm(-1.20,1.20)"):
        parse(name).velocity_fn(network_fn)(z, jnp.ones(1), None)
    np.testing.assert_allclose(inputs, [z] * 5, rtol=1e-6)


def test_rectified_networks_are_velocities_already():
    def network_fn(noisy_latents, timesteps, conditioning):
        raise NotImplementedError

    assert parse("rf/cosmap").velocity_fn(network_fn) is network_fn
    assert parse("edm/rf").velocity_fn(network_fn) is not network_fn
