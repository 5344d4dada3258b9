# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints while training continues, and restores the newest one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rfjax import checksums, disk
from rfjax.checkpoint import collector
from rfjax.checkpoint.handler import StateHandler, StateRestore, StateSave
from rfjax.checkpoint.literal_path import LiteralPath
from rfjax.checkpoint.restore import readable
from rfjax.checkpoint.steps import FOLDER, finished_steps, newest_step
from rfjax.checkpoint.verify import check_step
from rfjax.parallel import processes
from rfjax.value_types import PositiveInt, check_fields


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
        self._config = config
        self._saving: int | None = None
        self._is_unsettled = False
        self._remover = futures.ThreadPoolExecutor(max_workers=1)
        if processes.is_first():
            collector.remove_leftovers(self.workdir)
        self._state_handler = StateHandler(self._hash_own_files)
        self._manager = ocp.CheckpointManager(
            LiteralPath(self.workdir / FOLDER),
            item_handlers={
                "state": self._state_handler,
                "data": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
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
        self._settle()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=StateSave(_as_dict(state)),
                data=ocp.args.JsonSave(dict(data_position)),
            ),
        )
        self._saving = step
        self._is_unsettled = True

    def newly_saved(self) -> int | None:
        """The newest complete step, reported once per completed save; else None."""
        if self._saving is None or self._manager.is_saving_in_progress():
            return None
        self._saving = None
        self._settle()
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
        """Waits for pending saves and removals, and ends their threads."""
        try:
            self._settle()
        finally:
            self._manager.close()
            self._remover.shutdown()

    def _settle(self) -> None:
        """Waits for the last save, puts it on the disk and then lets old ones go."""
        if not self._is_unsettled:
            return
        self._is_unsettled = False
        self._manager.wait_until_finished()
        if processes.is_first():
            collector.make_durable(self.workdir)
            newest = finished_steps(self.workdir)[-self._config.keep :]
            keep = {*newest, *self._config.keep_steps}
            self._remover.submit(collector.remove_old, self.workdir, keep=keep)

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
        checksums.join_parts(folder, leave_out=collector.WRITTEN_LAST)
        disk.sync_tree(folder)  # before it takes the name of a step
        self.hash_seconds += time.perf_counter() - start


def _as_dict(state: Any) -> dict[str, Any]:
    """The fields of a state dataclass, the form that is stored."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
