# SPDX-License-Identifier: Apache-2.0
"""Whether the checkpoints of a run are what was saved."""

from __future__ import annotations

from pathlib import Path

from rfjax import checkpoint, checksums, run_folder
from rfjax import config as configs
from rfjax.commands.job import Report


def verify_run(
    workdir: Path | str, *, step: int | None = None, report: Report
) -> dict[str, list[str]]:
    """Compares every file of a run's checkpoints with its checksum.

    Args:
      workdir: run folder.
      step: look at this checkpoint only; by default at all of them, and at the position
        table of imported weights.
      report: receives a line for each checkpoint.

    Returns:
      "checkpoint 100" -> what is wrong with it, in words; an empty list if nothing is.

    Raises:
      MissingFileError: `workdir` is not a run folder.
      CheckpointError: there is no such checkpoint.
    """
    configs.load(workdir)
    workdir = Path(workdir)
    newest = checkpoint.choose_step(workdir, step)
    steps = checkpoint.finished_steps(workdir) if step is None else [newest]
    found = {}
    for each in steps:
        folder = workdir / checkpoint.FOLDER / str(each)
        problems = checkpoint.find_damage(workdir, each)
        found[f"checkpoint {each}"] = problems
        _tell(f"checkpoint {each}", folder, problems, report)
    if step is None and (workdir / checksums.FILE).exists():
        problem = checksums.damage_of(workdir / run_folder.POSITION_FILE)
        found["position table"] = [] if problem is None else [problem]
        _tell("position table", workdir, found["position table"], report)
    return found


def _tell(name: str, folder: Path, problems: list[str], report: Report) -> None:
    """Says what is wrong with the files of a folder, or that nothing is."""
    for problem in problems:
        report(f"{name}: DAMAGED: {problem}")
    if problems:
        return
    known = checksums.read(folder)
    if known is None:
        report(f"{name}: saved without checksums, cannot be verified")
    else:
        num_bytes = sum(size for size, _ in known.values())
        report(f"{name}: verified, {len(known)} files, {num_bytes / 1e6:,.1f} MB")
