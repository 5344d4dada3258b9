# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl, the authoritative record of a run; every run has one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from rfjax.errors import needing_room
from rfjax.run_folder import METRICS_FILE


class JsonLines:
    """Appends one JSON object per line to the metrics of a run folder."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        # Without a buffer, which would keep a line that the disk has refused.
        self._file = (workdir / METRICS_FILE).open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics after `step` finished optimizer steps.

        Raises:
          StorageError: the disk has no room for the line; nothing of it is left.
        """
        line = json.dumps({"step": step, **metrics}).encode() + b"\n"
        size = self._file.seek(0, os.SEEK_END)
        with needing_room(METRICS_FILE, self._workdir):
            try:
                while line:
                    line = line[self._file.write(line) :]
                # No checkpoint outlives the lines before it.
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(size)
                raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
