# SPDX-License-Identifier: Apache-2.0
"""How others read the same records: PyTorch's DataLoader, WebDataset, and parquet.

Each peer delivers what rfjax does, in memory: latents [B, H, W, C] float32 sampled from
the posterior, the joined context [B, T, context_dim] and pooled [B, pooled_dim] in
bfloat16. Each is given what makes it fast: files that need no decoding (safetensors,
uncompressed), rows that are written once into a batch that is allocated whole, and as
many workers as suit it best, of those in `WORKERS`.
"""

from __future__ import annotations

import functools
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rfjax.bench.data_layouts import Layout, endless_order

_CORES = len(os.sched_getaffinity(0))
# Worker processes to try: more than cores are slower.
WORKERS = tuple(n for n in (1, 2, 4, 8, 16) if n <= _CORES)
_START = "forkserver"  # a copy of a process with threads aborts when it ends
_SHARD = 64  # examples in a tar, and in a row group of parquet
SHUFFLED = 128  # examples among which those are shuffled that are read in a row


def write_files(folder: Path, layout: Layout, count: int) -> None:
    """One safetensors file for each example."""
    for index in range(count):
        (folder / f"{index:06d}.safetensors").write_bytes(_serialized(layout, index))


def write_tars(folder: Path, layout: Layout, count: int) -> None:
    """Tars of WebDataset, whose members are such files."""
    for first in range(0, count, _SHARD):
        with tarfile.open(folder / f"{first // _SHARD:06d}.tar", "w") as tar:
            for index in range(first, min(first + _SHARD, count)):
                content = _serialized(layout, index)
                member = tarfile.TarInfo(f"{index:06d}.safetensors")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(folder: Path, layout: Layout, count: int) -> None:
    """One table with a column of bytes for each tensor, without compression."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {n: pa.binary(2 * int(np.prod(s))) for n, s in layout.shapes.items()}
    schema = pa.schema(types)
    with parquet.ParquetWriter(
        folder / "examples.parquet", schema, compression="none", use_dictionary=False
    ) as writer:
        for first in range(0, count, _SHARD):
            rows = [layout.example(i) for i in range(first, min(first + _SHARD, count))]
            columns = {
                name: pa.array([row[name].tobytes() for row in rows], types[name])
                for name in types
            }
            writer.write_table(pa.table(columns, schema), row_group_size=_SHARD)


def read_files(
    folder: Path, layout: Layout, *, batch_size: int, workers: int
) -> Iterator[Any]:
    """Batches of a shuffled DataLoader, without end."""
    import torch

    dataset = _Files(sorted(folder.glob("*.safetensors")))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=_Endless(len(dataset)),
        collate_fn=functools.partial(_collate, layout=layout),
        num_workers=workers,
        multiprocessing_context=_START if workers else None,
    )
    return iter(loader)


def read_tars(
    folder: Path, layout: Layout, *, batch_size: int, workers: int
) -> Iterator[Any]:
    """Batches of a WebDataset, shards and a buffer shuffled, without end."""
    import webdataset as wds

    dataset = (
        wds.WebDataset(
            [str(path) for path in sorted(folder.glob("*.tar"))],
            resampled=True,
            shardshuffle=False,  # resampling draws shards at random
            nodesplitter=wds.shardlists.single_node_only,
        )
        .shuffle(SHUFFLED)
        .map(_decode_member)
        .batched(batch_size, collation_fn=functools.partial(_collate, layout=layout))
    )
    loader = wds.WebLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=_START if workers else None,
    )
    return iter(loader)


def read_parquet(
    folder: Path, layout: Layout, *, batch_size: int, workers: int
) -> Iterator[Any]:
    """Batches of row groups in random order, their rows shuffled, without end."""
    import torch

    dataset = _RowGroups(folder / "examples.parquet", layout, batch_size)
    if not workers:
        torch.set_num_threads(1)  # more would wait for each other, spinning
        return iter(dataset)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.datapipes.iter.IterableWrapper(dataset, deepcopy=False),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=_START,
    )
    return iter(loader)


class _RowGroups:
    """What a DataLoader iterates over: batches of a parquet file.

    Row groups are mapped into memory, and read by as many threads as pyarrow likes.
    """

    def __init__(self, path: Path, layout: Layout, batch_size: int):
        self._path = path
        self._layout = layout
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        import torch
        from pyarrow import parquet

        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng(worker.id if worker else 0)
        file = parquet.ParquetFile(self._path, memory_map=True)
        order = endless_order(file.num_row_groups, seed=worker.id if worker else 0)
        rows: list[Mapping[str, Any]] = []
        while True:
            while len(rows) < SHUFFLED:
                rows += self._read(file, next(order))
            chosen = set(rng.choice(len(rows), self._batch_size, replace=False))
            yield _collate([rows[i] for i in chosen], layout=self._layout)
            rows = [row for i, row in enumerate(rows) if i not in chosen]

    def _read(self, file: Any, group: int) -> list[Mapping[str, Any]]:
        """The examples of a row group, without a copy."""
        import torch

        table = file.read_row_group(group).combine_chunks()
        columns = {
            name: torch.frombuffer(
                table[name].chunk(0).buffers()[1], dtype=torch.bfloat16
            ).view(-1, *shape)
            for name, shape in self._layout.shapes.items()
        }
        return [
            {name: column[row] for name, column in columns.items()}
            for row in range(table.num_rows)
        ]


class _Files:
    """A map-style data set of PyTorch: one file for each example."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(map(str, paths))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        from safetensors.torch import load_file

        return load_file(self._paths[index])


class _Endless:
    """A sampler of PyTorch: every example in each pass, without end."""

    def __init__(self, num_examples: int):
        self._num_examples = num_examples

    def __iter__(self) -> Iterator[int]:
        return iter(endless_order(self._num_examples))


def _serialized(layout: Layout, index: int) -> bytes:
    """An example as safetensors."""
    from safetensors.numpy import save

    return save(layout.example(index))


def _decode_member(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    from safetensors.torch import load

    return load(sample["safetensors"])


def _collate(
    examples: Sequence[Mapping[str, Any]], *, layout: Layout
) -> dict[str, Any]:
    """One batch of examples, its contexts joined and its posteriors sampled."""
    import torch

    length, context_dim = layout.context_shape
    context = torch.zeros(len(examples), length, context_dim, dtype=torch.bfloat16)
    places = layout.context_places()
    latents = torch.empty(len(examples), *layout.latent_shape)
    for row, example in enumerate(examples):
        for name, (tokens, channels) in places.items():
            context[row, tokens, channels] = example[name]
        deviation = torch.exp(0.5 * example["log_variance"].float())
        noise = torch.randn(layout.latent_shape)
        latents[row] = example["latents"].float() + deviation * noise
    pooled = [name for name in layout.shapes if name.endswith("_pooled")]
    return {
        "latents": latents,
        "context": context,
        "pooled": torch.stack([torch.cat([e[n] for n in pooled]) for e in examples]),
    }
