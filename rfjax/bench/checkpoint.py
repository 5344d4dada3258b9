# SPDX-License-Identifier: Apache-2.0
"""How long checkpoints hold up training, compared with bare writes of the same bytes.

Saves are asynchronous: the loop waits until the arrays are copied off the device, and
continues while they are written. Neither side waits for the disk to flush its cache.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rfjax.bench.spread import spread
from rfjax.checkpoint import CheckpointConfig, Checkpoints

_TIMES = ("step", "stall", "save", "hashing", "raw", "restore", "verifying")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """Seconds, one entry per round.

    Attributes:
      state_bytes: bytes of the train state that this process writes.
      every_steps: steps between saves.
      step: a training step, with no save in progress.
      stall: how long the loop waits for a save to start.
      save: until the checkpoint is complete on disk.
      hashing: the part of it spent on checksums; never in the training thread.
      restore: until the state is back on the devices.
      verifying: the part of it spent on comparing checksums.
      raw: bare writes of the same bytes.
    """

    state_bytes: int
    every_steps: int
    step: Sequence[float]
    stall: Sequence[float]
    save: Sequence[float]
    hashing: Sequence[float]
    restore: Sequence[float]
    verifying: Sequence[float]
    raw: Sequence[float]

    @property
    def stall_share(self) -> float:
        """Share of the run time that the loop waits for saves, by the medians."""
        stall = statistics.median(self.stall)
        return stall / (stall + self.every_steps * statistics.median(self.step))

    @property
    def ratios(self) -> tuple[float, ...]:
        """Time of a save over that of bare writes, round by round."""
        return tuple(s / r for s, r in zip(self.save, self.raw, strict=True))

    @property
    def hashing_share(self) -> float:
        """Share of the time of a save spent on checksums, by the medians."""
        return statistics.median(self.hashing) / statistics.median(self.save)

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in seconds."""
        return dataclasses.asdict(self) | {
            "stall_share": self.stall_share,
            "hashing_share": self.hashing_share,
            "ratio": statistics.median(self.ratios),
        }

    def __str__(self) -> str:
        rows = [
            f"{self.state_bytes / 1e6:,.0f} MB of train state; "
            f"median (lowest to highest) of {len(self.save)} rounds",
            *(
                f"{name:<10} {spread(getattr(self, name), scale=1e3)} ms"
                for name in _TIMES
            ),
            f"{'ratio':<10} {spread(self.ratios, digits=2)} of a save to bare writes",
            f"{self.hashing_share:.1%} of a save goes into checksums",
            f"training waits {self.stall_share:.2%} of the time with a save "
            f"every {self.every_steps:,} steps",
        ]
        return "\n".join(rows)


def measure_saving(
    state: Any,
    abstract_state: Any,
    *,
    train_step: Callable[[Any], Any],
    config: CheckpointConfig,
    folder: Path,
    rounds: int,
    report: Callable[[str], None] = lambda line: None,
) -> CheckpointReport:
    """Trains, saves, writes and restores a train state, one after the other.

    Args:
      state: initial train state.
      abstract_state: the same as ShapeDtypeStructs with shardings.
      train_step: state -> the state after one step; may donate its argument.
      config: how often the run saves.
      folder: an empty folder on the disk to measure.
      rounds: how often everything is timed, after a round that does not count.
      report: receives one line per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in _TIMES}

    def note(name: str, start: float) -> None:
        """Records the time since `start`."""
        seconds[name].append(time.perf_counter() - start)

    for number in range(rounds + 1):
        start = time.perf_counter()
        state = jax.block_until_ready(train_step(state))
        note("step", start)

        checkpoints = Checkpoints(folder / str(number), config=config)
        start = time.perf_counter()
        checkpoints.save(1, state, data_position={"next_batch": 0})
        note("stall", start)
        checkpoints.close()
        note("save", start)
        seconds["hashing"].append(checkpoints.hash_seconds)

        start = time.perf_counter()
        with open(folder / "raw", "wb") as file:
            for shard in _own_shards(state):
                file.write(np.ascontiguousarray(shard).data)
            state_bytes = file.tell()
        note("raw", start)

        state = None  # a device may have no room for two
        checkpoints = Checkpoints(folder / str(number), config=config)
        start = time.perf_counter()
        state = jax.block_until_ready(checkpoints.restore_newest(abstract_state)[0])
        note("restore", start)
        seconds["verifying"].append(checkpoints.hash_seconds)
        checkpoints.close()
        shutil.rmtree(folder / str(number))
        if number:
            now = ", ".join(f"{n} {s[-1] * 1e3:.0f} ms" for n, s in seconds.items())
            report(f"round {number}/{rounds}: {now}")
    return CheckpointReport(
        state_bytes=state_bytes,
        every_steps=config.every_steps,
        **{name: tuple(times[1:]) for name, times in seconds.items()},
    )


def _own_shards(state: Any) -> Iterator[jax.Array]:
    """What this process writes: each part of the state once, of all its replicas."""
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                yield shard.data
