# SPDX-License-Identifier: Apache-2.0
"""Trains the cells of a sweep in this process, one after the other.

Stopped or killed at any moment, it resumes where it was: finished cells are skipped, a
cell under way resumes from its checkpoint, and one that failed is tried once more.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from tqdm import tqdm

from rfjax import run_folder, stopping
from rfjax.scaling.study.launchers.base import Launch
from rfjax.scaling.study.manifest import SweepCell
from rfjax.scaling.study.sweep import write_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """One process, all devices of this machine; it has no fields."""

    runs_here: ClassVar[bool] = True

    def launch(self, launch: Launch) -> list[str]:
        """Trains every cell that is not finished, and keeps runs.csv up to date.

        Returns:
          Names of the cells that failed twice.

        Raises:
          Stopped: a signal asked to stop; the current cell is saved.
        """
        cells = [cell for job in launch.jobs for cell in job]
        failed = []
        with stopping.handling() as stop, _progress(cells) as bar:

            def report(line: str) -> None:
                """Reports a line without tearing the progress bar."""
                with bar.external_write_mode():
                    launch.report(line)

            for number, cell in enumerate(cells, start=1):
                title = f"cell {number}/{len(cells)} {cell.name}"
                bar.set_description(f"sweep, cell {number}/{len(cells)}")
                if cell.is_finished(launch.workdir):
                    # Not this call's work, so it must not count for its speed.
                    bar.total -= cell.new_flops
                    bar.refresh()
                    report(f"{title}: finished before")
                    continue
                try:
                    if _try_twice(cell, launch.train_cell, report):
                        report(f"{title}: {_outcome(launch.workdir / cell.name)}")
                    else:
                        failed.append(cell.name)
                    bar.update(cell.new_flops)
                    write_table(launch.workdir)
                    if number < len(cells):
                        stop.raise_if_requested()
                except stopping.Stopped as stopped:
                    with contextlib.suppress(OSError):  # the terminal may be gone
                        report(f"sweep {stopped}; run the same command to resume")
                    raise
        write_table(launch.workdir)  # cells may have been trained by themselves
        return failed


def _progress(cells: Sequence[SweepCell]) -> tqdm:
    """One line for the whole sweep, above that of the cell under way."""
    return tqdm(
        total=sum(cell.new_flops for cell in cells),
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


def _try_twice(
    cell: SweepCell,
    train_cell: Callable[[SweepCell], None],
    report: Callable[[str], None],
) -> bool:
    """Whether a cell was trained; False if train_cell raised twice."""
    for attempt in (1, 2):
        try:
            train_cell(cell)
            return True
        except Exception as error:  # one bad cell must not end the night's sweep
            stopping.raise_again()
            report(f"{cell.name} failed (attempt {attempt}): {error}")
    return False
