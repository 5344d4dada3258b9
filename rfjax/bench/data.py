# SPDX-License-Identifier: Apache-2.0
"""How fast the training pipeline reads, compared with bare ArrayRecord reads.

Both read the same records in random order in one process, alternately, so that the
ratio also holds on a busy machine.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from rfjax.bench.spread import spread
from rfjax.data import shards
from rfjax.data.manifest import EncoderSpec, LatentSpec, Manifest, TextSpec
from rfjax.encoders.images.patch_pca import PatchPCAConfig


@dataclasses.dataclass(frozen=True)
class ReadingReport:
    """Rates in examples per second, one entry per round.

    Attributes:
      raw: bare ArrayRecord reads, with the records discarded.
      pipeline: batches from `train_stream`.
      example_bytes: mean stored size of an example, in bytes.
    """

    raw: Sequence[float]
    pipeline: Sequence[float]
    example_bytes: int

    @property
    def ratios(self) -> tuple[float, ...]:
        """Pipeline rate over raw rate, per round."""
        return tuple(p / r for p, r in zip(self.pipeline, self.raw, strict=True))

    def __str__(self) -> str:
        return (
            f"raw reads  {spread(self.raw)} examples/s of "
            f"{self.example_bytes / 1024:.0f} KiB\n"
            f"pipeline   {spread(self.pipeline)} examples/s\n"
            f"ratio      {spread(self.ratios, digits=2)}, {len(self.raw)} rounds"
        )


def measure_reading(
    root: str | os.PathLike,
    *,
    batch_size: int = 16,
    num_batches: int = 64,
    read_threads: int = 16,
    rounds: int = 5,
) -> ReadingReport:
    """Measures the training split of a data set.

    Args:
      root: the data folder; its files should fit the page cache, or both sides measure
        the disk.
      batch_size: examples per batch.
      num_batches: batches per round; several times `read_threads`, since batches read
        ahead at the end of a round count against the pipeline.
      read_threads: threads of each side.
      rounds: how often both are measured, alternately.
    """
    manifest = shards.check_shards(root, full=False)
    own = [file for file in manifest.files if file.split == "train"]
    source = ArrayRecordDataSource([str(Path(root) / file.path) for file in own])
    stream = shards.ShardsConfig(
        str(root), read_threads=read_threads, prefetch_batches=read_threads
    ).train_stream(global_batch_size=batch_size, seed=0)
    order = np.random.default_rng(0).integers(
        len(source), size=batch_size * num_batches
    )
    raw, batches = [], []
    with concurrent.futures.ThreadPoolExecutor(read_threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in pool.map(lambda index: len(source[index]), order.tolist()):
                pass
            raw.append(order.size / (time.perf_counter() - start))
            # Drops what was read ahead: every batch that counts is read while measured.
            stream.set_state(stream.get_state())
            start = time.perf_counter()
            for _ in range(num_batches):
                next(stream)
            batches.append(order.size / (time.perf_counter() - start))
    stream.close()
    return ReadingReport(
        raw=tuple(raw),
        pipeline=tuple(batches),
        example_bytes=sum(file.num_bytes for file in own) // len(source),
    )


def write_random_dataset(
    root: str | os.PathLike,
    *,
    latent_shape: tuple[int, int, int] = (32, 32, 16),
    context_shape: tuple[int, int] = (154, 4096),
    pooled_dim: int = 2048,
    num_examples: int = 256,
) -> Manifest:
    """Writes random records; by default in the layout of SD3 at 256 px (1.3 MB each).

    Raises:
      UserError: `root` is not empty.
    """
    rng = np.random.default_rng(0)
    length, context_dim = context_shape
    encoder = EncoderSpec(
        name="random",
        kind="random",
        context_dim=context_dim,
        length=length,
        pooled_dim=pooled_dim,
    )

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        """Normal values in bfloat16."""
        return rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)

    text = {
        "context": draw(context_shape),
        "context_length": np.int32(length),
        "pooled": draw((pooled_dim,)),
    }

    def examples(count: int) -> Iterator[dict[str, Any]]:
        """Examples that share one text."""
        for index in range(count):
            yield {
                "latents": draw(latent_shape),
                "caption": f"random {index}",
                "annotation": "",
                **text,
            }

    codec = PatchPCAConfig(patch_size=4, channels=1).make(rng.random((4, 8, 8, 3)))
    splits = {"train": num_examples, "validation": 1}
    return shards.write_dataset(
        root,
        manifest=Manifest(
            name="random",
            grade="random",
            splits=splits,
            latent=LatentSpec(shape=latent_shape, codec="none"),
            text=TextSpec(encoders=(encoder,)),
        ),
        examples={split: examples(count) for split, count in splits.items()},
        empty_caption=text,
        save_codec=codec.save,
        records_per_shard=64,
    )
