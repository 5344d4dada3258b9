# SPDX-License-Identifier: Apache-2.0
"""Whether a data set, or the checkpoints of a run, are as they were saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from rfjax import checkpoint, checksums, run_folder, whole_files
from rfjax.commands.flags import SHEETS, Report, RunEncoders, Step
from rfjax.commands.job import checked_folders
from rfjax.config import load_config
from rfjax.data.verify import verify as verify_data
from rfjax.errors import UserError
from rfjax.value_types import LocalPath, checked


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
      damage: what was looked at -> what is wrong with it, in words; nothing if empty.
      text: for a reader; a run's was reported already.
    """

    damage: Mapping[str, Sequence[str]]
    text: str = ""

    @property
    def exit_status(self) -> int:
        """1 if anything is damaged."""
        return int(any(self.damage.values()))

    def __str__(self) -> str:
        return self.text


@checked
def verify(
    *,
    data: LocalPath | None = None,
    workdir: LocalPath | None = None,
    step: Step = None,
    picture: LocalPath | None = None,
    encoders: RunEncoders = (),
    report: Report = lambda line: None,
) -> Verification:
    """Checks a data set and draws a contact sheet of it, or checks a run's checkpoints.

    Args:
      data: data folder; give this or --workdir.
      workdir: run folder.
      step: checkpoint to check; all of them if absent.
      picture: contact sheet to write; DATA/contact_sheet.png if absent, if files can be
        written there.
      encoders: folder with the weights of text encoders and autoencoder, if they were
        moved since the data was encoded; may be given several times.
      report: receives a line for each checkpoint.

    Raises:
      UserError: flags that do not go together, or data that cannot be read.
      MissingFileError: there is no such folder.
      CheckpointError: there is no such checkpoint.

    Example:
      rfjax verify --data=data/emoji
      rfjax verify --workdir=runs/emoji
    """
    if (data is None) == (workdir is None):
        raise UserError("give either --data=DIR or --workdir=DIR.")
    if picture is not None and data is None:
        raise UserError("--picture goes with --data=DIR; leave it out.")
    if encoders and data is None:
        raise UserError("--encoders goes with --data=DIR; leave it out.")
    if step is not None and workdir is None:
        raise UserError("--step goes with --workdir=DIR; leave it out.")
    if workdir is not None:
        return Verification(_verify_run(workdir, step=step, report=report))
    found = verify_data(
        data, picture=_sheet_of(data, picture), encoders=checked_folders(encoders)
    )
    return Verification({str(data): found.problems}, str(found))


def _sheet_of(data: Path, picture: Path | None) -> Path | None:
    """Where the contact sheet is written; none is beside data that may only be read."""
    sheet = picture or Path(data) / "contact_sheet.png"
    try:
        whole_files.check_writable(sheet, field="--picture", suffixes=SHEETS)
    except UserError:
        if picture is not None:
            raise
        return None
    return sheet


def _verify_run(
    workdir: Path | str, *, step: int | None, report: Report
) -> dict[str, list[str]]:
    """Compares every file of a run's checkpoints with its checksum.

    Args:
      workdir: run folder.
      step: look at this checkpoint only; by default at all of them, and at the position
        table of imported weights.
      report: receives a line for each checkpoint.

    Returns:
      "checkpoint 100" -> what is wrong with it, in words; an empty list if nothing is.
    """
    load_config(workdir)
    workdir = Path(workdir)
    newest = checkpoint.choose_step(workdir, step)
    steps = checkpoint.finished_steps(workdir) if step is None else [newest]
    found = {}
    for each in steps:
        name = f"checkpoint {each}"
        try:
            with checkpoint.pinned(workdir, each):
                found[name] = checkpoint.find_damage(workdir, each)
                folder = workdir / checkpoint.FOLDER / str(each)
                _report(name, folder, found[name], report)
        except checkpoint.CheckpointRemoved:
            if step is not None:
                raise
            report(f"{name}: removed by the training process meanwhile")
    if step is None and (workdir / checksums.FILE).exists():
        problem = checksums.damage_of(workdir / run_folder.POSITION_FILE)
        found["position table"] = [] if problem is None else [problem]
        _report("position table", workdir, found["position table"], report)
    return found


def _report(name: str, folder: Path, problems: list[str], report: Report) -> None:
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
