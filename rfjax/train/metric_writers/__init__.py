# SPDX-License-Identifier: Apache-2.0
"""Where the metrics of a run go: metrics.jsonl always, and the writers of a config.

base            the contract
jsonl           metrics.jsonl, the authoritative record
tensorboard     a copy for TensorBoard
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rfjax.train.metric_writers.base import MetricWriter, MetricWriterConfig
from rfjax.train.metric_writers.jsonl import JsonLines
from rfjax.train.metric_writers.tensorboard import TensorBoardConfig

__all__ = ["METRIC_WRITERS", "AllWriters", "MetricWriter", "MetricWriterConfig"]

METRIC_WRITERS: dict[str, type[MetricWriterConfig]] = {  # kind -> config
    "tensorboard": TensorBoardConfig,
}


class AllWriters:
    """metrics.jsonl of a run folder, and whichever of the others can be opened."""

    def __init__(self, workdir: Path, configs: Sequence[MetricWriterConfig]):
        others = [config.open(workdir) for config in configs]
        self._writers: list[MetricWriter] = [
            JsonLines(workdir),
            *(writer for writer in others if writer is not None),
        ]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` finished optimizer steps to all."""
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()
