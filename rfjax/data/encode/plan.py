# SPDX-License-Identifier: Apache-2.0
"""Which record of a source goes into which shard: decided once, for all who take part.

    OUT.encoding/plan/plan.json           the manifest to be, and the shards
    OUT.encoding/plan/records.npy         number and digests of each record, in order
    OUT.encoding/plan/codec.npz           the codec, fitted to the training pictures
    OUT.encoding/plan/empty_caption.npz   encoded once
    OUT.encoding/plan/report.html         which records were left out, and why

Every process compares what it has with the plan: config, encoders and records must be
those that the plan was made of.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rfjax import schema, whole_files
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.notes import Broken
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.manifest import EncoderSpec, Manifest
from rfjax.data.sources import Entry, Source
from rfjax.errors import UserError

VERSION = 1
PLAN_FILE = "plan.json"
RECORDS_FILE = "records.npy"
REPORT_FILE = "report.html"

# Number in the source; digests of its entry, and of its picture if that was looked at.
RECORD = np.dtype([("index", "<i8"), ("entry", "<u8"), ("picture", "<u8")])
NOT_LOOKED_AT = 0  # as the digest of a picture


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """Records that go into one file.

    Attributes:
      split: of all of them.
      shape: (H, W, C) of their latents.
      start: their place in the plan's records.
      stop: end of that.
    """

    split: str
    shape: tuple[int, int, int]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be encoded.

    Attributes:
      manifest: of the data set, if no record turns out to be broken; without files.
      shards: in the order of the records.
      source: digest of all entries of the source.
      num_entries: of the source.
      broken: records whose pictures were found broken already.
      files: names of what lies beside it and goes into the data set.
      removed: why filters left out records -> how many.
    """

    manifest: Manifest
    shards: tuple[PlannedShard, ...]
    source: str
    num_entries: int
    files: tuple[str, ...]
    broken: tuple[Broken, ...] = ()
    removed: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_records(self) -> int:
        """Records that go into shards."""
        return sum(map(len, self.shards))

    @property
    def config(self) -> EncodeConfig:
        """The options it was made with."""
        return schema.build(EncodeConfig, self.manifest.creation)

    def write(self, folder: Path, records: np.ndarray) -> None:
        """Writes plan and records, [R] `RECORD`, into a folder."""
        np.save(folder / RECORDS_FILE, records)
        fields = {
            "version": VERSION,
            "manifest": json.loads(self.manifest.to_json()),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
            "source": self.source,
            "num_entries": self.num_entries,
            "files": self.files,
            "broken": [dataclasses.asdict(each) for each in self.broken],
            "removed": dict(self.removed),
        }
        whole_files.write_json(folder / PLAN_FILE, fields)

    @classmethod
    def read(cls, work: WorkFolder) -> Plan:
        """Reads the plan of a folder.

        Raises:
          FileNotFoundError: it has none.
          UserError: it is of another version, or damaged.
        """
        path = work.plan / PLAN_FILE
        fields = whole_files.read_json(path)
        if fields.pop("version", None) != VERSION:
            raise UserError(
                f"{path} must be of version {VERSION} of plans; finish it with the "
                f"rfjax that made it, or {begin_again(work)}"
            )
        try:
            text = json.dumps(fields.pop("manifest"))
            return schema.build(
                cls, fields | {"manifest": Manifest.from_json(text, path=path)}
            )
        except (KeyError, UserError) as error:
            raise UserError(
                f"{path} must be a plan of this rfjax, got another ({error}); finish "
                f"it with the rfjax that made it, or {begin_again(work)}"
            ) from error

    def check_config(self, config: EncodeConfig, work: WorkFolder) -> None:
        """Raises UserError, naming the first field, if the options differ.

        Fields that may differ when a run resumes may differ here.
        """
        check_creation(self.manifest.creation, config, work)

    def check_encoders(
        self, encoders: tuple[EncoderSpec, ...], work: WorkFolder
    ) -> None:
        """Raises UserError if text encoders are not those of the plan."""
        planned = self.manifest.text.encoders
        for number, (mine, theirs) in enumerate(zip(encoders, planned, strict=True)):
            for field in dataclasses.fields(EncoderSpec):
                got, expected = getattr(mine, field.name), getattr(theirs, field.name)
                if got != expected:
                    raise UserError(
                        f"{field.name} of text_encoders[{number}] must be {expected!r} "
                        f"as in the plan of {work.path}, got {got!r}; use the files "
                        f"that it was made with, or {begin_again(work)}"
                    )

    def check_source(self, source: Source, work: WorkFolder) -> None:
        """Raises UserError unless all entries of a source are as they were."""
        self.check_length(source, work)
        if digest_of_source(source) != self.source:
            raise UserError(
                "source must hold the records that it held when the plan of "
                f"{work.path} was made, got others; restore them, or "
                f"{begin_again(work)}"
            )

    def check_length(self, source: Source, work: WorkFolder) -> None:
        """Raises UserError unless a source has as many records as it had."""
        if len(source) != self.num_entries:
            raise UserError(
                f"source must hold {self.num_entries:,} records as in the plan of "
                f"{work.path}, got {len(source):,}; restore them, or "
                f"{begin_again(work)}"
            )


def read_records(work: WorkFolder, shard: PlannedShard) -> np.ndarray:
    """The records of a shard: [N] `RECORD`."""
    records = np.load(work.plan / RECORDS_FILE, mmap_mode="r")
    return np.array(records[shard.start : shard.stop])


def check_creation(
    creation: Mapping[str, Any], config: EncodeConfig, work: WorkFolder
) -> None:
    """Raises UserError, naming the first field, if options differ.

    Args:
      creation: options that a data set is made with.
      config: those that are given now; fields that may change may differ.
      work: of the data set.
    """
    given = json.loads(json.dumps(schema.to_dict(config)))
    for name, old, new in _differences(creation, given):
        if name not in schema.changeable_fields(config):
            raise UserError(
                f"{name} must be {old!r}, with which {work.out} was begun, got "
                f"{new!r}; name another --out, or {begin_again(work)}"
            )


def begin_again(work: WorkFolder) -> str:
    """The remedy for an encoding that nobody can finish."""
    return f"remove {work.path} to begin again."


def digest_of_entry(entry: Entry) -> int:
    """64 bits that tell an entry from what it becomes if its source changes."""
    fields = dataclasses.asdict(entry)
    text = json.dumps(fields, sort_keys=True, default=str, ensure_ascii=False)
    return xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"))


def digest_of_picture(image: np.ndarray) -> int:
    """64 bits that tell a picture from another; never `NOT_LOOKED_AT`."""
    digest = xxhash.xxh3_64(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.intdigest() or 1


def digest_of_size(size: tuple[int, int]) -> int:
    """The same of a picture of which no more than (height, width) was looked at."""
    return xxhash.xxh3_64_intdigest(f"size {size[0]} {size[1]}".encode()) or 1


def digest_of_source(source: Source) -> str:
    """Digest of all entries of a source."""
    digest = xxhash.xxh3_128(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(digest_of_entry(source.entry(index)).to_bytes(8, "little"))
    return digest.hexdigest()


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, old, new) of each value that differs in two trees of plain values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        prefix = f"{name}." if name else ""
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{prefix}{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{name}[{number}]")
    elif old != new:
        yield name, old, new
