# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints a run folder holds, and the error for one that cannot be used."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from rfjax import whole_files
from rfjax.errors import UserError

FOLDER = "checkpoints"

# An empty file in a checkpoint that stays for good; without it, it may be removed.
KEPT_FILE = "kept"

_STEP = re.compile("0|[1-9][0-9]*")


class CheckpointError(UserError):
    """A checkpoint is missing, unfinished or unreadable."""


class CheckpointRemoved(CheckpointError):
    """A checkpoint was there, and the run has removed it since."""


def finished_steps(workdir: Path | str) -> list[int]:
    """Steps of the complete checkpoints of a run folder, in order."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in folder.iterdir()
        if _STEP.fullmatch(path.name) and path.is_dir()
    )


def newest_step(workdir: Path | str) -> int | None:
    """The newest complete checkpoint of a run folder, None if it has none."""
    steps = finished_steps(workdir)
    return steps[-1] if steps else None


def check_folder(workdir: Path, *, last_step: int) -> None:
    """Raises CheckpointError unless a run can have its checkpoints there, and only its.

    Args:
      workdir: run folder; may be missing.
      last_step: of the run.
    """
    _check_name(workdir)
    folder = workdir / FOLDER
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(
            f"{folder} must be a folder, got a file or a link to nothing; move it away."
        )
    foreign = [step for step in finished_steps(workdir) if step > last_step]
    if foreign:
        raise CheckpointError(
            f"{folder} must hold checkpoints up to step {last_step} (train.num_steps), "
            f"got {foreign[-1]}, which is of another run; move that folder away."
        )


def _check_name(workdir: Path | str) -> None:
    """Raises CheckpointError on a path that TensorStore would take for another."""
    path = str(Path(workdir).absolute())
    if "\\" in path or path != path.encode(errors="replace").decode():
        raise CheckpointError(
            "workdir must be a path in UTF-8 without a backslash, got "
            f"{path!r}; rename the folder."
        )


def choose_step(workdir: Path | str, step: int | None = None) -> int:
    """The step to read: the requested one, else the newest.

    Raises:
      CheckpointError: if it does not exist, or its save never finished.
    """
    _check_name(workdir)
    steps = finished_steps(workdir)
    folder = Path(workdir) / FOLDER
    if step is None and steps:
        return steps[-1]
    if step in steps:
        return step
    asked = "a checkpoint" if step is None else f"checkpoint {step}"
    unfinished = sorted(
        path.name for path in folder.glob(f"{'*' if step is None else step}.orbax*tmp*")
    )
    if unfinished:
        reason = f"its save was interrupted and never finished ({unfinished[-1]})"
    elif not Path(workdir).is_dir():
        reason = f"the run folder {workdir} does not exist"
    elif folder.is_file():
        reason = f"{folder} is a file"
    else:
        reason = f"{folder} holds none of that step"
    choice = f"choose one of the steps {steps}" if steps else "train it first"
    raise CheckpointError(f"{asked} cannot be read: {reason}; {choice}.")


def inherit(workdir: Path | str, *, source: Path | str, step: int) -> None:
    """Gives a run without checkpoints a checkpoint of another run.

    Files are linked rather than copied where the file system supports it: a finished
    checkpoint never changes.

    Args:
      workdir: run folder that receives the checkpoint.
      source: run folder that has it.
      step: one of the finished steps of `source`.
    """
    folder = Path(workdir) / FOLDER
    with whole_files.new_folder(folder / str(step)) as partial:
        shutil.copytree(
            Path(source) / FOLDER / str(step),
            partial,
            copy_function=_link,
            ignore=shutil.ignore_patterns(KEPT_FILE),  # there, not here
            dirs_exist_ok=True,
        )


def _link(source: str, target: str) -> None:
    """Links a file, or copies it where links are not supported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def removed(workdir: Path | str, step: int) -> CheckpointRemoved:
    """The error for a checkpoint that was there, and that the run has removed since."""
    return CheckpointRemoved(
        f"checkpoint {step} of {workdir} was removed while it was to be read: the run "
        "is being trained and keeps its newest ones (checkpoint.keep); choose one of "
        f"the steps {finished_steps(workdir)}, or leave the step out to read the "
        "newest."
    )


def damaged(workdir: Path, step: int, reason: str) -> CheckpointError:
    """The error for a checkpoint that cannot be used, with a remedy."""
    if step not in finished_steps(workdir):
        return removed(workdir, step)
    older = [s for s in finished_steps(workdir) if s < step]
    remedy = (
        f"delete {workdir / FOLDER / str(step)} to resume from step {older[-1]}"
        if older
        else "copy it again from a backup, or delete the run folder to start over"
    )
    return CheckpointError(
        f"checkpoint {step} of {workdir} is damaged ({reason}); {remedy}."
    )
