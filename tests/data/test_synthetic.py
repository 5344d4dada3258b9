# SPDX-License-Identifier: Apache-2.0
"""Synthetic streams behave as those from disk, and can be learnt."""

import dataclasses
import hashlib
import itertools

import jax
import numpy as np
import pytest

from rfjax.data import Dataset, SyntheticConfig

CONFIG = SyntheticConfig(num_train=64, num_validation=10)


def take(config, count, **options):
    arguments = {"global_batch_size": 16, "seed": 0} | options
    stream = config.train_stream(**arguments)
    batches = list(itertools.islice(stream, count))
    stream.close()
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    order = np.argsort(joined.sample_index)
    return jax.tree.map(lambda leaf: leaf[order], joined)


def test_shapes_are_those_of_the_manifest():
    config = SyntheticConfig(
        latent_shape=(4, 6, 2), context_shape=(3, 5), pooled_dim=7, context_mask=True
    )
    stream = config.train_stream(global_batch_size=4, seed=0)
    batch = next(stream)
    stream.close()
    assert batch.latents.shape == (4, 4, 6, 2) == stream.specs[0].latents.shape
    assert batch.conditioning.context.shape == (4, 3, 5)
    assert batch.conditioning.pooled.shape == (4, 7)
    assert batch.conditioning.context_mask.all()
    manifest = config.manifest()
    assert manifest.latent_shape == (4, 6, 2)
    assert manifest.context_shape == (3, 5)
    assert manifest.pooled_dim == 7


def test_runs_know_the_data_by_the_same_hash_as_ever():
    """However it is read: more threads read no other data."""

    def data_hash(**fields):
        text = SyntheticConfig(**fields).manifest().to_json()
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    reading = {
        "read_threads": 3,
        "prefetch_batches": 5,
        "shuffle_seed": 4,
        "caption_dropout": 0.5,
        "encoder_dropout": 0.5,
        "caption_weights": (2.0,),
        "context_mask": True,
        "latents_dtype": "bfloat16",
        "encoders": ("elsewhere",),
    }
    assert {*reading} == {field.name for field in dataclasses.fields(Dataset)}
    assert data_hash() == data_hash(**reading) == "3a2bb67b6c21"
    assert data_hash(data_seed=1) != data_hash(), "control"


def test_latents_have_mean_zero_and_unit_variance():
    latents = take(CONFIG, 8).latents
    assert latents.mean() == pytest.approx(0, abs=0.05)
    assert latents.var() == pytest.approx(1, abs=0.1)


def test_text_tells_the_class():
    """The mean latents of one caption explain most of the variance."""
    batch = take(SyntheticConfig(caption_dropout=0.0), 32)
    captions = batch.conditioning.pooled.astype(np.float32)
    _, labels = np.unique(captions, axis=0, return_inverse=True)
    assert labels.max() + 1 == 8
    left = sum(
        batch.latents[labels == label].var(axis=0).sum() * np.sum(labels == label)
        for label in range(8)
    )
    assert left / (batch.latents.var() * batch.latents.size) < 0.15
    shuffled = np.random.default_rng(0).permutation(labels)
    left = sum(
        batch.latents[shuffled == label].var(axis=0).sum() * np.sum(shuffled == label)
        for label in range(8)
    )
    assert left / (batch.latents.var() * batch.latents.size) > 0.5


def test_streams_are_reproducible_and_shared_by_processes():
    whole = take(CONFIG, 6)
    half = [take(CONFIG, 6, process_index=i, process_count=2) for i in range(2)]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *half)
    order = np.argsort(joined.sample_index)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[order], b), joined, whole)
    assert not np.array_equal(take(CONFIG, 6, seed=1).latents, whole.latents)


def test_validation_is_held_out():
    ((batch, valid),) = CONFIG.validation_batches(batch_size=12)
    assert valid.tolist() == [True] * 10 + [False] * 2
    train = {row.tobytes() for row in take(CONFIG, 4).latents}
    assert len(train) == 64
    assert not train & {row.tobytes() for row in batch.latents}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "data.num_train must be at least 1, got 0"),
        ({"latent_shape": (8, 8)}, r"data.latent_shape must be 3 numbers.*\(8, 8\)"),
        ({"context_shape": (0, 4)}, "data.context_shape must be at least 1, got 0"),
        ({"caption_dropout": 2.0}, "data.caption_dropout must be between"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**options)
