# SPDX-License-Identifier: Apache-2.0
"""Turns finished shards into a data set: verifies, names, describes and publishes it.

Every step may be cut short and done again. Shards move from where tasks put them to
where TFDS looks for them once all are verified.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rfjax import disk, whole_files
from rfjax.data import shards
from rfjax.data.encode.describe import with_shapes
from rfjax.data.encode.looks import looks_files
from rfjax.data.encode.notes import Broken, Notes, check_broken
from rfjax.data.encode.plan import PLAN_FILE, RECORDS_FILE, REPORT_FILE, Plan
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.filters import with_notes
from rfjax.data.filters.pictures import BROKEN
from rfjax.data.manifest import Manifest, StoredFile
from rfjax.data.order import note_on_small_buckets
from rfjax.errors import UserError, needing_room

CREDITS_FILE = "credits.csv"
BROKEN_FILE = "broken.csv"

_NUM_THREADS = 4  # that compute checksums; they wait for the disk most of the time


def unfinished(plan: Plan, work: WorkFolder) -> list[int]:
    """Numbers of the shards that are still to be encoded."""
    done = set(os.listdir(work.shards)) if work.shards.is_dir() else ()
    numbers = range(len(plan.shards))
    return [n for n in numbers if work.notes_file(n).name not in done]


def find_changed(plan: Plan, work: WorkFolder) -> list[int]:
    """Numbers of the shards whose files are not those that their tasks wrote."""
    notes, damaged = [], []
    for number in range(len(plan.shards)):
        try:
            notes.append(_brief(work, number))
        except (UserError, FileNotFoundError):
            damaged.append(number)
    if damaged:
        return damaged
    files = _name_files(plan, work, notes, _as_encoded(plan, notes))

    def is_changed(number: int) -> bool:
        """Whether a file is missing, or has another size or checksum."""
        path = work.shard_file(number)
        if not path.exists() and files[number] is not None:
            path = files[number]  # an earlier merge has moved it
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == notes[number].num_bytes:
                return shards.sha256_of(path) != notes[number].sha256
        return True

    pool = ThreadPoolExecutor(_NUM_THREADS)
    try:
        changed = list(pool.map(is_changed, range(len(plan.shards))))
    finally:
        pool.shutdown(cancel_futures=True)
    return [number for number, each in enumerate(changed) if each]


def merge(
    plan: Plan, work: WorkFolder, *, max_broken: float, warn: Callable[[str], None]
) -> Manifest:
    """Makes the data set of verified shards, and gives it its name.

    Args:
      plan: whose shards are all done.
      work: where they are.
      max_broken: share of the records that may be broken.
      warn: told what the user has to know, a sentence at a time.

    Raises:
      UserError: more records are broken, or a split holds none.
      StorageError: the disk is full, limited or broken.
    """
    notes = [_brief(work, number) for number in range(len(plan.shards))]
    total = Notes(broken=list(plan.broken))
    for each in notes:
        total.merge(each)
    planned = plan.num_records + len(plan.broken)
    check_broken(total.broken, of=planned, max_broken=max_broken)
    manifest = _as_encoded(plan, notes)
    shards.check_splits(manifest)
    creation = {**manifest.creation, "max_broken": max_broken}
    with needing_room(work.out.name, work.path):
        files = _move_shards(plan, work, notes, manifest)
        _copy_from_plan(plan, work)
        licences = _write_credits(plan, work)
        _write_broken(total.broken, work.dataset / BROKEN_FILE)
        _complete_report(plan, total, work)
        manifest = shards.finish_dataset(
            work.dataset,
            dataclasses.replace(manifest, licences=licences, creation=creation),
            files,
        )
        disk.sync_tree(work.dataset)
        work.publish()
    small_buckets = note_on_small_buckets(manifest)
    for sentence in (_removed(plan), *total.sentences(), small_buckets):
        if sentence:
            warn(sentence)
    return manifest


def _removed(plan: Plan) -> str:
    """What the filters left out, broken pictures apart; empty if it is nothing."""
    counts = {name: n for name, n in plan.removed.items() if name != BROKEN}
    if not counts:
        return ""
    reasons = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return (
        f"filters left out {sum(counts.values()):,} of {plan.num_entries:,} records "
        f"({reasons}); {REPORT_FILE} shows them."
    )


def files_of(plan: Plan, work: WorkFolder) -> Iterator[Path]:
    """What is left in a work folder once its data set is published."""
    for number in range(len(plan.shards)):
        yield work.notes_file(number)
        yield work.shard_file(number)  # written again by a task that came late
    yield from looks_files(work.looks)
    yield from (work.plan / n for n in (*plan.files, RECORDS_FILE, PLAN_FILE))


def _brief(work: WorkFolder, number: int) -> Notes:
    """The notes of a shard without what grows with its records."""
    return dataclasses.replace(Notes.read(work.notes_file(number)), credits=[])


def _as_encoded(plan: Plan, notes: Sequence[Notes]) -> Manifest:
    """The manifest of the records that could be encoded."""
    counts: collections.Counter[str] = collections.Counter()
    for shard, each in zip(plan.shards, notes, strict=True):
        counts[shard.split] += each.num_records
        counts[shard.shape] += each.num_records
    latent = plan.manifest.latent
    shapes = [shape for shape in latent.shapes if counts[shape]] or [latent.shape]
    return dataclasses.replace(
        plan.manifest,
        splits={split: counts[split] for split in plan.manifest.splits},
        latent=with_shapes(latent, shapes),
    )


def _name_files(
    plan: Plan, work: WorkFolder, notes: Sequence[Notes], manifest: Manifest
) -> list[Path | None]:
    """Where TFDS looks for each shard; None: it has no record, so there is no file."""
    groups: dict[tuple, list[int]] = {}
    for number, shard in enumerate(plan.shards):
        if notes[number].num_records:
            groups.setdefault((shard.split, shard.shape), []).append(number)
    files: list[Path | None] = [None] * len(plan.shards)
    for (split, shape), numbers in groups.items():
        for place, number in enumerate(numbers):
            files[number] = shards.shard_file(
                work.dataset,
                manifest,
                shape,
                split=split,
                number=place,
                of=len(numbers),
            )
    return files


def _move_shards(
    plan: Plan, work: WorkFolder, notes: Sequence[Notes], manifest: Manifest
) -> list[StoredFile]:
    """Moves shards to where TFDS looks for them, and describes them."""
    files = []
    for number, path in enumerate(_name_files(plan, work, notes, manifest)):
        if path is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # moved by an earlier merge
            os.replace(work.shard_file(number), path)
        shard = plan.shards[number]
        files.append(
            StoredFile(
                path=path.relative_to(work.dataset).as_posix(),
                num_bytes=notes[number].num_bytes,
                sha256=notes[number].sha256,
                split=shard.split,
                num_records=notes[number].num_records,
                bucket=shard.shape[:2] if manifest.latent.buckets else None,
            )
        )
    return files


def _copy_from_plan(plan: Plan, work: WorkFolder) -> None:
    """Copies what the plan holds for the data set, such as the codec."""
    for name in plan.files:
        with whole_files.replacing(work.dataset / name) as partial:
            shutil.copyfile(work.plan / name, partial)


def _write_credits(plan: Plan, work: WorkFolder) -> dict[str, int]:
    """Writes whose each record is; returns licence -> records under it."""
    licences: collections.Counter[str] = collections.Counter()

    def rows() -> Iterator[tuple[str, ...]]:
        """Of each record, in order; counts its licence."""
        for number, shard in enumerate(plan.shards):
            for each in Notes.read(work.notes_file(number)).credits:
                licences[each.licence] += 1
                yield each.key, shard.split, each.licence, each.attribution

    header = ("key", "split", "licence", "attribution")
    _write_table(work.dataset / CREDITS_FILE, header, rows())
    return {name: count for name, count in sorted(licences.items()) if name}


def _complete_report(plan: Plan, total: Notes, work: WorkFolder) -> None:
    """Adds what was found while encoding to the page of the plan."""
    page = (work.plan / REPORT_FILE).read_text(encoding="utf-8")
    found = total.broken[len(plan.broken) :]
    broken = [(each.key, each.reason) for each in found]
    page = with_notes(page, total.sentences(), broken)
    whole_files.write_text(work.dataset / REPORT_FILE, page)


def _write_broken(broken: Sequence[Broken], path: Path) -> None:
    """Writes which records were left out and why, if any were."""
    if broken:
        rows = ((each.key, each.reason) for each in broken)
        _write_table(path, ("key", "reason"), rows)


def _write_table(
    path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Writes a CSV file, which appears whole."""
    with whole_files.replacing(path) as partial:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
