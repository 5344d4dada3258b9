# SPDX-License-Identifier: Apache-2.0
"""Densities against numerical integrals, samples and the figures of the paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from rfjax.flow.path import COSINE, EDM, RECTIFIED_FLOW
from rfjax.flow.timesteps import (
    MODE_SCALE_MAX,
    CosMap,
    LogitNormal,
    Mode,
    Shifted,
    Uniform,
    UniformLevels,
    resolution_shift,
    sample_timesteps,
    shift_timesteps,
)

DENSITIES = [
    Uniform(),
    CosMap(),
    *(LogitNormal(m, s) for m, s in [(0, 1), (-1, 0.2), (1, 0.6), (-0.5, 2.2)]),
    *(Mode(s) for s in [-1, -0.0833, 0.375, 1.29, 1.75, MODE_SCALE_MAX]),
    Shifted(LogitNormal(0, 1), 3.0),
    Shifted(Mode(1.29), 0.5),
]


@pytest.fixture(scope="module")
def uniform():
    keys = jax.random.split(jax.random.key(0), 1_000_000)
    return sample_timesteps(keys, density=Uniform())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_density_integrates_to_its_cdf_and_to_one(density):
    # One half is an edge because the mode densities have their pole there.
    edges = np.linspace(0, 1, 17)
    pdf = jax.jit(density.density)
    pieces = [
        integrate.quad(lambda t: float(pdf(t)), low, high, limit=200)[0]
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    cdf = np.asarray(density.cdf(jnp.asarray(edges)))
    assert sum(pieces) == pytest.approx(1, abs=1e-6)
    # At its upper limit the mode map is a cubic around 1/2: an error of 1e-16 in t is
    # one of 5e-6 in u.
    atol = 1e-5 if density == Mode(MODE_SCALE_MAX) else 1e-6
    np.testing.assert_allclose(np.cumsum(pieces), cdf[1:] - cdf[0], atol=atol)


@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_million_samples_follow_the_density(density, uniform):
    samples = np.asarray(jax.jit(density.from_uniform)(uniform))
    assert samples.dtype == np.float32
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert _ks_distance(samples, density) < 0.003


@pytest.mark.parametrize(
    "other", [LogitNormal(0.05, 1), LogitNormal(0, 1.1), CosMap(), Uniform()], ids=str
)
def test_million_samples_do_not_follow_another_density(other, uniform):
    samples = np.asarray(LogitNormal(0, 1).from_uniform(uniform))
    assert _ks_distance(samples, other) > 0.01


def test_one_sample_per_key_and_never_an_end(uniform):
    keys = jax.random.split(jax.random.key(0), 1_000_000)[:100]
    density = LogitNormal(0, 1)
    samples = sample_timesteps(keys, density=density)
    np.testing.assert_array_equal(samples, density.from_uniform(uniform[:100]))
    backwards = sample_timesteps(keys[::-1], density=density)
    np.testing.assert_array_equal(samples, backwards[::-1])
    assert uniform.min() > 0
    assert uniform.max() < 1


def _ks_distance(samples, density):
    """Bounds Kolmogorov-Smirnov from above: exact at every 100th sample, plus 1e-4."""
    ranks = np.arange(0, len(samples), 100)
    with jax.enable_x64(True):
        t = jnp.asarray(np.sort(samples)[ranks], jnp.float64)
        cdf = np.asarray(jax.jit(density.cdf)(t))
    return np.abs(cdf - ranks / len(samples)).max() + 1e-4


# 10, 25, 50, 75 and 90 % of the samples lie below; from SciPy's normal quantiles.
@pytest.mark.parametrize(
    ("density", "quantiles"),
    [
        (LogitNormal(0, 1), [0.2173, 0.3375, 0.5, 0.6625, 0.7827]),
        (Shifted(LogitNormal(0, 1), 3.0), [0.4544, 0.6045, 0.75, 0.8548, 0.9153]),
        (CosMap(), [0.1367, 0.2929, 0.5, 0.7071, 0.8633]),
    ],
    ids=str,
)
def test_quantiles(density, quantiles):
    uniform = jnp.array([0.1, 0.25, 0.5, 0.75, 0.9])
    t = jax.jit(density.from_uniform)(uniform)
    np.testing.assert_allclose(t, quantiles, atol=5e-5)


@pytest.mark.parametrize(
    ("density", "centre", "end"),
    [
        (CosMap(), 4 / math.pi, 2 / math.pi),
        (Mode(1.2917), 3.806, 0.43635),
        (Mode(0.0), 1, 1),
        (LogitNormal(0, 1), 4 / math.sqrt(2 * math.pi), 0),
    ],
    ids=str,
)
def test_density_at_centre_and_ends(density, centre, end):
    values = jax.jit(density.density)(jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(values, [end, centre, end], rtol=1e-3)


def test_mode_of_0_is_uniform_and_others_are_not():
    t = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(Mode(0.0).density(t), jnp.ones(11), atol=1e-6)
    assert jnp.abs(Mode(0.375).density(t) - 1).max() > 0.1


@pytest.mark.usefixtures("x64")
def test_mode_decreases_from_one_to_zero_just_up_to_its_limits():
    uniform = np.linspace(0, 1, 100_001)
    for scale in (-1, 1.75, MODE_SCALE_MAX):
        t = np.asarray(Mode(scale).from_uniform(uniform))
        np.testing.assert_allclose(t[[0, -1]], [1, 0], atol=1e-15)
        assert (np.diff(t) <= 0).all()
    # Eq. 20 in NumPy, a little outside the range.
    for scale in (-1.05, 1.76):
        bend = np.cos(np.pi / 2 * uniform) ** 2 - 1 + uniform
        assert (np.diff(1 - uniform - scale * bend) > 0).any()


@pytest.mark.usefixtures("x64")
def test_cosmap_gives_the_log_snr_of_the_cosine_path():
    uniform = np.linspace(0.001, 0.999, 1000)
    cosine = COSINE.log_snr(uniform)
    log_snr = RECTIFIED_FLOW.log_snr(CosMap().from_uniform(uniform))
    other = RECTIFIED_FLOW.log_snr(Uniform().from_uniform(uniform))
    np.testing.assert_allclose(log_snr, cosine, atol=1e-11)
    np.testing.assert_allclose(cosine, -2 * np.log(np.tan(np.pi / 2 * uniform)))
    assert np.abs(other - cosine).max() > 0.5


@pytest.mark.parametrize(
    ("path", "density", "mean", "std"),
    [
        (EDM(-1.2, 1.2), Uniform(), 2.4, 2.4),
        (EDM(0.6, 1.8), Uniform(), -1.2, 3.6),
        (RECTIFIED_FLOW, LogitNormal(0.5, 0.6), -1.0, 1.2),
    ],
    ids=str,
)
def test_log_snr_is_normal(path, density, mean, std, uniform):
    log_snr = jax.jit(lambda u: path.log_snr(density.from_uniform(u)))(uniform)
    log_snr = np.asarray(log_snr)
    assert stats.kstest(log_snr, stats.norm(mean, std).cdf).statistic < 0.003
    assert stats.kstest(log_snr, stats.norm(-mean, std).cdf).statistic > 0.01
    assert stats.kstest(log_snr, stats.norm(mean, std / 2).cdf).statistic > 0.01


def test_levels_are_hit_equally_often(uniform):
    samples = np.asarray(UniformLevels(10).from_uniform(uniform))
    levels, counts = np.unique(samples, return_counts=True)
    np.testing.assert_allclose(levels, np.arange(10) / 9, rtol=1e-6)
    np.testing.assert_allclose(counts, 100_000, rtol=0.02)


@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_nothing_is_nan_at_the_ends(density):
    ends = jnp.array([0.0, 1.0])
    for function in (density.from_uniform, density.density, density.cdf):
        assert not np.isnan(jax.jit(function)(ends)).any()


def test_shift_moves_the_log_snr_by_a_constant():
    t = jnp.linspace(0.05, 0.95, 19)
    shifted = shift_timesteps(t, shift=3.0)
    difference = RECTIFIED_FLOW.log_snr(shifted) - RECTIFIED_FLOW.log_snr(t)
    np.testing.assert_allclose(difference, -2 * np.log(3), rtol=1e-5)
    assert shift_timesteps(0.5, shift=3.0) == 0.75
    np.testing.assert_array_equal(shift_timesteps(t, shift=1.0), t)
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(shift_timesteps(ends, shift=3.0), ends)


def test_shifts_compose_by_multiplying():
    t = np.linspace(0, 1, 11)
    twice = shift_timesteps(shift_timesteps(t, shift=3.0), shift=2.0)
    np.testing.assert_allclose(twice, shift_timesteps(t, shift=6.0), rtol=1e-14)
    assert np.abs(twice - shift_timesteps(t, shift=5.0)).max() > 0.01


def test_shifted_lognorm_is_another_lognorm():
    t = jnp.linspace(0.01, 0.99, 99)
    shifted = Shifted(LogitNormal(0.3, 0.8), 3.0)
    same = LogitNormal(0.3 + math.log(3), 0.8)
    density, expected, control = (
        np.asarray(jax.jit(d.density)(t)) for d in (shifted, same, shifted.base)
    )
    np.testing.assert_allclose(density, expected, rtol=1e-4)
    assert np.abs(density - control).max() > 0.5


def test_resolution_shift_is_the_root_of_the_pixel_ratio():
    shift = resolution_shift(num_pixels=1024**2, reference_num_pixels=256**2)
    assert shift == 4.0
    with pytest.raises(ValueError, match="num_pixels must be .* > 0, got -1"):
        resolution_shift(num_pixels=-1, reference_num_pixels=1)


@pytest.mark.parametrize("scale", [-1.05, 1.76, math.nan])
def test_mode_out_of_range(scale):
    with pytest.raises(ValueError, match=r"mode scale s must be in \[-1, 2/\(pi - 2\)"):
        Mode(scale)


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf])
def test_lognorm_out_of_range(std):
    with pytest.raises(ValueError, match="lognorm standard deviation s must be"):
        LogitNormal(0.0, std)
    with pytest.raises(ValueError, match="lognorm mean m must be finite"):
        LogitNormal(math.nan, 1.0)


@pytest.mark.parametrize("shift", [0, -3.0, math.inf])
def test_shift_out_of_range(shift):
    with pytest.raises(ValueError, match="shift must be a finite number > 0, got"):
        shift_timesteps(jnp.ones(3), shift=shift)
    with pytest.raises(ValueError, match="shift must be a finite number > 0, got"):
        Shifted(Uniform(), shift)
