# SPDX-License-Identifier: Apache-2.0
"""The reading benchmark's records in our shards: the pipeline, and bare reads."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from rfjax.bench.data_layouts import Layout, endless_order
from rfjax.data import ShardsConfig, shards
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.encoders.images.patch_pca import PatchPCAConfig
from rfjax.types import Batch


def write_shards(folder: Path, layout: Layout, count: int) -> None:
    """A data set as `rfjax encode` writes it; `folder` must be new or empty."""
    manifest = Manifest(
        name="random",
        grade="random",
        splits={"train": count, "validation": 1},
        latent=LatentSpec(layout.latent_shape, codec="none", has_variance=True),
        text=TextSpec(
            tuple(
                EncoderSpec(
                    name=encoder.name,
                    kind="random",
                    context_dim=encoder.context_dim,
                    length=encoder.length,
                    pooled_dim=encoder.pooled_dim,
                    prefix=f"{encoder.name}_",
                    joined="channels" if encoder.beside else "tokens",
                )
                for encoder in layout.encoders
            )
        ),
    )
    lengths = {
        f"{encoder.name}_context_length": np.int32(encoder.length)
        for encoder in layout.encoders
        if encoder.context_dim
    }

    def examples(num_examples: int) -> Iterator[dict[str, Any]]:
        """Records with the tensors of the layout."""
        for index in range(num_examples):
            named = {"caption": f"random {index}", "annotation": ""}
            yield layout.example(index) | lengths | named

    rng = np.random.default_rng(0)
    shards.write_dataset(
        folder,
        manifest=manifest,
        examples={split: examples(n) for split, n in manifest.splits.items()},
        empty_caption={
            name: value
            for name, value in (layout.example(0) | lengths).items()
            if name not in ("latents", "log_variance")
        },
        save_codec=PatchPCAConfig(patch_size=4, channels=1)
        .make(rng.random((4, 8, 8, 3)))
        .save,
        records_per_shard=64,
    )


def read_pipeline(folder: Path, *, batch_size: int) -> Iterator[Batch]:
    """Batches as a run reads them, by the default number of threads."""
    return ShardsConfig(str(folder)).train_stream(global_batch_size=batch_size, seed=0)


def read_bare(folder: Path, *, batch_size: int, workers: int) -> Iterator[int]:
    """Reads the records of batches in random order, and drops them.

    Yields:
      The bytes of a batch.
    """
    manifest = shards.read_manifest(folder)
    source = ArrayRecordDataSource(
        [str(folder / file.path) for file in manifest.files if file.split == "train"]
    )
    order = endless_order(len(source))

    def read(numbers: list[int]) -> int:
        """One batch of records."""
        return sum(len(source[number]) for number in numbers)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        while True:
            while len(pending) < workers + 2:
                numbers = list(itertools.islice(order, batch_size))
                pending.append(pool.submit(read, numbers))
            yield pending.popleft().result()
