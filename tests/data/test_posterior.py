# SPDX-License-Identifier: Apache-2.0
"""Sampling latents from the posterior that an autoencoder gave."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from rfjax.data import ShardsConfig
from rfjax.data.assembly import sample_posterior

NUM_TRAIN, NUM_VALIDATION = 37, 11


def draw(mean, log_variance, *, seed=0, dtype=np.float32):
    out = np.full(mean.shape, np.nan, dtype)
    sample_posterior(mean, log_variance, np.random.default_rng(seed), out=out)
    return out


def test_the_noise_is_normal():
    zeros = np.zeros((64, 64, 64), ml_dtypes.bfloat16)
    noise = draw(zeros, zeros).ravel()
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert stats.kstest(noise * 1.01, "norm").pvalue < 1e-3, "control"
    assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(noise.size))
    assert noise.var() == pytest.approx(1, abs=4 * np.sqrt(2 / noise.size))
    assert stats.kurtosis(noise) == pytest.approx(0, abs=4 * np.sqrt(24 / noise.size))
    assert np.abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 4 / np.sqrt(noise.size)
    assert not np.array_equal(draw(zeros, zeros, seed=1).ravel(), noise)


def test_samples_have_the_moments_of_diffusers():
    """Mean and deviation as the class that its autoencoders return."""
    torch = pytest.importorskip("torch")
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    rng = np.random.default_rng(0)
    mean = rng.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16)
    log_variance = rng.uniform(-6, 2, mean.shape).astype(ml_dtypes.bfloat16)
    parameters = np.concatenate([mean, log_variance], axis=-1).astype(np.float32)
    channels_first = torch.from_numpy(np.moveaxis(parameters, -1, 0)[None].copy())
    theirs = DiagonalGaussianDistribution(channels_first)
    count = 4000
    repeated = [np.broadcast_to(x, (count, *x.shape)) for x in (mean, log_variance)]
    ours = draw(*repeated)
    deviation = np.moveaxis(theirs.std[0].numpy(), 0, -1)
    off = (ours.mean(axis=0) - np.moveaxis(theirs.mean[0].numpy(), 0, -1)) / deviation
    assert np.abs(off).max() < 4.5 / np.sqrt(count)
    np.testing.assert_allclose(
        ours.std(axis=0), deviation, rtol=4.5 / np.sqrt(2 * count)
    )
    wrong = np.exp(log_variance.astype(np.float32))  # control: of the variance
    assert np.abs(ours.std(axis=0) / wrong - 1).max() > 0.5


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 3, 3)])
def test_any_shape_and_dtype(shape):
    mean = np.full(shape, 100.0, ml_dtypes.bfloat16)
    sample = draw(mean, np.zeros_like(mean), dtype=ml_dtypes.bfloat16)
    assert np.isfinite(sample.astype(np.float32)).all()
    # Without variance it is the mean.
    nothing = np.full(shape, -200.0, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(draw(mean, nothing), mean.astype(np.float32))


# -- In a stream -------------------------------------------------------------------


@pytest.fixture(scope="module")
def posterior_root(tmp_path_factory, tiny):
    """Means that are the record's number, standard deviations of 1/8."""

    def record(split, index):
        latents = np.full((4, 4, 6), index, ml_dtypes.bfloat16)
        log_variance = np.full_like(latents, 2 * np.log(1 / 8))
        return tiny.record(split, index) | {
            "latents": latents,
            "log_variance": log_variance,
        }

    manifest = tiny.manifest()
    latent = dataclasses.replace(manifest.latent, has_variance=True)
    root = tmp_path_factory.mktemp("posterior") / "data"
    tiny.write(
        root,
        manifest=dataclasses.replace(manifest, latent=latent),
        examples={
            split: [record(split, index) for index in range(count)]
            for split, count in tiny.splits.items()
        },
    )
    return root


def read(root, num_batches, *, seed=0, index=0, count=1, start=0):
    """The latents by position, [num_batches * B, H, W, C]."""
    stream = ShardsConfig(str(root), read_threads=2).train_stream(
        global_batch_size=NUM_TRAIN - 1,
        seed=seed,
        process_index=index,
        process_count=count,
    )
    stream.set_state({"global_next_index": start})
    batches = [next(stream) for _ in range(num_batches)]
    stream.close()
    return {
        int(position): latents
        for batch in batches
        for position, latents in zip(batch.sample_index, batch.latents, strict=True)
    }


def test_every_position_has_noise_of_its_own(posterior_root):
    latents = read(posterior_root, 40)
    by_record = {}
    for sample in latents.values():
        by_record.setdefault(int(np.rint(sample.mean())), []).append(sample)
    assert sorted(by_record) == list(range(NUM_TRAIN))
    noise = np.stack(
        [sample - number for number, own in by_record.items() for sample in own]
    )
    assert noise.std() == pytest.approx(1 / 8, rel=0.02)
    # No two samples of a record are alike, nor two records at all.
    flat = noise.reshape(len(noise), -1)
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.6


def test_noise_follows_the_position_alone(posterior_root):
    """However many processes read, and wherever they start."""
    whole = read(posterior_root, 4)
    parts = read(posterior_root, 4, count=2), read(posterior_root, 4, index=1, count=2)
    assert whole.keys() == parts[0].keys() | parts[1].keys()
    for position, sample in (parts[0] | parts[1]).items():
        np.testing.assert_array_equal(sample, whole[position])
    resumed = read(posterior_root, 2, start=2 * (NUM_TRAIN - 1))
    for position, sample in resumed.items():
        np.testing.assert_array_equal(sample, whole[position])
    other = read(posterior_root, 1, seed=1)
    assert not np.array_equal(
        other[0] - np.rint(other[0].mean()), whole[0] - np.rint(whole[0].mean())
    )


def test_validation_is_the_same_for_ever(posterior_root):
    def collect(batch_size, **options):
        config = ShardsConfig(str(posterior_root), **options)
        rows = [
            batch.latents[valid]
            for batch, valid in config.validation_batches(batch_size=batch_size)
        ]
        return np.concatenate(rows)

    first = collect(4)
    np.testing.assert_array_equal(collect(11, shuffle_seed=9), first)
    numbers = np.arange(NUM_VALIDATION)[:, None, None, None]
    noise = first - numbers
    assert noise.std() == pytest.approx(1 / 8, rel=0.1)
    assert len(np.unique(noise[:, 0, 0, 0])) == NUM_VALIDATION, "one draw for each"
    # It is none of the training noise, of whatever seed.
    train = read(posterior_root, 1)
    assert not np.array_equal(noise[0], train[0] - np.rint(train[0].mean()))


def test_means_alone_are_read_as_they_are(tiny_root):
    """Data without a posterior gets no noise."""
    batch = jax.tree.map(
        np.asarray,
        next(iter(ShardsConfig(str(tiny_root)).validation_batches(batch_size=4)))[0],
    )
    np.testing.assert_array_equal(batch.latents[:, 0, 0, 0], np.arange(4))
