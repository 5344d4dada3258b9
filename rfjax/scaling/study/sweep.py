# SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a study on this machine, one after the other.

Stopped or killed at any moment, it resumes where it was: finished cells are skipped, a
cell under way resumes from its checkpoint, and one that failed is tried once more.
Cells may be added between calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from rfjax import run_folder, stopping, whole_files
from rfjax.errors import UserError
from rfjax.scaling.study.grid import Cell

TABLE_FILE = "runs.csv"


def run_locally(
    cells: Sequence[Cell],
    *,
    workdir: Path,
    train_cell: Callable[[Cell, Path], None],
    flops_of_cell: Mapping[str, float],
    report: Callable[[str], None],
) -> list[str]:
    """Trains every cell that is not finished.

    Args:
      cells: what to train.
      workdir: sweep folder; holds one run folder a cell and `runs.csv`.
      train_cell: (cell, run folder) -> None; trains the cell to its end.
      flops_of_cell: name -> what training the cell costs; progress is counted in it.
      report: receives a line for each event.

    Returns:
      Names of the cells that failed twice.

    Raises:
      Stopped: a signal asked to stop; the cell under way is saved.
      UserError: if another sweep is writing to the folder, or its table's name is
        taken.
    """
    failed = []
    with (
        stopping.handling() as stop,
        run_folder.exclusive(workdir),
        _progress(flops_of_cell) as bar,
    ):
        _check_table(workdir)

        def tell(line: str) -> None:
            with bar.external_write_mode():
                report(line)

        for number, cell in enumerate(cells, start=1):
            title = f"cell {number}/{len(cells)} {cell.name}"
            bar.set_description(f"sweep, cell {number}/{len(cells)}")
            if is_finished(cell, workdir / cell.name):
                # Not this call's work, so it must not count for its speed.
                bar.total -= flops_of_cell[cell.name]
                bar.refresh()
                tell(f"{title}: finished before")
                continue
            try:
                if _try_twice(cell, workdir / cell.name, train_cell, tell):
                    tell(f"{title}: {_outcome(workdir / cell.name)}")
                else:
                    failed.append(cell.name)
                bar.update(flops_of_cell[cell.name])
                write_table(workdir)
                if number < len(cells):
                    stop.raise_if_requested()
            except stopping.Stopped as stopped:
                with contextlib.suppress(OSError):  # the terminal may be gone
                    tell(f"sweep {stopped}; run the same command to resume")
                raise
    return failed


def is_finished(cell: Cell, folder: Path) -> bool:
    """Whether a cell has been trained to its present length."""
    run = run_folder.read_run(folder)
    # A run that was killed before its first step has no status yet.
    return run.get("status") == "finished" and run.get("step", 0) >= cell.num_steps


def write_table(workdir: Path) -> Path:
    """Writes runs.csv: one row for every evaluated point of every cell."""
    # pandas takes a second to import, and only this needs it.
    from rfjax.scaling.study import runs

    path = workdir / TABLE_FILE
    with whole_files.replacing(path) as partial:
        runs.load_runs(workdir).to_csv(partial, index=False)
    return path


def _check_table(workdir: Path) -> None:
    """Raises UserError if a file that no sweep wrote has the name of the table."""
    path = workdir / TABLE_FILE
    if path.exists() and not path.read_text("utf-8").startswith("run,trunk,"):
        raise UserError(
            f"sweep folder {workdir} holds a {TABLE_FILE} that no sweep wrote; move "
            "it, or use another --workdir."
        )


def _progress(flops_of_cell: Mapping[str, float]) -> tqdm:
    """One line for the whole sweep, above that of the cell under way."""
    return tqdm(
        total=sum(flops_of_cell.values()),
        desc="sweep",
        unit="FLOP",
        unit_scale=True,
        smoothing=0,  # the ETA follows the mean speed: cells differ a hundredfold
        dynamic_ncols=True,
    )


def _outcome(folder: Path) -> str:
    """The loss that a cell ended with, in words."""
    lines = run_folder.read_metrics(folder)
    losses = [line["val_ema/loss"] for line in lines if "val_ema/loss" in line]
    return f"val_ema/loss {losses[-1]:.4f}" if losses else "finished"


def _try_twice(cell, folder, train_cell, report) -> bool:
    """Whether a cell was trained; False if train_cell raised twice."""
    for attempt in (1, 2):
        try:
            train_cell(cell, folder)
            return True
        except Exception as error:  # one bad cell must not end the night's sweep
            stopping.raise_again()
            report(f"{cell.name} failed (attempt {attempt}): {error}")
    return False
