# SPDX-License-Identifier: Apache-2.0
"""Where metrics go: metrics.jsonl is the truth, TensorBoard a copy when installed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path

from rfjax.run_folder import METRICS_FILE


class MetricsWriter:
    """Appends one JSON object a line; mirrors scalars to TensorBoard through clu."""

    def __init__(self, workdir: Path):
        self._file = (workdir / METRICS_FILE).open("a", encoding="utf-8")
        self._tensorboard = _make_tensorboard_writer(workdir)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` finished optimizer steps."""
        # NaN is written as such: a diverged run must be seen, not smoothed over.
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, dict(metrics))

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _make_tensorboard_writer(workdir: Path):
    """Clu's writer, or None without TensorFlow (the extra `rfjax[tensorboard]`)."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    from clu import metric_writers

    return metric_writers.SummaryWriter(str(workdir / "tensorboard"))
