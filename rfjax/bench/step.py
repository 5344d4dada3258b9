# SPDX-License-Identifier: Apache-2.0
"""How long a train step takes on this machine, part by part, compared with a peer.

Machines are never idle: rfjax and the peer are timed alternately, so that what disturbs
one disturbs the other, and their ratio holds.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rfjax.bench.spread import spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """Seconds per step, one entry per round.

    Attributes:
      device: the kind of device.
      num_devices: number of devices.
      global_batch_size: examples per step.
      num_params: parameters of the model.
      flops_per_sample: model FLOPs of forward and backward for one example.
      peak_flops: FLOP/s of one device, None if no published figure is known.
      parts: name -> seconds: forward alone, forward and backward, the whole step.
      peer_name: what it is compared with, None if nothing.
      peer: seconds per step of the peer.
    """

    device: str
    num_devices: int
    global_batch_size: int
    num_params: int
    flops_per_sample: float
    peak_flops: float | None
    parts: Mapping[str, Sequence[float]]
    peer_name: str | None = None
    peer: Sequence[float] = ()

    @property
    def seconds(self) -> Sequence[float]:
        """Seconds of the whole step."""
        return self.parts["step"]

    @property
    def ratios(self) -> Sequence[float]:
        """Time over that of the peer, round by round."""
        return [own / peer for own, peer in zip(self.seconds, self.peer, strict=True)]

    @property
    def flops_per_second(self) -> float:
        """Model FLOP/s per device, by the median step."""
        flops = self.flops_per_sample * self.global_batch_size / self.num_devices
        return flops / statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Plain values; times in seconds."""
        values = dataclasses.asdict(self)
        values["flops_per_second"] = self.flops_per_second
        values["mfu"] = self.peak_flops and self.flops_per_second / self.peak_flops
        values["ratio"] = statistics.median(self.ratios) if self.peer else None
        return values

    def __str__(self) -> str:
        rows = [
            f"{self.num_params:,} parameters, {self.global_batch_size} examples per "
            f"step on {self.num_devices} x {self.device}; median (lowest to highest) "
            f"of {len(self.seconds)} rounds",
            *(f"{name:<24} {spread(times, scale=1e3)} ms"
              for name, times in self.parts.items()),
            f"{'model FLOP/s per device':<24} {self.flops_per_second:.3e}"
            + (f", MFU {self.flops_per_second / self.peak_flops:.1%}"
               if self.peak_flops else ""),
        ]  # fmt: skip
        if self.peer:
            rows += [
                f"{self.peer_name:<24} {spread(self.peer, scale=1e3)} ms",
                f"{'ratio of the steps':<24} {spread(self.ratios, digits=2)}",
            ]
        return "\n".join(rows)


def time_in_turns(
    actions: Mapping[str, Callable[[], None]],
    *,
    rounds: int,
    repeats: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, list[float]]:
    """Seconds of each action in each round.

    Args:
      actions: name -> what to time; returns when its work is done.
      rounds: how often all of them are timed, one after the other.
      repeats: calls of an action per round; their mean counts.
      report: receives one line per round.
    """
    for action in actions.values():
        action()  # compiles, allocates, warms caches
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(1, rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            seconds[name].append((time.perf_counter() - start) / repeats)
        now = ", ".join(f"{n} {s[-1] * 1e3:.0f} ms" for n, s in seconds.items())
        report(f"round {number}/{rounds}: {now}")
    return seconds
