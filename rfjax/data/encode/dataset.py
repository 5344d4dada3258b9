# SPDX-License-Identifier: Apache-2.0
"""Encodes a data set: makes a plan, does its tasks, and merges what they wrote.

Finished work is kept: after a kill the same call resumes, and the result is the same to
the byte, however often it was killed and however many processes took part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rfjax import schema
from rfjax.data import shards
from rfjax.data.encode import looks, merge
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.plan import PLAN_FILE, Plan, check_creation
from rfjax.data.encode.planning import make_plan
from rfjax.data.encode.task import Tasks
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.encode.workers import HERE, do_tasks, suitable_workers
from rfjax.data.filters.pictures import Look
from rfjax.data.manifest import MANIFEST_FILE, Manifest
from rfjax.errors import UserError

Progress = Callable[[int, int], None]  # called with (examples done, examples in all)
Report = Callable[[str], None]

LOOK_SECONDS = 5.0  # between looks at what other shares have done
MOST_ROUNDS = 3  # in which shards that changed are encoded again


@dataclasses.dataclass(frozen=True)
class Share:
    """Some of the shards of an encoding, which other processes share.

    Attributes:
      index: of this share, from 0.
      count: of the shares.
    """

    index: int
    count: int


def encode_dataset(
    config: EncodeConfig,
    *,
    out: str | os.PathLike,
    num_workers: int | None = HERE,
    progress: Progress | None = None,
    look_progress: Progress | None = None,
    report: Report | None = None,
    warn: Report = warnings.warn,
) -> Manifest:
    """Encodes a whole data set into the folder `out`.

    Args:
      config: what and how.
      out: must be new or empty; appears only when complete. Until then OUT.encoding
        holds what is finished, and the same call resumes from there.
      num_workers: processes; 0: this one alone; None: as many as suit this machine.
      progress: of encoding.
      look_progress: of looking at pictures, if filters or buckets ask for it.
      report: told at once of workers that died and files that changed; `warn` if None.
      warn: told at the end what the user has to know, a sentence at a time: broken
        records, captions that were cut, words that a text encoder does not know.

    Returns:
      The manifest of the data set.

    Raises:
      UserError: `out` is not empty, or in use; more records are broken than
        `config.max_broken` allows; or config, encoders or source are not those with
        which the encoding began.
      MissingPackageError: a package of source, codec or text encoder is missing.
      StorageError: the disk is full; finished work is kept.
    """
    work = WorkFolder(out)
    encoding = _Encoding(
        config, work, num_workers, progress, look_progress, report or warn, warn
    )
    if work.path.is_dir() and (manifest := encoding.published()):
        return manifest
    work.check_free()
    encoding.open_source()  # what is wrong with it is said before there is a folder
    with work.held(alone=True):
        if manifest := encoding.published():  # by another process in the meantime
            return manifest
        if not encoding.make_plan():
            encoding.tasks.plan.check_source(encoding.tasks.source, work)
        return encoding.finish(merge.unfinished(encoding.tasks.plan, work))


def encode_share(
    out: str | os.PathLike,
    share: Share,
    *,
    config: EncodeConfig | None = None,
    num_workers: int | None = HERE,
    progress: Progress | None = None,
    look_progress: Progress | None = None,
    report: Report | None = None,
    warn: Report = warnings.warn,
) -> Manifest | None:
    """Encodes one share of a data set; who ends last makes the data set of them all.

    Shares may run at the same time, on several hosts that see the same folder, and any
    of them may be run again.

    Args:
      out: as of `encode_dataset`, the same for all shares.
      share: which.
      config: as of `encode_dataset`; None: of the plan that is there.
      num_workers: as of `encode_dataset`, of this share.
      progress: of encoding, all shares together.
      look_progress: of looking at pictures before there is a plan.
      report: as of `encode_dataset`.
      warn: as of `encode_dataset`.

    Returns:
      The manifest once the data set is complete; None while other shares are not.

    Raises:
      UserError, MissingPackageError, StorageError: as `encode_dataset` does.
    """
    work = WorkFolder(out)
    if config is None:
        config = _config_of(work)
    encoding = _Encoding(
        config, work, num_workers, progress, look_progress, report or warn, warn
    )
    if manifest := encoding.published():
        return manifest
    work.check_free()
    encoding.open_source()
    with work.held(alone=False):
        with work.turn():
            if manifest := encoding.published():  # by another share in the meantime
                return manifest
            encoding.make_plan()
        plan = encoding.tasks.plan
        own = range(share.index, len(plan.shards), share.count)
        encoding.encode([n for n in merge.unfinished(plan, work) if n in own])
        with work.turn():
            if manifest := encoding.published():
                return manifest
            if merge.unfinished(plan, work):
                return None
            return encoding.finish(())


class _Encoding:
    """The steps of an encoding."""

    def __init__(
        self,
        config: EncodeConfig,
        work: WorkFolder,
        num_workers: int | None,
        progress: Progress | None,
        look_progress: Progress | None,
        report: Report,
        warn: Report,
    ):
        self.tasks = Tasks(config, work)
        self._config, self._work = config, work
        self._num_workers = num_workers
        self._progress, self._look_progress = progress, look_progress
        self._report, self._warn = report, warn

    def published(self) -> Manifest | None:
        """The manifest if the data set is complete; then removes its work folder.

        Raises:
          UserError: it is of another config.
        """
        work = self._work
        work.finish_publishing()
        if work.dataset.is_dir() or not (work.out / MANIFEST_FILE).is_file():
            return None
        manifest = shards.read_manifest(work.out)
        check_creation(manifest.creation, self._config, work)
        with contextlib.suppress(FileNotFoundError):  # nothing is left, or no more
            self._remove_work(Plan.read(work))
        return manifest

    def open_source(self) -> None:
        """Opens the source, and tells what it has to say."""
        for note in getattr(self.tasks.source, "notes", ()):
            self._warn(note)

    def make_plan(self) -> bool:
        """Makes the plan, unless it is there; returns whether it was made now."""
        if (self._work.plan / PLAN_FILE).is_file():
            return False
        make_plan(self._config, self.tasks.source, self._work, look_at=self._look_at)
        return True

    def encode(self, numbers: Sequence[int]) -> None:
        """Encodes shards of the plan."""
        tally = _Tally(self.tasks.plan, self._work, numbers, self._progress)
        self._do(
            [{"shard": number} for number in numbers],
            progress=tally.add,
            describe=lambda place: f"shard {numbers[place]}",
        )

    def finish(self, numbers: Sequence[int]) -> Manifest:
        """Encodes what is left of the plan, and makes the data set of it.

        Raises:
          UserError: files change again and again after they were written.
        """
        plan, work = self.tasks.plan, self._work
        self.encode(numbers)
        for _ in range(MOST_ROUNDS):
            changed = merge.find_changed(plan, work)
            if not changed:
                break
            named = ", ".join(map(str, changed[:5])) + ", ..." * (len(changed) > 5)
            self._report(
                f"shard {named} of {work.shards} changed after it was written; it is "
                "encoded again. See whether the disk is broken."
            )
            self.encode(changed)
        else:
            raise UserError(
                f"shards must stay as they were written, but {named} of {work.shards} "
                f"changed {MOST_ROUNDS} times; see whether the disk is broken, and "
                "run the same command again."
            )
        max_broken = self._config.max_broken
        manifest = merge.merge(plan, work, max_broken=max_broken, warn=self._warn)
        self._remove_work(plan)
        return manifest

    def _remove_work(self, plan: Plan) -> None:
        self._work.remove(merge.files_of(plan, self._work))

    def _look_at(self, indices: Sequence[int]) -> Iterator[tuple[Look, int]]:
        """Looks at pictures, those that no process has looked at yet."""
        source, work = self.tasks.source, self._work
        parts = looks.make_parts(self._config, source, indices, work.looks)
        missing = [part for part in parts if not part.file.is_file()]
        done = len(indices) - sum(len(part.indices) for part in missing)

        def add(num_pictures: int) -> None:
            """Counts pictures, and reports it."""
            nonlocal done
            done += num_pictures
            if self._look_progress:
                self._look_progress(done, len(indices))

        self._do(
            [{"look": part.indices, "file": str(part.file)} for part in missing],
            progress=add,
            describe=lambda place: f"pictures from {missing[place].indices[0]} on",
        )
        for part in parts:
            yield from looks.read_part(part)

    def _do(
        self,
        given: Sequence[Mapping[str, Any]],
        *,
        progress: Callable[[int], None],
        describe: Callable[[int], str],
    ) -> None:
        """Does tasks, by workers or here."""
        num_workers = self._num_workers
        if num_workers is None:
            num_workers = suitable_workers(self._config, num_tasks=len(given))
        progress(0)
        do_tasks(
            self.tasks,
            given,
            num_workers=num_workers,
            progress=progress,
            describe=describe,
            warn=self._report,
        )


class _Tally:
    """Counts the finished examples of a plan, whichever process encoded them.

    Args:
      plan: of which shards are encoded.
      work: where others may encode further ones.
      numbers: of the shards that are counted here.
      progress: told the sum.
    """

    def __init__(
        self,
        plan: Plan,
        work: WorkFolder,
        numbers: Sequence[int],
        progress: Progress | None,
    ):
        self._plan, self._work, self._progress = plan, work, progress
        self._others = sorted(set(range(len(plan.shards))).difference(numbers))
        self._own = self._of_others = 0
        self._looked_at = -math.inf

    def add(self, num_examples: int) -> None:
        """Counts examples that were encoded here, and reports all."""
        self._own += num_examples
        if self._progress is None:
            return
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._looked_at = time.monotonic()
            missing = set(merge.unfinished(self._plan, self._work))
            self._of_others = sum(
                len(self._plan.shards[n]) for n in self._others if n not in missing
            )
        self._progress(self._own + self._of_others, self._plan.num_records)


def _config_of(work: WorkFolder) -> EncodeConfig:
    """The config of the plan of a folder, or of the data set that it became."""
    if (work.plan / PLAN_FILE).is_file():
        return Plan.read(work).config
    return schema.build(EncodeConfig, shards.read_manifest(work.out).creation)
