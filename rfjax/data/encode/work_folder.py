# SPDX-License-Identifier: Apache-2.0
"""The folder of a data set that is not complete yet, kept from one process to the next.

    OUT.encoding/
      looks/*.npz      what pictures look like, where filters or buckets ask for it
      plan/            which record goes into which shard; appears whole, never changes
      shards/K.array_record, K.json   of each shard that is done, and what it holds
      dataset/         becomes OUT when all of it is verified

It lies beside OUT, or inside it if that is an empty folder that exists: that may be a
mount point. Everything in it appears whole or not at all, so any process may be killed
at any time, and the next one resumes.

Locks keep commands of one host apart. Where a shared file system does not show those of
other hosts, two may do the same work; both then write the same files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rfjax import disk, folder_lock, partial_files, whole_files
from rfjax.errors import UserError

ENDING = ".encoding"


class WorkFolder:
    """Where what is to become the folder OUT is made.

    Args:
      out: OUT; absent, or an empty folder.
    """

    def __init__(self, out: str | os.PathLike):
        self.out = Path(os.path.realpath(out))
        self._shown = str(out)
        beside = self.out.with_name(self.out.name + ENDING)
        inside = self.out / beside.name
        is_inside = inside.is_dir() or (self.out.is_dir() and not beside.is_dir())
        self.path = inside if is_inside else beside
        self.looks = self.path / "looks"
        self.plan = self.path / "plan"
        self.shards = self.path / "shards"
        self.dataset = self.path / "dataset"

    def shard_file(self, number: int) -> Path:
        """Where a task puts the records of a shard."""
        return self.shards / f"{number:05d}.array_record"

    def notes_file(self, number: int) -> Path:
        """Where it says what they are; a shard is done once this file exists."""
        return self.shards / f"{number:05d}.json"

    def check_free(self) -> None:
        """Raises UserError unless OUT is absent, or holds nothing but this folder."""
        whole_files.check_free(self._shown, field="out", besides=(self.path.name,))

    @contextlib.contextmanager
    def held(self, *, alone: bool) -> Iterator[None]:
        """Within the block this process works here; an empty folder is then removed.

        Args:
          alone: whether no other process of this host may; else it is one of several.

        Raises:
          UserError: another process has the folder; or as in the block, and the message
            then names the folder if anything is left in it.
        """
        disk.make_folder(self.path)
        operation = fcntl.LOCK_NB | (fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder_lock.held(self.path, operation))
            except BlockingIOError:
                raise UserError(
                    f"out must not be in use, got {self._shown}, which another process "
                    "is encoding now; wait for it to end, or name another."
                ) from None
            stack.callback(self._remove_if_empty)
            try:
                yield
            except UserError as error:
                self._remove_if_empty()
                if not self.path.is_dir() or str(self.path) in str(error):
                    raise
                kept = f"Finished work is kept in {self.path}."
                raise type(error)(f"{error} {kept}") from error

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Within the block no other process of this host plans or merges."""
        disk.make_folder(self.shards)
        with folder_lock.held(self.shards, fcntl.LOCK_EX):
            yield

    def publish(self) -> None:
        """Gives the finished `dataset` the name OUT.

        Raises:
          UserError: OUT holds something else by now.
        """
        if self.path.parent == self.out:
            partial_files.move_content(self.dataset)
            disk.sync(self.out)
            return
        if whole_files.foreign(self.out):
            raise UserError(
                f"out must be a new or empty folder, got {self._shown}, which came to "
                f"hold other files; move them away, and run the same command again."
            )
        os.replace(self.dataset, self.out)
        disk.sync(self.out.parent)

    def finish_publishing(self) -> None:
        """Finishes a `publish` that was cut short."""
        if self.path.parent == self.out:
            partial_files.finish_moving(self.path)

    def remove(self, files: Iterable[Path]) -> None:
        """Removes files of this folder, and what folders they leave empty."""
        for file in files:
            file.unlink(missing_ok=True)
        self._remove_if_empty()

    def _remove_if_empty(self) -> None:
        for folder in (self.looks, self.plan, self.shards, self.path):
            with contextlib.suppress(OSError):
                folder.rmdir()
