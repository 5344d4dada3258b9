# SPDX-License-Identifier: Apache-2.0
"""The fast decoder against TFDS's own."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow_datasets as tfds

from rfjax.data import shards
from rfjax.data.shards.records import RecordSource


def equal(ours, theirs):
    return (
        np.array_equal(ours, theirs)
        and np.shape(ours) == np.shape(theirs)
        and getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)
    )


@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_records_equal_those_of_tfds(tiny, tmp_path, layout):
    manifest = tiny.write(tmp_path / "tiny", layout=layout)
    folder = shards.tfds_folder(tmp_path / "tiny", manifest)
    theirs = tfds.builder_from_directory(folder).as_data_source("train")
    ours = shards.open_split(tmp_path / "tiny", "train")
    assert len(ours) == len(theirs)
    for index in range(len(ours)):
        expected = theirs[index]
        assert set(ours[index]) == set(expected)
        assert all(equal(ours[index][name], expected[name]) for name in expected)
    assert not equal(ours[0]["latents"], theirs[1]["latents"])


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16384, 3_000_000])
def test_byte_strings_of_any_length(size):
    """Lengths are stored in one to four bytes."""
    bfloat16 = ml_dtypes.bfloat16
    features = tfds.features.FeaturesDict(
        {
            "x": tfds.features.Tensor(shape=(None,), dtype=bfloat16, encoding="bytes"),
            "text": tfds.features.Text(),
        }
    )
    values = np.random.default_rng(0).standard_normal(size).astype(bfloat16)
    record = features.serialize_example({"x": values, "text": "é" * min(size, 999)})
    read = RecordSource(
        [record], tensors={"x": ((None,), bfloat16)}, shards=[("a", 1)]
    )[0]
    assert equal(read["x"], values)
    assert read["text"].decode() == "é" * min(size, 999)
    assert not read["x"].flags.writeable


def test_other_records_are_refused():
    features = tfds.features.FeaturesDict({"x": tfds.features.Scalar(np.int64)})
    record = features.serialize_example({"x": 3})
    with pytest.raises(ValueError, match="feature x .* is not a byte string"):
        RecordSource([record], tensors={"x": ((), np.int64)}, shards=[("a", 1)])[0]
