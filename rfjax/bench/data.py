# SPDX-License-Identifier: Apache-2.0
"""How fast training data is read, compared with bare reads of it and with peers.

All read the same content in random order and deliver the same batches, in turns, each
in a process of its own, so that their ratios also hold on a busy machine. What is read
in a row can only be shuffled among some examples; the table says so.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rfjax.bench import data_peers
from rfjax.bench.data_layouts import Layout
from rfjax.bench.spread import spread
from rfjax.cpu import keep_freed_memory

PIPELINE, RAW = "rfjax", "raw"
# What reads, and which numbers of threads or worker processes are tried for it.
PEERS = {
    "files": (data_peers.write_files, data_peers.read_files, data_peers.WORKERS),
    "webdataset": (data_peers.write_tars, data_peers.read_tars, data_peers.WORKERS),
    "parquet": (
        data_peers.write_parquet,
        data_peers.read_parquet,
        (0, *data_peers.WORKERS),
    ),
}
_SHUFFLED = {  # examples among which a side shuffles; the others among all
    "webdataset": data_peers.SHUFFLED,
    "parquet": data_peers.SHUFFLED,
}
# By default. Of fewer records, say 256, Grain's shuffle would take a tenth of the time.
_WRITTEN_BYTES = 1e9
_WARM_UP = 8  # batches that are not counted: more than most read ahead


@dataclasses.dataclass(frozen=True)
class Measured:
    """One side's figures, one entry per round.

    Attributes:
      rates: examples per second.
      cpu_seconds: per example, of the process and its workers.
      workers: threads or worker processes, the best of those tried; None: the default.
      shuffled: the number of examples among which the next is drawn; None: all.
    """

    rates: Sequence[float]
    cpu_seconds: Sequence[float]
    workers: int | None = None
    shuffled: int | None = None


@dataclasses.dataclass(frozen=True)
class ReadingReport:
    """What was measured of each side.

    Attributes:
      sides: "rfjax", "raw" and the peers.
      example_bytes: mean stored size of an example.
      batch_size: examples in a batch.
      cores: that the processes could use.
    """

    sides: Mapping[str, Measured]
    example_bytes: int
    batch_size: int
    cores: int

    @property
    def ratios(self) -> dict[str, tuple[float, ...]]:
        """Side -> the rate of rfjax over that of the side, per round."""
        own = self.sides[PIPELINE].rates
        return {
            name: tuple(a / b for a, b in zip(own, side.rates, strict=True))
            for name, side in self.sides.items()
            if name != PIPELINE
        }

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return dataclasses.asdict(self) | {"ratios": self.ratios}

    def __str__(self) -> str:
        lines = [
            f"{self.example_bytes / 2**20:.2f} MiB per example, batches of "
            f"{self.batch_size}, {self.cores} cores",
            f"{'':11} {'examples/s':>24} {'MB/s':>7} {'CPU ms/example':>15} "
            f"{'workers':>8} {'shuffled':>9}  rfjax is",
        ]
        for name, side in self.sides.items():
            megabytes = statistics.median(side.rates) * self.example_bytes / 1e6
            cpu = f"{statistics.median(side.cpu_seconds) * 1e3:.2f}"
            workers = "default" if side.workers is None else side.workers
            shuffled = "all" if side.shuffled is None else f"of {side.shuffled}"
            ratio = ""
            if name in self.ratios:
                ratio = f"{spread(self.ratios[name], digits=2)} times as fast"
            lines.append(
                f"{name:11} {spread(side.rates):>24} {megabytes:7,.0f} {cpu:>15} "
                f"{workers:>8} {shuffled:>9}  {ratio}".rstrip()
            )
        return "\n".join(lines)


def measure_layout(
    layout: Layout,
    folder: Path,
    *,
    peers: Sequence[str] = tuple(PEERS),
    num_examples: int | None = None,
    batch_size: int = 16,
    num_batches: int = 32,
    rounds: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> ReadingReport:
    """Measures reading random records of a layout.

    Args:
      layout: of the records.
      folder: empty; each side's files are written into it, and should fit the page
        cache, or all sides measure the disk.
      peers: keys of `PEERS`.
      num_examples: records; 1 GB of them when None.
      batch_size: examples per batch.
      num_batches: batches per round.
      rounds: how often each side is measured, in turns.
      report: receives a line for each step.
    """
    from rfjax.bench import data_own  # loads JAX, which forking peers must not see

    if num_examples is None:
        num_examples = round(_WRITTEN_BYTES / layout.example_bytes)
    report(f"writing {num_examples} examples for each side")
    data_own.write_shards(folder / PIPELINE, layout, num_examples)
    sides = _own_sides(folder / PIPELINE)
    for name in peers:
        write, _, choices = PEERS[name]
        (folder / name).mkdir()
        write(folder / name, layout, num_examples)
        sides[name] = _Side(name, folder / name, layout, choices)
    return _measure(
        sides,
        example_bytes=layout.example_bytes,
        batch_size=batch_size,
        num_batches=num_batches,
        rounds=rounds,
        report=report,
    )


def measure_dataset(
    root: str | os.PathLike,
    *,
    batch_size: int = 16,
    num_batches: int = 32,
    rounds: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> ReadingReport:
    """Measures the training split of a data set on disk; see `measure_layout`.

    Raises:
      MissingFileError: there is no data set.
      UserError: it is damaged.
    """
    from rfjax.data import shards

    manifest = shards.check_shards(root, full=False)
    own = [file for file in manifest.files if file.split == "train"]
    return _measure(
        _own_sides(Path(root)),
        example_bytes=sum(f.num_bytes for f in own) // sum(f.num_records for f in own),
        batch_size=batch_size,
        num_batches=num_batches,
        rounds=rounds,
        report=report,
    )


def _own_sides(root: Path) -> dict[str, _Side]:
    from rfjax.data.reading import Reading

    threads = Reading().options().num_threads  # those of the pipeline
    return {
        RAW: _Side(RAW, root, None, (threads,)),
        PIPELINE: _Side(PIPELINE, root, None, (None,)),
    }


@dataclasses.dataclass(frozen=True)
class _Side:
    """What one process reads."""

    name: str
    folder: Path
    layout: Layout | None
    choices: Sequence[int | None]

    def open(self, *, batch_size: int, workers: int | None) -> Iterator[Any]:
        """Its batches, without end."""
        if self.name in PEERS:
            _, read, _ = PEERS[self.name]
            return read(
                self.folder, self.layout, batch_size=batch_size, workers=workers
            )
        from rfjax.bench import data_own

        if self.name == RAW:
            return data_own.read_bare(
                self.folder, batch_size=batch_size, workers=workers
            )
        return data_own.read_pipeline(self.folder, batch_size=batch_size)


def _measure(
    sides: Mapping[str, _Side],
    *,
    example_bytes: int,
    batch_size: int,
    num_batches: int,
    rounds: int,
    report: Callable[[str], None],
) -> ReadingReport:
    """Measures the sides in turns."""
    spawn = multiprocessing.get_context("spawn")
    rates = {name: [] for name in sides}
    cpu_seconds = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn)
            )
            for name in sides
        }
        workers = {}
        for name, side in sides.items():
            report(f"opening {name}")
            opened = processes[name].submit(
                _open_best, side, batch_size=batch_size, num_batches=num_batches
            )
            workers[name] = opened.result()
        for index in range(rounds):
            for name in sides:
                measured = processes[name].submit(_time_batches, num_batches).result()
                rates[name].append(batch_size * num_batches / measured[0])
                cpu_seconds[name].append(measured[1] / (batch_size * num_batches))
            own = rates[PIPELINE][-1]
            report(f"round {index + 1} of {rounds}: {own:,.0f} examples/s")
        for process in processes.values():
            process.submit(_close).result()
    return ReadingReport(
        sides={
            name: Measured(
                tuple(rates[name]),
                tuple(cpu_seconds[name]),
                workers[name],
                _SHUFFLED.get(name),
            )
            for name in sides
        },
        example_bytes=example_bytes,
        batch_size=batch_size,
        cores=len(os.sched_getaffinity(0)),
    )


# -- In the process of a side ------------------------------------------------------

_batches: Iterator[Any] | None = None


def _open_best(side: _Side, *, batch_size: int, num_batches: int) -> int | None:
    """Opens a side with the number of workers that is fastest, and returns that."""
    global _batches
    keep_freed_memory()  # for all sides, not for ours alone
    seconds = {}
    for workers in side.choices if len(side.choices) > 1 else ():
        _batches = side.open(batch_size=batch_size, workers=workers)
        seconds[workers], _ = _time_batches(num_batches)
        _close()
    best = min(seconds, key=seconds.get) if seconds else side.choices[0]
    _batches = side.open(batch_size=batch_size, workers=best)
    return best


def _close() -> None:
    """Ends what reads ahead."""
    global _batches
    if hasattr(_batches, "close"):
        _batches.close()
    _batches = None  # a DataLoader ends its workers when it is collected


def _time_batches(num_batches: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of the next batches."""
    for _ in itertools.islice(_batches, _WARM_UP):
        pass
    start, cpu = time.perf_counter(), _cpu_seconds()
    for _ in itertools.islice(_batches, num_batches):
        pass
    return time.perf_counter() - start, _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    """CPU time of this process and of its workers, while they run."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    ticks = os.sysconf("SC_CLK_TCK")
    for worker in multiprocessing.active_children():
        # The name in parentheses may hold spaces.
        stat = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(stat[11]) + int(stat[12])) / ticks
    return seconds
