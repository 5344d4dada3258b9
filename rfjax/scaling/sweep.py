# SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a study on this machine, one after the other.

Killed at any moment, it goes on where it was: finished cells are skipped, a cell under
way resumes from its checkpoint, and one that failed is tried once more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rfjax import run_folder
from rfjax.scaling.grid import Cell

TABLE_FILE = "runs.csv"


def run_locally(
    cells: Sequence[Cell],
    *,
    workdir: Path,
    train_cell: Callable[[Cell, Path], bool],
    report: Callable[[str], None],
) -> list[str]:
    """Trains every cell that is not finished.

    Args:
      cells: what to train.
      workdir: sweep folder; holds one run folder a cell and `runs.csv`.
      train_cell: (cell, run folder) -> whether it ran to its end; False means that the
        user asked to stop.
      report: receives a line for each event.

    Returns:
      Names of the cells that failed twice.

    Raises:
      ValueError: if another sweep is writing to the folder.
    """
    failed = []
    with run_folder.exclusive(workdir):
        for number, cell in enumerate(cells, start=1):
            title = f"cell {number}/{len(cells)} {cell.name}"
            if cell_status(workdir / cell.name) == "finished":
                report(f"{title}: finished before")
                continue
            report(f"{title}: training")
            finished = _try_twice(cell, workdir / cell.name, train_cell, report)
            if finished is None:
                failed.append(cell.name)
            elif not finished:
                report("sweep stopped; run the same command to go on")
                break
            write_table(workdir)
    return failed


def cell_status(folder: Path) -> str:
    """Status in a cell's run.json, or "missing"."""
    path = folder / run_folder.RUN_FILE
    return json.loads(path.read_text())["status"] if path.is_file() else "missing"


def write_table(workdir: Path) -> Path:
    """Writes runs.csv: one row for every evaluated point of every cell."""
    # pandas takes a second to import, and only this needs it.
    from rfjax.scaling import runs

    path = workdir / TABLE_FILE
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    runs.load(workdir).to_csv(partial, index=False)
    os.replace(partial, path)
    return path


def _try_twice(cell, folder, train_cell, report) -> bool | None:
    """What train_cell returned, or None if it raised twice."""
    for attempt in (1, 2):
        try:
            return train_cell(cell, folder)
        except Exception as error:  # one bad cell must not end the night's sweep
            report(f"{cell.name} failed (attempt {attempt}): {error}")
    return None
