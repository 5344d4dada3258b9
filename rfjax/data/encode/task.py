# SPDX-License-Identifier: Apache-2.0
"""Tasks of an encoding, each of which any process can do, in any order, and again.

What a task writes appears whole, and is the same in every process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.data import shards
from rfjax.data.encode.batches import BatchEncoder, Loaded
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.describe import describe, describe_encoders
from rfjax.data.encode.looks import LooksPart, write_part
from rfjax.data.encode.notes import Broken, Credit, Notes, check_broken
from rfjax.data.encode.plan import (
    NOT_LOOKED_AT,
    Plan,
    PlannedShard,
    begin_again,
    digest_of_entry,
    read_records,
)
from rfjax.data.encode.planning import TrainingImages
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.sources import EncodedSource, Source
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.encoders.images import IMAGE_CODECS
from rfjax.encoders.threads import limited_threads
from rfjax.errors import UserError

Progress = Callable[[int], None]  # called with the examples done in this task


class Tasks:
    """One process of an encoding; what it needs is made when it is first needed.

    Args:
      config: what is encoded, and how.
      work: where.
    """

    def __init__(self, config: EncodeConfig, work: WorkFolder):
        self.config = config
        self.work = work

    @functools.cached_property
    def source(self) -> Source | EncodedSource:
        """The source of the config."""
        return self.config.source.make()

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan, which must be that of the config."""
        plan = Plan.read(self.work)
        plan.check_config(self.config, self.work)
        plan.check_length(self.source, self.work)
        return plan

    @functools.cached_property
    def _batches(self) -> BatchEncoder:
        codec, encoders = None, []
        if not isinstance(self.source, EncodedSource):
            encoders = [config.make() for config in self.config.text_encoders]
            specs = describe_encoders(self.config, encoders)
            self.plan.check_encoders(specs, self.work)
            load = IMAGE_CODECS[self.plan.manifest.latent.codec].load
            codec = load(self.work.plan / shards.CODEC_FILE)
        manifest = self.plan.manifest
        return BatchEncoder(self.config, self.source, manifest, codec, encoders)

    def do(self, task: Mapping[str, Any], *, progress: Progress) -> Any:
        """Does a task that is given as JSON, and returns its result as JSON.

        Args:
          task: {"look": numbers, "file": path}, {"shard": number} or {"time": batches}.
          progress: told how many examples are done.
        """
        if "look" in task:
            part = LooksPart(tuple(task["look"]), Path(task["file"]))
            return self.look(part, progress=progress)
        if "time" in task:
            return self.time(task["time"], progress=progress)
        self.encode(task["shard"], progress=progress)
        return None

    def look(self, part: LooksPart, *, progress: Progress) -> None:
        """Looks at the pictures of some records; see `looks`."""
        write_part(self.config, self.source, part, progress=progress)

    def encode(self, number: int, *, progress: Progress) -> Notes:
        """Encodes a shard of the plan.

        Returns:
          What it holds, as it is written beside it.

        Raises:
          UserError: the source or an encoder is not that of the plan, or more records
            are broken than may be in all shards together.
          StorageError: the disk is full, limited or broken.
        """
        shard, file = self.plan.shards[number], self.work.shard_file(number)
        notes = Notes()
        encode = shards.RecordEncoder(self.plan.manifest, shard.shape)
        with whole_files.replacing(file) as partial:
            with limited_threads(self.config.num_threads):
                records = self._records(shard, notes, progress)
                notes.num_records = shards.write_shard(partial, map(encode, records))
            notes.num_bytes = partial.stat().st_size
            notes.sha256 = shards.sha256_of(partial)
        notes.write(self.work.notes_file(number))
        return notes

    def time(
        self, batches: Sequence[Sequence[int]], *, progress: Progress
    ) -> dict[str, float]:
        """Encodes batches of the source without a plan, and throws them away.

        Args:
          batches: numbers of records; the first batch is not timed.
          progress: called after each.

        Returns:
          "seconds" that the others took, their "examples" and the "bytes" of these.
        """
        encode, batch_encoder, shape = self._without_plan(batches)
        seconds = examples = num_bytes = 0
        for place, batch in enumerate(batches):
            start = time.perf_counter()
            loaded = []
            for index in batch:
                with contextlib.suppress(BrokenPicture):
                    entry = self.source.entry(index)
                    loaded.append(batch_encoder.load(index, entry, shape))
            with limited_threads(self.config.num_threads):
                records = batch_encoder.encode(loaded, Notes()) if loaded else []
            size = sum(len(encode(record)) for record in records)
            if place:
                seconds += time.perf_counter() - start
                examples, num_bytes = examples + len(records), num_bytes + size
            progress(place + 1)
        return {"seconds": seconds, "examples": examples, "bytes": num_bytes}

    def _without_plan(
        self, batches: Sequence[Sequence[int]]
    ) -> tuple[shards.RecordEncoder, BatchEncoder, tuple[int, int, int]]:
        """What encodes square pictures; a codec is fitted to those of the batches."""
        codec, encoders = None, []
        shape = self.config.latent_shapes()[self.config.square]
        if isinstance(self.source, EncodedSource):
            shape = self.source.latent_spec.shape
        else:
            encoders = [config.make() for config in self.config.text_encoders]
            numbers = sorted({index for batch in batches for index in batch})
            images = TrainingImages(self.config, self.source, numbers)
            codec = self.config.codec.make(images)
        manifest = describe(
            self.config, self.source, codec, encoders, splits={}, shapes=[shape]
        )
        batch_encoder = BatchEncoder(
            self.config, self.source, manifest, codec, encoders
        )
        return shards.RecordEncoder(manifest, shape), batch_encoder, shape

    def _records(
        self, shard: PlannedShard, notes: Notes, progress: Progress
    ) -> Iterator[Mapping[str, Any]]:
        """Yields the records of a shard that can be learnt from."""
        done = 0
        for batch in _ahead(self._batches_of(shard)):
            notes.broken += batch.broken
            loaded = list(batch.loaded)
            records = self._batches.encode(loaded, notes) if loaded else []
            for record in records:
                if self._is_sound(record, notes):
                    yield record
            check_broken(
                [*self.plan.broken, *notes.broken],
                of=self.plan.num_records + len(self.plan.broken),
                max_broken=self.config.max_broken,
            )
            done += batch.num_records
            progress(done)

    def _batches_of(self, shard: PlannedShard) -> Iterator[_Batch]:
        """Opens the records of a shard."""
        records = read_records(self.work, shard)
        for start in range(0, len(records), self.config.batch_size):
            planned = records[start : start + self.config.batch_size]
            loaded, broken = [], []
            for index, digest, picture in planned.tolist():
                entry = self.source.entry(index)
                if digest_of_entry(entry) != digest:
                    raise self._changed(entry.key)
                try:
                    opened = self._batches.load(index, entry, shard.shape)
                except BrokenPicture as error:
                    broken.append(Broken(entry.key, str(error)))
                    continue
                if picture not in (NOT_LOOKED_AT, *opened.digests):
                    raise self._changed(entry.key)
                loaded.append(opened)
            yield _Batch(tuple(loaded), tuple(broken), len(planned))

    def _changed(self, key: str) -> UserError:
        """The error about a record that is not as it was when the plan was made."""
        return UserError(
            f"source must hold what it held when the plan of {self.work.path} was "
            f"made, got another record {key!r}; restore it, or "
            f"{begin_again(self.work)}"
        )

    def _is_sound(self, record: Mapping[str, Any], notes: Notes) -> bool:
        """Whether a record can be learnt from; notes why not, or whose it is."""
        facts = json.loads(record["annotation"])["source"]
        problems = shards.problems_of_record(_as_read(record), self.plan.manifest)
        if problems:
            notes.broken.append(Broken(facts["key"], " ".join(problems)))
            return False
        kinds = self.plan.manifest.text.captions or ("caption",)
        for number, kind in enumerate(kinds):
            if not record[kind if number else "caption"].strip():
                notes.empty_captions[kind] = notes.empty_captions.get(kind, 0) + 1
        notes.credits.append(
            Credit(facts["key"], facts["licence"], facts["attribution"])
        )
        return True


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Records that are encoded together.

    Attributes:
      loaded: those that could be opened.
      broken: the others.
      num_records: of both.
    """

    loaded: tuple[Loaded, ...]
    broken: tuple[Broken, ...]
    num_records: int


def _as_read(record: Mapping[str, Any]) -> dict[str, Any]:
    """The features of a record as they will be read."""
    return {
        name: value.encode(errors="surrogatepass") if isinstance(value, str) else value
        for name, value in record.items()
    }


def _ahead(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """Yields what an iterator yields, while a thread makes the next."""
    pool = ThreadPoolExecutor(1)
    try:
        pending = pool.submit(next, batches, None)
        while (batch := pending.result()) is not None:
            pending = pool.submit(next, batches, None)
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
