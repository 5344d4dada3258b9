# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints while training continues, and restores the newest one."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from rfjax import checksums
from rfjax.checkpoint.handler import StateHandler, StateRestore, StateSave
from rfjax.checkpoint.restore import readable
from rfjax.checkpoint.steps import FOLDER, finished_steps, newest_step
from rfjax.checkpoint.verify import check_step
from rfjax.parallel import processes
from rfjax.value_types import PositiveInt, check_fields

# Files that orbax writes or alters after the checksums: none of them holds a value.
_WRITTEN_LAST = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    checksums.FILE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every_steps: optimizer steps between saves; the last step is always saved.
      keep: number of newest checkpoints that stay on disk.
      keep_steps: further steps that are saved and kept for good.
    """

    every_steps: PositiveInt = 1000
    keep: PositiveInt = 2
    keep_steps: tuple[PositiveInt, ...] = ()

    def __post_init__(self):
        check_fields(self, section="checkpoint")

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this many steps."""
        return step % self.every_steps == 0 or step in self.keep_steps


class Checkpoints:
    """The checkpoints of one run folder, as the training loop sees them.

    Attributes:
      workdir: run folder, as an absolute path.
      hash_seconds: time this process has spent on checksums, in saves and restores.
    """

    def __init__(self, workdir: Path | str, *, config: CheckpointConfig):
        self.workdir = Path(workdir).absolute()
        self.hash_seconds = 0.0
        self._saving: int | None = None
        self._state_handler = StateHandler(self._hash_own_files)
        self._manager = ocp.CheckpointManager(
            self.workdir / FOLDER,
            item_handlers={
                "state": self._state_handler,
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Preservation(config, self.workdir),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._join_checksums
                ),
            ),
        )

    def save(self, step: int, state: Any, *, data_position: Mapping[str, int]) -> None:
        """Starts a save; returns as soon as the arrays are copied off the device."""
        if step in finished_steps(self.workdir):
            return
        self._keep_foreign_leftover(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=StateSave(_as_dict(state)),
                data=ocp.args.JsonSave(dict(data_position)),
            ),
        )
        self._saving = step

    def _keep_foreign_leftover(self, step: int) -> None:
        """Sets aside an unfinished save with other files, which orbax would delete."""
        leftover = self.workdir / FOLDER / f"{step}.orbax-checkpoint-tmp"
        if not (processes.is_first() and leftover.is_dir()):
            return
        own = ("state", "data", *_WRITTEN_LAST)
        if not all(entry.name.startswith(own) for entry in leftover.iterdir()):
            aside = leftover.with_name(f"{leftover.name}.kept-{secrets.token_hex(4)}")
            leftover.rename(aside)
            logging.warning("%s holds other files, kept as %s", leftover, aside.name)

    def newly_saved(self) -> int | None:
        """The newest complete step, reported once per completed save; else None."""
        if self._saving is None or self._manager.is_saving_in_progress():
            return None
        self._saving = None
        return newest_step(self.workdir)

    def restore_newest(self, abstract_state: Any) -> tuple[Any, dict[str, int]] | None:
        """The newest state in the layout of `abstract_state`, and the data position.

        Args:
          abstract_state: the state as ShapeDtypeStructs with shardings; the mesh may
            differ from the one that saved.

        Returns:
          (state, data position), or None if nothing was ever saved.

        Raises:
          CheckpointError: if the newest checkpoint cannot be read.
        """
        step = newest_step(self.workdir)
        if step is None:
            return None
        start = time.perf_counter()
        check_step(self.workdir, step)
        self.hash_seconds += time.perf_counter() - start
        with readable(self.workdir, step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=StateRestore(_as_dict(abstract_state)),
                    data=ocp.args.JsonRestore(),
                ),
            )
        return type(abstract_state)(**restored.state), dict(restored.data)

    def close(self) -> None:
        """Waits for pending saves and ends the writing threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _hash_own_files(self, state_folder: Path) -> None:
        """Hashes the files that this process wrote, as soon as they are written."""
        start = time.perf_counter()
        index = jax.process_index()
        own = (state_folder / f"ocdbt.process_{index}").rglob("*")
        hashed = checksums.compute(state_folder, own)
        checksums.write(
            state_folder.parent,
            {f"state/{path}": entry for path, entry in hashed.items()},
            part=index,
        )
        self.hash_seconds += time.perf_counter() - start

    def _join_checksums(self) -> None:
        """Writes one list of all files, in the first process when all have written."""
        start = time.perf_counter()
        folder = self._state_handler.step_folder
        checksums.join_parts(folder, leave_out=_WRITTEN_LAST)
        self.hash_seconds += time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class _Preservation:
    """Which checkpoints stay: the newest, the requested, and those with other files."""

    config: CheckpointConfig
    workdir: Path

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        """Whether each checkpoint stays, oldest first."""
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        keep = {*steps[-self.config.keep :], *self.config.keep_steps}
        return [step in keep or self._holds_foreign_files(step) for step in steps]

    def _holds_foreign_files(self, step: int) -> bool:
        """Whether a checkpoint holds files that no save wrote."""
        folder = self.workdir / FOLDER / str(step)
        try:
            known = checksums.read(folder)
        except ValueError:
            return True
        if known is None:  # saved by an older rfjax, or not by rfjax at all
            own = {"state", "data", *_WRITTEN_LAST}
            names = (
                {entry.name for entry in folder.iterdir()} if folder.is_dir() else own
            )
            return "_CHECKPOINT_METADATA" not in names or not names <= own
        return bool(checksums.foreign_files(folder, {*known, *_WRITTEN_LAST}))


def _as_dict(state: Any) -> dict[str, Any]:
    """The fields of a state dataclass, the form that is stored."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
