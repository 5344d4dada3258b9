# SPDX-License-Identifier: Apache-2.0
"""What a launcher is given, and what it must do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from rfjax.scaling.study.manifest import SweepCell

Job = tuple[SweepCell, ...]  # a trunk and its branches, in order, or a cell on its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """Cells to be trained; all their files are in the sweep folder.

    Attributes:
      workdir: sweep folder, held by this process until `launch` returns.
      jobs: cells that share a trunk are one job, the trunk first. The cells of a job
        are trained in order; jobs need nothing of each other.
      train_cell: trains a cell to its end in this process, as its command line would.
      report: receives a line for each event.
      warn: receives a line for each cell that failed; `report` if absent.
    """

    workdir: Path
    jobs: Sequence[Job]
    train_cell: Callable[[SweepCell], None]
    report: Callable[[str], None]
    warn: Callable[[str], None] | None = None

    def __post_init__(self):
        if self.warn is None:
            object.__setattr__(self, "warn", self.report)

    def unfinished_jobs(self) -> list[Job]:
        """The jobs without the cells that are finished; those left empty are out."""
        jobs = [
            tuple(cell for cell in job if not cell.is_finished(self.workdir))
            for job in self.jobs
        ]
        return [job for job in jobs if job]


class Launcher(Protocol):
    """Takes the cells of a sweep to where they are trained.

    A launcher is a frozen dataclass; its fields are the section `launcher` of a sweep
    config, and check themselves. It only submits: for each cell of
    `launch.unfinished_jobs()`, in the order of the job, it has `cell.command_line(...)`
    run on a machine that sees the sweep folder and the data. What a cell is and every
    check are in its files and in `rfjax train`, so a launcher can neither change a
    result nor lose one.

    - The same call may come again at any time. Finished cells are left out; a cell that
      was stopped (exit status 129, 130 or 143) or that lost one of its processes (75)
      resumes by the same command line, and one under way refuses a second process on
      its machine.
    - The files of the cells belong to `rfjax train`. A launcher may add files to the
      sweep folder, under names of its own.

    Attributes:
      runs_here: whether cells are trained on the devices of this machine, which are
        then checked against the mesh of every cell beforehand.
    """

    runs_here: ClassVar[bool]

    def launch(self, launch: Launch) -> list[str]:
        """Starts the cells; may return before they are finished.

        Returns:
          Names of the cells that are known to have failed.

        Raises:
          Stopped: a signal asked to stop; what was trained here is saved.
          UserError: the cells cannot be submitted; names the remedy.
        """


def make_jobs(cells: Sequence[SweepCell]) -> list[Job]:
    """Groups cells by the trunk that they are or branch from, in order."""
    jobs: dict[str, list[SweepCell]] = {}
    for cell in cells:
        jobs.setdefault(cell.trunk or cell.name, []).append(cell)
    return [tuple(job) for job in jobs.values()]
