# SPDX-License-Identifier: Apache-2.0
"""TensorBoard, through clu."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfjax.value_types import StoredPath, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Scalars for TensorBoard, if `rfjax[tensorboard]` is installed.

    Attributes:
      folder: in the run folder.
    """

    folder: StoredPath = "tensorboard"

    def __post_init__(self):
        check_fields(self, section="metric_writers")

    def open(self, workdir: Path) -> TensorBoard | None:
        """Opens clu's writer; None without TensorFlow."""
        if importlib.util.find_spec("tensorflow") is None:
            return None
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        from clu import metric_writers

        return TensorBoard(metric_writers.SummaryWriter(str(workdir / self.folder)))


class TensorBoard:
    """Writes scalars by one of clu's writers."""

    def __init__(self, writer: Any):
        self._writer = writer

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` finished optimizer steps."""
        self._writer.write_scalars(step, dict(metrics))

    def close(self) -> None:
        """Flushes and closes."""
        self._writer.close()
