# SPDX-License-Identifier: Apache-2.0
"""How fast a data set is read."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from rfjax import whole_files
from rfjax.bench.data import ReadingReport, measure_reading, write_random_dataset


def bench_data(
    root: Path | str | None, *, rounds: int = 5, json: Path | str | None = None
) -> ReadingReport:
    """Times reading a data set against bare ArrayRecord reads, in turns.

    Args:
      root: data folder; by default random records in the layout of SD3 at 256 px.
      rounds: how often both are timed.
      json: file to write the figures to.
    """
    if root is not None:
        measured = measure_reading(root, rounds=rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_random_dataset(Path(folder) / "random")
            measured = measure_reading(Path(folder) / "random", rounds=rounds)
    if json is not None:
        whole_files.write_json(json, dataclasses.asdict(measured))
    return measured
