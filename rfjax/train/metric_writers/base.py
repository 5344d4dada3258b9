# SPDX-License-Identifier: Apache-2.0
"""What a metric writer is: somewhere that the metrics of a run go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class MetricWriter(Protocol):
    """An open writer. Only the first process has any."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` finished optimizer steps.

        A value may be NaN: a diverged run must be seen, not smoothed over.
        """

    def close(self) -> None:
        """Flushes and closes."""


class MetricWriterConfig(Protocol):
    """A row of `METRIC_WRITERS`: a frozen dataclass of the writer's fields."""

    def open(self, workdir: Path) -> MetricWriter | None:
        """Opens the writer of a run folder; None if its package is not installed."""
