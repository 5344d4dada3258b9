# SPDX-License-Identifier: Apache-2.0
"""The stream of batches: order, sharing, resuming, dropout; and validation."""

import itertools
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from rfjax.data import ShardsConfig, SyntheticConfig
from rfjax.evaluation import captions

NUM_TRAIN = 37


@pytest.fixture
def config(tiny_root):
    def make(**options):
        return ShardsConfig(str(tiny_root), **{"read_threads": 2} | options)

    return make


@pytest.fixture
def open_stream(config):
    """Opens streams and closes them after the test."""
    streams = []

    def open_one(*, global_batch_size=8, seed=0, index=0, count=1, **options):
        stream = config(**options).train_stream(
            global_batch_size=global_batch_size,
            seed=seed,
            process_index=index,
            process_count=count,
        )
        streams.append(stream)
        return stream

    yield open_one
    for stream in streams:
        stream.close()


def take(stream, count):
    return list(itertools.islice(stream, count))


def join(batches):
    """One batch of the rows of several, in the order of sample_index."""
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    order = np.argsort(joined.sample_index)
    return jax.tree.map(lambda leaf: leaf[order], joined)


def equal(first, second):
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), first, second
    )
    return all(jax.tree.leaves(same))


def records(batch):
    """Which records the rows are: their index is the first latent."""
    return batch.latents[:, 0, 0, 0].astype(int).tolist()


# -- Batches -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"context_mask": True}, {"latents_dtype": "bfloat16"}]
)
def test_batches_have_the_announced_shapes(open_stream, options):
    stream = open_stream(**options)

    def describe(leaf):
        return leaf.shape, np.dtype(leaf.dtype)

    batch = next(stream)
    assert jax.tree.map(describe, batch) == jax.tree.map(describe, stream.specs[0])
    assert batch.latents.dtype == options.get("latents_dtype", "float32")
    assert batch.conditioning.context.dtype == ml_dtypes.bfloat16
    assert (batch.conditioning.context_mask is None) == ("context_mask" not in options)


def test_rows_are_the_records(open_stream, tiny):
    batch = next(open_stream(caption_dropout=0.0))
    for row, index in enumerate(records(batch)):
        record = tiny.record("train", index)
        np.testing.assert_array_equal(batch.latents[row], record["latents"])
        np.testing.assert_array_equal(
            batch.conditioning.context[row], record["context"]
        )
        np.testing.assert_array_equal(batch.conditioning.pooled[row], record["pooled"])


def test_mask_covers_the_real_tokens(open_stream):
    batch = next(open_stream(context_mask=True, caption_dropout=0.0))
    expected = [2 + index % 4 for index in records(batch)]
    mask = batch.conditioning.context_mask
    np.testing.assert_array_equal(mask.sum(axis=1), expected)
    assert all(row[:length].all() for row, length in zip(mask, expected, strict=True))


@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_a_dropped_caption_is_the_unconditional_side_of_guidance(
    tiny, tmp_path, layout
):
    """What training saw for no caption is what sampling is guided away from."""
    tiny.write(tmp_path / "data", layout=layout)
    length = int(tiny.empty_caption["context_length"])
    config = ShardsConfig(
        str(tmp_path / "data"), caption_dropout=1.0, context_mask=True
    )
    stream = config.train_stream(global_batch_size=4, seed=0)
    dropped = next(stream).conditioning
    stream.close()
    sampled = captions.empty_caption(config)
    for row in range(4):
        for name in ("context", "pooled", "context_mask"):
            np.testing.assert_array_equal(
                getattr(dropped, name)[row], getattr(sampled, name)[0]
            )
    # As for any other caption, nothing stands where pads are in the layout "unpadded".
    assert dropped.context[0, :length].any()
    assert dropped.context[0, length:].any() == (layout == "padded")


def test_unpadded_contexts_are_filled_with_zeros(tiny, tmp_path):
    tiny.write(tmp_path / "unpadded", layout="unpadded")
    config = ShardsConfig(str(tmp_path / "unpadded"), caption_dropout=0.0)
    stream = config.train_stream(global_batch_size=8, seed=0)
    batch = next(stream)
    stream.close()
    assert batch.conditioning.context.shape == (8, 5, 8)
    for row, index in enumerate(records(batch)):
        context = tiny.record("train", index, "unpadded")["context"]
        np.testing.assert_array_equal(
            batch.conditioning.context[row, : len(context)], context
        )
        assert not batch.conditioning.context[row, len(context) :].any()


# -- Order -------------------------------------------------------------------------


def test_every_epoch_shows_each_record_once_in_its_own_order(open_stream):
    stream = open_stream(global_batch_size=NUM_TRAIN)
    first, second = (records(batch) for batch in take(stream, 2))
    assert sorted(first) == sorted(second) == list(range(NUM_TRAIN))
    assert first != second
    assert first != sorted(first)


