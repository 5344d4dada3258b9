# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl, the authoritative record of a run; every run has one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from rfjax.run_folder import METRICS_FILE


class JsonLines:
    """Appends one JSON object per line to the metrics of a run folder."""

    def __init__(self, workdir: Path):
        self._file = (workdir / METRICS_FILE).open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` finished optimizer steps."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # no checkpoint outlives the lines before it

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
