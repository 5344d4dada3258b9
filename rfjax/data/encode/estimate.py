# SPDX-License-Identifier: Apache-2.0
"""How large a data set will be and how long it takes, from a few batches of it.

The batches are real: spread over the source, encoded by as many processes at a time as
will do it, and thrown away. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.task import Tasks
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.encode.workers import HERE, do_tasks, suitable_workers
from rfjax.data.filters import FilterConfig
from rfjax.errors import UserError, format_bytes

NUM_BATCHES = 3  # that each process times, after one that it does not
SHARD_BYTES = 128 * 1024  # of an empty ArrayRecord file
RECORD_BYTES = 48  # that ArrayRecord adds to each record


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What encoding a data set will take.

    Attributes:
      name: of the data set.
      num_examples: of the source, before filters.
      has_filters: whether filters may leave fewer.
      bytes_per_example: on the disk.
      free_bytes: room where it is to be.
      num_timed: examples that were encoded to find out.
      examples_per_second: of all workers together.
      num_workers: processes.
      price_per_hour: of the machine; None if it does not matter.
    """

    name: str
    num_examples: int
    has_filters: bool
    bytes_per_example: float
    free_bytes: int
    num_timed: int
    examples_per_second: float
    num_workers: int
    price_per_hour: float | None = None

    @property
    def num_bytes(self) -> int:
        """Of the whole data set."""
        return math.ceil(self.num_examples * self.bytes_per_example)

    @property
    def seconds(self) -> float:
        """Until all examples are encoded."""
        return self.num_examples / self.examples_per_second

    @property
    def cost(self) -> float | None:
        """In the money of the price."""
        if self.price_per_hour is None:
            return None
        return self.seconds / 3600 * self.price_per_hour

    def __str__(self) -> str:
        room = "enough" if self.free_bytes > self.num_bytes else "TOO LITTLE"
        workers = f"{self.num_workers} worker{'s' * (self.num_workers > 1)}"
        lines = [
            f"examples  {self.num_examples:,} in the source"
            + ", before filters" * self.has_filters,
            f"size      {format_bytes(round(self.bytes_per_example))} per example, "
            f"{format_bytes(self.num_bytes)} in all; there is room for "
            f"{format_bytes(self.free_bytes)}: {room}",
            f"time      {format_seconds(self.seconds)} with {workers}, "
            f"{self.examples_per_second:.3g} examples/s in {self.num_timed:,} examples",
        ]
        if self.cost is not None:
            lines.append(
                f"cost      {self.cost:,.2f} at {self.price_per_hour:g} an hour"
            )
        return "\n".join([*lines, "nothing was written"])


def estimate_encoding(
    config: EncodeConfig,
    *,
    out: str | os.PathLike,
    num_workers: int | None = None,
    price_per_hour: float | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Encodes a few batches, and estimates from them what the whole will take.

    Args:
      config: what would be encoded, and how.
      out: where it would be.
      num_workers: as of `encode_dataset`. No more are started than suit this machine;
        the rate of further ones is taken to be the same.
      price_per_hour: of the machine.
      warn: told of workers that died.

    Raises:
      UserError: the source is empty, or none of its records can be encoded.
    """
    work = WorkFolder(out)
    work.check_free()
    tasks = Tasks(config, work)
    total = len(tasks.source)
    if not total:
        raise UserError("source must hold at least 1 record, got none; add some.")
    num_shards = math.ceil(total / config.records_per_shard) + 1  # of validation
    suitable = suitable_workers(config, num_tasks=num_shards)
    num_workers = max(1, suitable if num_workers is None else num_workers)
    num_here = min(num_workers, max(1, suitable))
    results = do_tasks(
        tasks,
        [
            {"time": _batches(config, total, place, num_here)}
            for place in range(num_here)
        ],
        num_workers=HERE if num_here == 1 else num_here,
        progress=lambda num_examples: None,
        describe=lambda place: "batches that are timed",
        warn=warn,
    )
    timed = sum(result["examples"] for result in results)
    if not timed:
        raise UserError(
            "source must hold records that can be encoded, got none among those that "
            "were tried; see what is wrong with them with `rfjax encode`."
        )
    record_bytes = sum(result["bytes"] for result in results) / timed
    rates = [r["examples"] / r["seconds"] for r in results if r["examples"]]
    return Estimate(
        name=config.name,
        num_examples=total,
        has_filters=config.filters != FilterConfig(),
        bytes_per_example=record_bytes
        + RECORD_BYTES
        + SHARD_BYTES * num_shards / total,
        free_bytes=_free_bytes(work.out),
        num_timed=timed,
        examples_per_second=sum(rates) / len(rates) * num_workers,
        num_workers=num_workers,
        price_per_hour=price_per_hour,
    )


def format_seconds(seconds: float) -> str:
    """A duration for people: 45 s, 12 min, 3.5 h, 8.0 days."""
    for name, unit, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * unit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{seconds:.0f} s"


def _batches(
    config: EncodeConfig, total: int, place: int, num_processes: int
) -> list[list[int]]:
    """Numbers of the records that one of several processes encodes, spread evenly."""
    count = NUM_BATCHES + 1
    size = max(1, min(config.batch_size, total // (count * num_processes)))
    wanted = count * size
    numbers = [
        (place + num_processes * i) * total // (num_processes * wanted)
        for i in range(wanted)
    ]
    return [numbers[start : start + size] for start in range(0, wanted, size)]


def _free_bytes(folder: Path) -> int:
    """Room on the disk where a folder is to be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free