def test_sample_index_never_repeats(open_stream):
    batches = take(open_stream(), 12)  # two and a half epochs
    indices = np.concatenate([batch.sample_index for batch in batches])
    np.testing.assert_array_equal(indices, np.arange(96, dtype=np.uint32))


def test_the_seed_decides_the_order(open_stream):
    first = take(open_stream(seed=0), 3)
    again = take(open_stream(seed=0), 3)
    other = take(open_stream(seed=1), 3)
    assert equal(join(first), join(again))
    assert not equal(join(first), join(other))


def test_a_shuffle_seed_fixes_the_order_for_all_runs(open_stream):
    one = next(open_stream(seed=0, shuffle_seed=5))
    two = next(open_stream(seed=1, shuffle_seed=5))
    three = next(open_stream(seed=1, shuffle_seed=6))
    assert records(one) == records(two)
    assert records(one) != records(three)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_same_global_batches(open_stream, count):
    alone = take(open_stream(caption_dropout=0.5), 7)
    hosts = [
        take(open_stream(caption_dropout=0.5, index=i, count=count), 7)
        for i in range(count)
    ]
    for step, whole in enumerate(alone):
        parts = [host[step] for host in hosts]
        assert all(len(part.sample_index) == 8 // count for part in parts)
        assert equal(join(parts), join([whole]))
    other = take(open_stream(caption_dropout=0.5, seed=1, index=0, count=count), 1)
    assert not equal(other[0], hosts[0][0])


def test_read_threads_do_not_change_the_stream(open_stream):
    without = take(open_stream(read_threads=0), 6)
    with_many = take(open_stream(read_threads=8, prefetch_batches=4), 6)
    assert equal(join(without), join(with_many))


# -- Resuming ----------------------------------------------------------------------


def test_resuming_is_exact(open_stream):
    stream = open_stream(caption_dropout=0.3)
    take(stream, 6)  # into the second epoch
    state = stream.get_state()
    assert state == {"global_next_index": 48}
    expected = take(stream, 4)
    resumed = open_stream(caption_dropout=0.3)
    resumed.set_state(state)
    assert equal(join(take(resumed, 4)), join(expected))
    # In the same stream too, backwards.
    stream.set_state(state)
    assert equal(join(take(stream, 4)), join(expected))
    # Control: one step further on it is another batch.
    resumed.set_state({"global_next_index": 56})
    assert not equal(next(resumed), expected[0])


def test_resuming_with_more_processes(open_stream):
    stream = open_stream(caption_dropout=0.3)
    take(stream, 3)
    state, expected = stream.get_state(), next(stream)
    parts = []
    for index in range(4):
        part = open_stream(caption_dropout=0.3, index=index, count=4)
        part.set_state(state)
        parts.append(next(part))
        assert part.get_state() == {"global_next_index": 32}
    assert equal(join(parts), join([expected]))


def test_any_position_is_reached_at_once(open_stream):
    stream = open_stream()
    stream.set_state({"global_next_index": 2**33 + 8})
    batch = next(stream)
    # uint32 wraps; the records are those of the far position.
    np.testing.assert_array_equal(batch.sample_index, np.arange(8, 16))
    assert stream.get_state() == {"global_next_index": 2**33 + 16}
    assert len(set(records(batch))) >= 7  # an epoch may end within


# -- Caption dropout ---------------------------------------------------------------


def dropped_rows(batch, tiny):
    context = np.all(
        batch.conditioning.context == tiny.empty_caption["context"], axis=(1, 2)
    )
    pooled = np.all(batch.conditioning.pooled == tiny.empty_caption["pooled"], axis=1)
    np.testing.assert_array_equal(context, pooled)
    return context


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_captions_are_dropped_at_the_given_rate(open_stream, tiny, rate):
    stream = open_stream(
        global_batch_size=200, caption_dropout=rate, prefetch_batches=1
    )
    dropped = np.concatenate([dropped_rows(batch, tiny) for batch in take(stream, 3)])
    # Four standard deviations of a mean of 600 draws.
    tolerance = 4 * np.sqrt(rate * (1 - rate) / 600)
    assert dropped.mean() == pytest.approx(rate, abs=tolerance + 1e-9)


def test_dropout_changes_with_the_position_not_the_record(open_stream, tiny):
    stream = open_stream(global_batch_size=NUM_TRAIN, caption_dropout=0.5)
    first, second = take(stream, 2)
    rows = [
        dict(zip(records(batch), dropped_rows(batch, tiny), strict=True))
        for batch in (first, second)
    ]
    assert rows[0] != rows[1]


# -- Validation --------------------------------------------------------------------


def collect(config, **options):
    """The valid rows of all batches."""
    rows = []
    for batch, valid in config.validation_batches(**options):
        rows.append(jax.tree.map(lambda leaf, v=valid: leaf[v], batch))
    return join(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_validation_does_not_depend_on_the_batch_size(config, tiny, batch_size):
    whole = collect(config(), batch_size=5)
    np.testing.assert_array_equal(whole.sample_index, np.arange(11))
    assert records(whole) == list(range(11))
    assert equal(collect(config(), batch_size=batch_size), whole)
    assert not dropped_rows(whole, tiny).any()


def test_the_last_batch_is_filled_up_and_marked(config):
    batches = list(config().validation_batches(batch_size=4))
    assert [valid.tolist() for _, valid in batches] == [
        [True] * 4,
        [True] * 4,
        [True, True, True, False],
    ]
    assert records(batches[-1][0]) == [8, 9, 10, 10]


def test_processes_share_validation(config):
    whole = list(config().validation_batches(batch_size=4, num_samples=9))
    assert len(whole) == 3
    for index in range(2):
        part = list(
            config().validation_batches(
                batch_size=4,
                num_samples=9,
                process_index=index,
                process_count=2,
            )
        )
        assert len(part) == 3  # no process stops early
        rows = slice(2 * index, 2 * index + 2)
        for (batch, valid), (half, half_valid) in zip(whole, part, strict=True):
            np.testing.assert_array_equal(valid[rows], half_valid)
            assert equal(jax.tree.map(lambda leaf, r=rows: leaf[r], batch), half)


# -- Bad input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caption_dropout": 1.5}, "data.caption_dropout must be between .* got 1.5"),
        ({"caption_dropout": -0.1}, "data.caption_dropout must be between .* got -0.1"),
        ({"latents_dtype": "float64"}, "data.latents_dtype must be one of .*float64"),
        ({"read_threads": -1}, "read_threads must be between 0 and 1024, got -1"),
        ({"prefetch_batches": 0}, "data.prefetch_batches must be at least 1, got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ShardsConfig("data", **options)


def test_batch_that_cannot_be_shared(config):
    with pytest.raises(ValueError, match="10 must be divisible by .* processes 4"):
        config().train_stream(global_batch_size=10, seed=0, process_count=4)
    with pytest.raises(ValueError, match="10 must be divisible by .* processes 4"):
        config().validation_batches(batch_size=10, process_count=4)
    with pytest.raises(ValueError, match="batch size must be at least 1, got 0"):
        config().train_stream(global_batch_size=0, seed=0)


def test_more_validation_samples_than_there_are(config):
    with pytest.raises(ValueError, match="between 1 and the 11 records .* got 12"):
        config().validation_batches(batch_size=4, num_samples=12)


def test_missing_data(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ShardsConfig(str(tmp_path / "no")).train_stream(global_batch_size=4, seed=0)


@pytest.mark.parametrize("state", [{}, {"next_index": 3}, {"global_next_index": -1}])
def test_bad_state(open_stream, state):
    with pytest.raises(ValueError, match="data position must be"):
        open_stream().set_state(state)


# -- Imports -----------------------------------------------------------------------

READ = """
import sys
from rfjax import data

config = data.ShardsConfig(sys.argv[1], read_threads=1)
stream = config.train_stream(global_batch_size=4, seed=0)
next(stream)
stream.close()
next(iter(config.validation_batches(batch_size=4)))
print("read")
import tensorflow
"""


def test_reading_never_imports_tensorflow_or_torch(tiny_root, tmp_path):
    """Even where they are installed: here as packages that fail when imported."""
    for name in ("tensorflow", "torch", "transformers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    result = subprocess.run(
        [sys.executable, "-c", READ, str(tiny_root)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])},
    )
    assert result.stdout == "read\n", result.stderr
    # Control: the last line of the script did fail.
    assert result.returncode != 0
    assert "imported" in result.stderr


def test_a_position_of_the_stream_knows_its_record():
    config = SyntheticConfig(num_train=13, caption_dropout=0.0)
    records = config.records("train")
    stream = config.train_stream(global_batch_size=8, seed=3)
    for _ in range(5):  # three passes over the records
        batch = next(stream)
        for latents, position in zip(batch.latents, batch.sample_index, strict=True):
            number = int(stream.name_of(int(position)).removeprefix("record "))
            np.testing.assert_array_equal(latents, records[number]["latents"])


# -- Memory ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_batches", [200, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_memory_stays_flat(num_batches):
    """Whatever is read; control: what keeps its batches grows."""
    config = SyntheticConfig(
        latent_shape=(4, 4, 4), context_shape=(64, 256), num_train=64
    )
    stream = config.train_stream(global_batch_size=8, seed=0)

    def growth(keep):
        """Bytes that the process grows by while it reads."""
        kept = []
        before = resident_bytes()
        for _ in range(num_batches):
            batch = next(stream)
            if keep:
                kept.append(batch)
        return resident_bytes() - before

    take(stream, 100)
    kept_bytes = num_batches * 8 * 64 * 256 * 2
    assert growth(keep=False) < 0.2 * kept_bytes
    if num_batches < 1000:  # 2.6 GB else
        assert growth(keep=True) > 0.4 * kept_bytes
    stream.close()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
