# SPDX-License-Identifier: Apache-2.0
"""Losses of a perfect network against closed forms; keys that follow the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rfjax.flow.formulations import parse
from rfjax.flow.objective import example_keys, loss_at_timesteps, loss_per_example
from rfjax.flow.timesteps import shift_timesteps

STD = 0.7
# Few shapes, because each new one is compiled.
SHAPE = (64, 16, 16, 8)
MANY = (20_000, 1, 1, 4)


def _keys(batch, step=0):
    return example_keys(jax.random.key(1), step=step, sample_index=batch.sample_index)


def _rows(batch, rows):
    return jax.tree.map(lambda array: array[rows], batch)


def _closed_form(t, std):
    """The smallest velocity loss for latents ~ N(0, std^2)."""
    noisy_variance = (1 - t) ** 2 * std**2 + t**2
    return 1 + std**2 - (t - (1 - t) * std**2) ** 2 / noisy_variance


def test_training_loss_of_a_perfect_network(
    formulation_name, gaussian_oracle, make_batch
):
    batch = make_batch(SHAPE, std=STD)
    oracle = gaussian_oracle(formulation_name, STD)
    output = loss_per_example(
        oracle, batch, keys=_keys(batch), formulation=parse(formulation_name)
    )
    assert output.loss.shape == output.timesteps.shape == (64,)
    assert output.loss.dtype == output.timesteps.dtype == jnp.float32
    # 64 means over 2048 squares: 0.4 % standard error.
    ratio = output.loss / oracle.loss(output.timesteps)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.08

    worse = gaussian_oracle(formulation_name, 2 * STD)
    control = loss_per_example(
        worse, batch, keys=_keys(batch), formulation=parse(formulation_name)
    )
    assert control.loss.mean() > 1.02 * output.loss.mean()


def test_validation_loss_of_every_formulation_is_the_same(
    formulation_name, gaussian_oracle, make_batch
):
    batch = make_batch((9, 32, 32, 16), std=STD)
    noise = make_batch((9, 32, 32, 16), seed=1).latents
    t = jnp.arange(9) / 8
    loss = loss_at_timesteps(
        gaussian_oracle(formulation_name, STD),
        batch,
        timesteps=t,
        noise=noise,
        formulation=parse(formulation_name),
    )
    assert jnp.isfinite(loss).all()
    # 16384 squares, 1.1 %; a discrete level may be half a level away from t.
    np.testing.assert_allclose(loss[1:8], _closed_form(t[1:8], STD), rtol=0.04)
    assert loss[0] == pytest.approx(1, rel=0.04)


def test_validation_loss_for_unit_latents(gaussian_oracle, make_batch):
    """1, 1.6, 2, 1.6, 1 at t = 0, 1/4, 1/2, 3/4, 1."""
    loss = loss_at_timesteps(
        gaussian_oracle("rf", 1.0),
        make_batch((5, 32, 32, 16)),
        timesteps=jnp.arange(5) / 4,
        noise=make_batch((5, 32, 32, 16), seed=1).latents,
        formulation=parse("rf"),
    )
    np.testing.assert_allclose(loss, [1, 1.6, 2, 1.6, 1], rtol=0.04)


def test_rectified_loss_is_the_velocity_error(make_batch):
    batch = make_batch(SHAPE)
    seen = {}

    def network_fn(noisy_latents, timesteps, conditioning):
        seen.update(z=noisy_latents, t=timesteps)
        return jnp.zeros_like(noisy_latents)

    output = loss_per_example(
        network_fn, batch, keys=_keys(batch), formulation=parse("rf")
    )
    t = np.asarray(seen["t"])[:, None, None, None]
    noise = (np.asarray(seen["z"]) - (1 - t) * np.asarray(batch.latents)) / t
    expected = np.square(noise - batch.latents).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(output.timesteps, seen["t"])


def test_draws_follow_the_example_not_the_row(gaussian_oracle, make_batch):
    batch = make_batch(SHAPE)
    formulation = parse("rf/lognorm(0.00,1.00)")

    def losses(batch, step):
        return loss_per_example(
            gaussian_oracle("rf", 1.0),
            batch,
            keys=_keys(batch, step),
            formulation=formulation,
        )

    whole = losses(batch, 0)
    rows = jnp.array([6, 1, 3])
    part = losses(_rows(batch, rows), 0)
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[rows])
    np.testing.assert_allclose(part.loss, whole.loss[rows], rtol=1e-6)
    assert len(np.unique(whole.timesteps)) == 64
    assert (losses(batch, 1).timesteps != whole.timesteps).all()


def test_draws_do_not_depend_on_the_devices(gaussian_oracle, make_batch):
    batch = make_batch(SHAPE)
    mesh = jax.make_mesh((8,), ("data",))
    sharding = jax.NamedSharding(mesh, jax.P("data"))

    @jax.jit
    def timesteps(sample_index):
        keys = example_keys(jax.random.key(1), step=0, sample_index=sample_index)
        return jax.vmap(jax.random.uniform)(keys)

    spread = timesteps(jax.device_put(batch.sample_index, sharding))
    np.testing.assert_array_equal(spread, timesteps(batch.sample_index))


def test_shift_moves_the_drawn_timesteps(gaussian_oracle, make_batch):
    batch = make_batch(SHAPE)

    def timesteps(name, shift):
        return loss_per_example(
            gaussian_oracle(name, 1.0),
            batch,
            keys=_keys(batch),
            formulation=parse(name),
            shift=shift,
        ).timesteps

    t = timesteps("rf", 1.0)
    expected = shift_timesteps(t, shift=3.0)
    np.testing.assert_allclose(timesteps("rf", 3.0), expected, rtol=1e-6)
    for name in ("v/cos", "edm(-1.20,1.20)", "eps/linear"):
        expected = shift_timesteps(timesteps(name, 1.0), shift=3.0)
        np.testing.assert_allclose(timesteps(name, 3.0), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("rf", stats.logistic(0, 2)),
        ("rf/lognorm(0.50,0.60)", stats.norm(-1, 1.2)),
        ("rf/cosmap", stats.hypsecant(0, 2)),
        ("v/cos", stats.hypsecant(0, 2)),
        ("edm/cos", stats.hypsecant(0, 2)),
        ("edm/rf", stats.logistic(0, 2)),
        ("edm(-1.20,1.20)", stats.norm(2.4, 2.4)),
    ],
)
def test_trained_log_snr(name, distribution, make_batch):
    batch = make_batch(MANY)
    t = loss_per_example(
        lambda z, t, _: z, batch, keys=_keys(batch), formulation=parse(name)
    ).timesteps
    log_snr = 2 * np.log((1 - t) / t)
    # 0.0115 is the 1 % point of the statistic for 20,000 samples.
    assert stats.kstest(log_snr, distribution.cdf).statistic < 0.0115
    assert stats.kstest(log_snr + 0.3, distribution.cdf).statistic > 0.0115


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_reweighting_equals_resampling_in_expectation(make_batch, shift):
    """Eq. 18, on the loss and on its gradient in one parameter."""
    batch = make_batch(MANY)

    def mean_loss(gain, density_as, name):
        loss = loss_per_example(
            lambda z, t, _: gain * t[:, None, None, None] * z,
            batch,
            keys=_keys(batch),
            formulation=parse(name),
            shift=shift,
            density_as=density_as,
        ).loss
        return loss.mean()

    value_and_grad = jax.value_and_grad(mean_loss)
    name = "rf/lognorm(1.00,0.60)"
    resampled = value_and_grad(0.3, "sampler", name)
    np.testing.assert_allclose(value_and_grad(0.3, "weight", name), resampled, 0.04)
    uniform = value_and_grad(0.3, "sampler", "rf")
    assert abs(uniform[1] / resampled[1] - 1) > 0.2


def test_gradients_reach_the_parameters_and_stay_finite(formulation_name, make_batch):
    batch = make_batch(SHAPE)

    @jax.grad
    def gradient(gain):
        return loss_per_example(
            lambda z, t, _: gain * jnp.tanh(z),
            batch,
            keys=_keys(batch),
            formulation=parse(formulation_name),
            shift=3.0,
        ).loss.mean()

    value = gradient(0.5)
    assert jnp.isfinite(value)
    assert value != 0


def test_low_precision_networks_are_compared_in_float32(make_batch):
    batch = make_batch(SHAPE)
    output = loss_per_example(
        lambda z, t, _: z.astype(jnp.bfloat16),
        batch,
        keys=_keys(batch),
        formulation=parse("v/cos"),
    )
    assert output.loss.dtype == jnp.float32


def test_bad_input(make_batch):
    batch = make_batch(SHAPE)

    def loss(name="rf", **options):
        loss_per_example(
            lambda z, t, _: z,
            batch,
            keys=_keys(batch),
            formulation=parse(name),
            **options,
        )

    with pytest.raises(ValueError, match="shift must be a finite number > 0, got 0"):
        loss(shift=0)
    with pytest.raises(ValueError, match=r"density_as must be one of \['sampler', 'w"):
        loss(density_as="both")
    with pytest.raises(ValueError, match="needs a formulation on the rectified path"):
        loss("eps/cos", density_as="weight")
