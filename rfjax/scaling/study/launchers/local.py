# SPDX-License-Identifier: Apache-2.0
"""Trains the cells of a sweep in this process, one after the other.

Stopped or killed at any moment, it resumes where it was: finished cells are skipped, a
cell under way resumes from its checkpoint, and one that failed is tried once more. One
that diverged is not: `fit` leaves it out, and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from tqdm import tqdm

from rfjax import run_folder, stopping
from rfjax.scaling.study.launchers.base import Launch
from rfjax.scaling.study.manifest import SweepCell
from rfjax.scaling.study.pace import Pace
from rfjax.scaling.study.sweep import write_table
from rfjax.train.divergence import TrainingDiverged


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalLauncher:
    """One process, all devices of this machine; it has no fields."""

    runs_here: ClassVar[bool] = True

    def launch(self, launch: Launch) -> list[str]:
        """Trains every cell that is not finished, and keeps runs.csv up to date.

        Returns:
          Names of the cells that diverged, or failed twice.

        Raises:
          Stopped: a signal asked to stop; the current cell is saved.
        """
        cells = [cell for job in launch.jobs for cell in job]
        failed = []
        pace = Pace(launch.workdir)
        with stopping.handling() as stop, _progress(cells) as bar:

            def apart(say: Callable[[str], None]) -> Callable[[str], None]:
                """Says a line without tearing the progress bar."""

                def say_apart(line: str) -> None:
                    with bar.external_write_mode():
                        say(line)

                return say_apart

            report, warn = apart(launch.report), apart(launch.warn)
            for number, cell in enumerate(cells, start=1):
                title = f"cell {number}/{len(cells)} {cell.name}"
                if cell.is_finished(launch.workdir):
                    report(f"{title}: finished before")
                    bar.update()
                    continue
                start = time.monotonic()
                try:
                    if _try_twice(cell, launch.train_cell, warn):
                        report(f"{title}: {_outcome(launch.workdir / cell.name)}")
                        pace.add(cell, seconds=time.monotonic() - start)
                    else:
                        failed.append(cell.name)
                    write_table(launch.workdir)
                    bar.set_postfix_str(
                        _spell_end(pace.seconds_left(cells[number:])), refresh=False
                    )
                    bar.update()
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
    # The end is a time of day: the line stands still for as long as a cell trains.
    return tqdm(
        total=len(cells),
        desc="sweep",
        bar_format="{desc}: {n_fmt}/{total_fmt} cells |{bar}| in {elapsed}{postfix}",
        dynamic_ncols=True,
    )


def _spell_end(seconds_left: float | None) -> str:
    """When the sweep ends, in words; nothing as long as it is not known."""
    if not seconds_left:
        return ""
    now = datetime.datetime.now()
    end = now + datetime.timedelta(seconds=seconds_left)
    day = "" if end.date() == now.date() else "%a %d %b "
    return f"ends about {end.strftime(day + '%H:%M')}"


def _outcome(folder: Path) -> str:
    """The loss that a cell ended with, in words."""
    lines = run_folder.read_metrics(folder)
    losses = [line["val_ema/loss"] for line in lines if "val_ema/loss" in line]
    return f"val_ema/loss {losses[-1]:.5g}" if losses else "finished"


def _try_twice(
    cell: SweepCell,
    train_cell: Callable[[SweepCell], None],
    warn: Callable[[str], None],
) -> bool:
    """Whether a cell was trained; False if it diverged or train_cell raised twice."""
    for attempt in (1, 2):
        try:
            train_cell(cell)
            return True
        except TrainingDiverged as error:  # it would again
            warn(f"{cell.name} diverged, the others go on: {error}")
            return False
        except Exception as error:  # one bad cell must not end the night's sweep
            stopping.raise_again()
            warn(f"{cell.name} failed (attempt {attempt}): {error}")
    return False
