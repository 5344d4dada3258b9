# SPDX-License-Identifier: Apache-2.0
"""Whether the checkpoints of a run are what was saved."""

from __future__ import annotations

from pathlib import Path

from rfjax import checkpoint, checksums
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
      FileNotFoundError: `workdir` is not a run folder.
      CheckpointError: there is no such checkpoint.
    """
    configs.load(workdir)
    workdir = Path(workdir)
    newest = checkpoint.choose_step(workdir, step)
    steps = checkpoint.finished_steps(workdir) if step is None else [newest]
    folders = {f"checkpoint {s}": workdir / checkpoint.FOLDER / str(s) for s in steps}
    if step is None and (workdir / checksums.FILE).exists():
        folders["position table"] = workdir
    return {name: _verify(name, folder, report) for name, folder in folders.items()}


def _verify(name: str, folder: Path, report: Report) -> list[str]:
    """What is wrong with the files of a folder; says so, or that nothing is."""
    try:
        known = checksums.read(folder)
        problems = checksums.find_damage(folder, known or {})
    except ValueError as error:  # the list itself is damaged
        known, problems = {}, [str(error)]
    for problem in problems:
        report(f"{name}: DAMAGED: {problem}")
    if known is None:
        report(f"{name}: saved without checksums, cannot be verified")
    elif not problems:
        num_bytes = sum(size for size, _ in known.values())
        report(f"{name}: verified, {len(known)} files, {num_bytes / 1e6:,.1f} MB")
    return problems
