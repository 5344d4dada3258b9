# SPDX-License-Identifier: Apache-2.0
"""Whether the checkpoints of a run are what was saved."""

from __future__ import annotations

from pathlib import Path

from rfjax import checkpoint, checksums
from rfjax import config as configs
from rfjax.commands.job import Report


def verify_run(
    workdir: Path | str, *, step: int | None = None, report: Report
) -> dict[int, list[str]]:
    """Compares every file of a run's checkpoints with its checksum.

    Args:
      workdir: run folder.
      step: look at this checkpoint only; at all of them by default.
      report: receives a line for each checkpoint.

    Returns:
      step -> what is wrong with it, in words; an empty list if nothing is.

    Raises:
      FileNotFoundError: `workdir` is not a run folder.
      CheckpointError: there is no such checkpoint.
    """
    configs.load(workdir)
    newest = checkpoint.choose_step(workdir, step)
    found = {}
    for each in checkpoint.finished_steps(workdir) if step is None else [newest]:
        folder = Path(workdir) / checkpoint.FOLDER / str(each)
        found[each] = checkpoint.find_damage(workdir, each)
        for problem in found[each]:
            report(f"checkpoint {each}: DAMAGED: {problem}")
        if found[each]:
            continue
        known = checksums.read(folder)
        if known is None:
            report(f"checkpoint {each}: saved without checksums, cannot be verified")
        else:
            num_bytes = sum(size for size, _ in known.values())
            report(
                f"checkpoint {each}: verified, {len(known)} files, "
                f"{num_bytes / 1e6:,.1f} MB"
            )
    return found
