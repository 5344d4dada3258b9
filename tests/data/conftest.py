# SPDX-License-Identifier: Apache-2.0
"""Small data sets on disk, whose latents say which record they are, and pictures."""

import io
import json
import os
import types

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

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
    return types.SimpleNamespace(
        write=write_tiny,
        manifest=make_manifest,
        record=make_record,
        empty_caption=EMPTY_CAPTION,
        splits=SPLITS,
    )


# -- The same pictures in every layout that a source reads ---------------------------

NUM_PICTURES = 7


def picture_file(number):
    """The content of a small PNG; each has a size and colours of its own."""
    pixels = np.random.default_rng(number).integers(
        0, 256, (4 + number, 6, 3), np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture_row(number):
    """What is known of a picture beside its file."""
    return {
        "caption": f"picture nr. {number}, täglich",
        "synthetic": f"a synthetic text {number}",
        "licence": "CC0",
        "author": f"author {number % 2}",
        "score": number / 4,
    }


COLUMNS = {
    "captions": ["caption", "synthetic"],
    "caption_kinds": ["original", "synthetic"],
    "licence": "licence",
    "attribution": "author",
    "annotation": ["score"],
}


def write_image_folder(folder):
    for number in range(NUM_PICTURES):
        place = folder / f"{number // 4}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(picture_file(number))
        (place / f"{number}.json").write_text(json.dumps(picture_row(number)))
    return {"kind": "image_folder", "path": str(folder)}


def write_jsonl(folder):
    with (folder / "table.jsonl").open("w") as lines:
        for number in range(NUM_PICTURES):
            (folder / f"{number}.png").write_bytes(picture_file(number))
            row = {"image": f"{number}.png"} | picture_row(number)
            print(json.dumps(row, ensure_ascii=False), file=lines)
    return {"kind": "table", "paths": [str(folder / "table.jsonl")]}


def write_parquet(folder):
    import pyarrow.parquet

    for part, numbers in enumerate((range(4), range(4, NUM_PICTURES))):
        rows = [{"image": picture_file(n)} | picture_row(n) for n in numbers]
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows),
            folder / f"part-{part}.parquet",
            row_group_size=3,
        )
    return {"kind": "table", "paths": [str(folder / "part-*.parquet")]}


def write_tars(folder):
    import webdataset

    for part, numbers in enumerate((range(4), range(4, NUM_PICTURES))):
        with webdataset.TarWriter(str(folder / f"{part:03d}.tar")) as writer:
            for number in numbers:
                sample = {"png": picture_file(number), "json": picture_row(number)}
                writer.write({"__key__": f"{number:05d}", **sample})
    return {"kind": "webdataset", "paths": [str(folder / "{000..001}.tar")]}


def write_saved_dataset(folder):
    import datasets

    rows = [
        {"image": {"bytes": picture_file(n), "path": None}} | picture_row(n)
        for n in range(NUM_PICTURES)
    ]
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(folder / "saved", num_shards=2)
    return {"kind": "saved_dataset", "path": str(folder / "saved")}


def write_tfds(folder):
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets import features as tfds_features

    texts = ("caption", "synthetic", "licence", "author")
    features = tfds_features.FeaturesDict(
        {"image": tfds_features.Image(), "score": np.float32}
        | {name: tfds_features.Text() for name in texts}
    )
    rows = [
        {"image": io.BytesIO(picture_file(n))} | picture_row(n)
        for n in range(NUM_PICTURES)
    ]
    records = [features.serialize_example(features.encode_example(r)) for r in rows]
    place = folder / "picture_set" / "1.0.0"
    place.mkdir(parents=True)
    for part, chosen in enumerate((records[:4], records[4:])):
        name = f"picture_set-train.array_record-{part:05d}-of-00002"
        writer = ArrayRecordWriter(str(place / name), "group_size:1")
        for record in chosen:
            writer.write(record)
        writer.close()
    write_tfds_metadata(place, features, {"train": [4, NUM_PICTURES - 4]})
    return {"kind": "tfds_images", "path": str(place)}


def write_tfds_metadata(place, features, lengths, file_format="array_record"):
    """Writes the files with which TFDS finds its own shards."""
    import tensorflow_datasets as tfds

    tfds.folder_dataset.write_metadata(
        data_dir=place,
        features=features,
        check_data=False,
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=counts,
                num_bytes=0,
                filename_template=tfds.core.ShardedFileTemplate(
                    dataset_name="picture_set",
                    data_dir=place,
                    split=split,
                    filetype_suffix=file_format,
                    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                ),
            )
            for split, counts in lengths.items()
        ],
    )


LAYOUTS = {
    "image_folder": write_image_folder,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "webdataset": write_tars,
    "saved_dataset": write_saved_dataset,
    "tfds_images": write_tfds,
}


@pytest.fixture(scope="session")
def picture_sets(tmp_path_factory):
    """Layout -> config of a source that reads the same pictures from it."""
    root = tmp_path_factory.mktemp("pictures")
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    configs = {}
    for layout, write in LAYOUTS.items():
        (root / layout).mkdir()
        configs[layout] = write(root / layout) | {"columns": COLUMNS}
    yield configs
    del os.environ["XDG_CACHE_HOME"]


@pytest.fixture
def pictures():
    """The helpers above, for tests that write other files."""
    return types.SimpleNamespace(
        file=picture_file,
        row=picture_row,
        count=NUM_PICTURES,
        columns=COLUMNS,
        write_tfds_metadata=write_tfds_metadata,
    )
