# SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk, whose latents say which record they are."""

import ml_dtypes
import numpy as np
import pytest

from rfjax.data import shards
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.encoders.images.patch_pca import PatchPCAConfig

SPLITS = {"train": 37, "validation": 11}
LATENT_SHAPE = (4, 4, 6)
LENGTH, CONTEXT_DIM, POOLED_DIM = 5, 8, 6


def make_manifest(layout="padded", **changes):
    encoder = EncoderSpec(
        name="test",
        kind="test",
        context_dim=CONTEXT_DIM,
        length=LENGTH,
        pooled_dim=POOLED_DIM,
    )
    fields = {
        "name": "tiny",
        "grade": "test",
        "splits": SPLITS,
        "latent": LatentSpec(shape=LATENT_SHAPE, codec="patch_pca"),
        "text": TextSpec(encoders=(encoder,), layout=layout),
        "licence": "CC0",
        "creation": {"seed": 0},
    }
    return Manifest(**fields | changes)


def make_record(split, index, layout="padded"):
    """latents[0, 0, 0] is the index, exact in bfloat16; the rest is random."""
    rng = np.random.default_rng((len(split), index))
    length = 2 + index % (LENGTH - 1)
    rows = LENGTH if layout == "padded" else length
    latents = rng.standard_normal(LATENT_SHAPE).astype(ml_dtypes.bfloat16)
    latents[0, 0, 0] = index
    return {
        "latents": latents,
        "context": rng.standard_normal((rows, CONTEXT_DIM)).astype(ml_dtypes.bfloat16),
        "context_length": np.int32(length),
        "pooled": rng.standard_normal(POOLED_DIM).astype(ml_dtypes.bfloat16),
        "caption": f"{split} {index} é",
        "annotation": "{}",
    }


EMPTY_CAPTION = {
    "context": np.full((LENGTH, CONTEXT_DIM), -2.5),
    "context_length": np.int32(2),
    "pooled": np.full(POOLED_DIM, 7.0),
}


def write_tiny(root, layout="padded", **options):
    rng = np.random.default_rng(0)
    codec = PatchPCAConfig(patch_size=2, channels=LATENT_SHAPE[-1]).make(
        rng.uniform(-1, 1, (4, 8, 8, 3))
    )
    arguments = {
        "manifest": make_manifest(layout),
        "examples": {
            split: [make_record(split, i, layout) for i in range(count)]
            for split, count in SPLITS.items()
        },
        "empty_caption": EMPTY_CAPTION,
        "save_codec": codec.save,
        "records_per_shard": 10,
    }
    return shards.write_dataset(root, **arguments | options)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tiny"
    write_tiny(root)
    return root


@pytest.fixture(scope="session")
def tiny():
    """The helpers above, for tests that write their own data sets."""
    import types

    return types.SimpleNamespace(
        write=write_tiny,
        manifest=make_manifest,
        record=make_record,
        empty_caption=EMPTY_CAPTION,
        splits=SPLITS,
    )
