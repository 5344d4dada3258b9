# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints while training continues, and restores the newest one."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rfjax import checksums, disk
from rfjax.checkpoint import collector
from rfjax.checkpoint.handler import StateHandler, StateRestore, StateSave
from rfjax.checkpoint.literal_path import LiteralPath
from rfjax.checkpoint.quiet import keep_quiet
from rfjax.checkpoint.restore import readable
from rfjax.checkpoint.steps import FOLDER, KEPT_FILE, finished_steps, newest_step
from rfjax.checkpoint.verify import check_step
from rfjax.errors import needing_room
from rfjax.parallel import processes
from rfjax.value_types import PositiveInt, check_fields

_NUM_TRIES = 20  # to remove a folder that other threads may still write to


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep.

    Attributes:
      every_steps: optimizer steps between saves; the last step is always saved.
      keep: number of newest checkpoints that stay on disk; so does one that is being
        read, as long as it is.
      keep_steps: further steps that are saved and kept for good, also when the run
        resumes without them: until the file `kept` in the checkpoint is removed.
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
        self._unproven: int | None = None
        self._state_bytes = 0
        self._remover = futures.ThreadPoolExecutor(max_workers=1)
        if processes.is_first():
            collector.remove_leftovers(self.workdir)
            collector.mark_kept(self.workdir, config.keep_steps)
        self._state_handler = StateHandler(self._hash_own_files)
        keep_quiet()
        with needing_room(FOLDER, self.workdir):
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

    def save(
        self,
        step: int,
        state: Any,
        *,
        data_position: Mapping[str, int],
        is_proven: bool = True,
    ) -> None:
        """Starts a save; returns as soon as the arrays are copied off the device.

        Args:
          step: of the state.
          state: dataclass of pytrees of arrays.
          data_position: in the data stream.
          is_proven: whether the state is known to be good. If not, no older checkpoint
            is removed for it before `prove`, and it may be disowned.

        Raises:
          StorageError: the disk has no room for it, or had none for the one before.
        """
        if step in finished_steps(self.workdir):
            return
        self._settle()
        self._unproven = None if is_proven else step
        self._saving = step
        self._is_unsettled = True
        self._state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self._all_or_nothing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=StateSave(_as_dict(state)),
                    data=ocp.args.JsonSave(dict(data_position)),
                ),
            )

    def prove(self, step: int) -> None:
        """Says that states up to a step are good: the loss after them was."""
        if self._unproven is not None and self._unproven <= step:
            self._unproven = None
            if not self._is_unsettled:
                self.remove_old()

    def remove_old(self) -> None:
        """Starts the removal of all but the newest checkpoints, as every save does."""
        if processes.is_first():
            # Named now: when they are removed, newer ones may have come.
            steps = finished_steps(self.workdir)[: -self._config.keep]
            old = [step for step in steps if step not in self._config.keep_steps]
            self._remover.submit(collector.remove_old, self.workdir, steps=old)

    def disown(self, step: int | None) -> bool:
        """Removes the checkpoint of a step that turned out to be ruined.

        Only one of this process that nothing has proven to be good; call `close` first.

        Returns:
          Whether there was such a checkpoint.
        """
        if step is None or step != self._unproven:
            return False
        if processes.is_first():
            collector.remove_old(self.workdir, steps=[step])
        return True

    def newest_without(self, step: int | None) -> int | None:
        """The newest checkpoint that would be left after `disown`."""
        steps = {*finished_steps(self.workdir)}
        if self._saving is not None:
            steps.add(self._saving)
        if step is not None and step == self._unproven:
            steps.discard(step)
        return max(steps, default=None)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Within the block, a failed save is one error, and leaves nothing behind."""
        room = needing_room(
            f"checkpoint {self._saving}",
            self.workdir / FOLDER,
            num_bytes=self._state_bytes,
        )
        with room:
            try:
                yield
            except Exception:
                self._discard_unfinished()
                self._saving = None
                self._is_unsettled = False
                raise

    def _discard_unfinished(self) -> None:
        """Removes what has been written of the save that failed."""
        for _ in range(_NUM_TRIES if processes.is_first() else 0):
            with contextlib.suppress(OSError):
                collector.remove_leftovers(self.workdir)
                return
            time.sleep(0.1)  # threads that have not noticed yet may still add files

    def newly_saved(self) -> int | None:
        """The newest complete step, reported once per completed save; else None.

        Raises:
          StorageError: the disk had no room for the save.
        """
        if self._saving is None:
            return None
        if self._state_handler.failure is None:
            if self._manager.is_saving_in_progress():
                return None
        self._settle()
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
        """Waits for pending saves and removals, and ends their threads.

        Raises:
          StorageError: the disk had no room for the last save.
        """
        try:
            self._settle()
        finally:
            if self._state_handler.failure is None:  # else it would wait for minutes
                with needing_room(FOLDER, self.workdir):
                    self._manager.close()
            self._remover.shutdown()

    def _settle(self) -> None:
        """Waits for the last save, puts it on the disk and then lets old ones go.

        Raises:
          StorageError: the disk had no room for it; nothing of it is left.
        """
        if not self._is_unsettled:
            return
        with self._all_or_nothing():
            failure = self._state_handler.failure
            if failure is not None and jax.process_count() > 1:
                raise failure  # orbax would wait minutes for the other processes
            self._manager.wait_until_finished()
            if processes.is_first():
                collector.make_durable(self.workdir)
        self._is_unsettled = False
        if self._unproven is None:
            self.remove_old()

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
        with self._state_handler.noting_failure():
            if self._saving in self._config.keep_steps:
                (folder / KEPT_FILE).touch()
            checksums.join_parts(folder, leave_out=collector.WRITTEN_LAST)
            disk.sync_tree(folder)  # before it takes the name of a step
        self.hash_seconds += time.perf_counter() - start


def _as_dict(state: Any) -> dict[str, Any]:
    """The fields of a state dataclass, the form that is stored."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
