# SPDX-License-Identifier: Apache-2.0
"""Makes the plan: entries, filters, splits, buckets, shards, codec, in this order."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rfjax import whole_files
from rfjax.data import shards
from rfjax.data.buckets import fit, nearest_bucket
from rfjax.data.encode.batches import BatchEncoder
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.describe import check_encoded, describe
from rfjax.data.encode.notes import Broken, check_broken
from rfjax.data.encode.plan import (
    NOT_LOOKED_AT,
    RECORD,
    REPORT_FILE,
    Plan,
    PlannedShard,
    digest_of_entry,
    digest_of_source,
)
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.data.filters import Selection, report_page, select
from rfjax.data.filters.pictures import BROKEN, Look
from rfjax.data.sources import EncodedSource, Source
from rfjax.data.sources.held_out import is_held_out
from rfjax.data.sources.pictures import BrokenPicture
from rfjax.encoders.images import ImageCodec
from rfjax.encoders.threads import limited_threads
from rfjax.errors import UserError

SPLITS = ("train", "validation")

# Looks at the pictures of some records: the looks, and the digest of each picture.
LookAt = Callable[[Sequence[int]], Iterable[tuple[Look, int]]]


def make_plan(
    config: EncodeConfig,
    source: Source | EncodedSource,
    work: WorkFolder,
    *,
    look_at: LookAt,
) -> Plan:
    """Decides what goes where, and writes it into a folder.

    Raises:
      UserError: filters leave nothing, too many pictures are broken, or a split would
        have no example.
      MissingPackageError: a package of source, codec or text encoder is missing.
    """
    is_encoded = isinstance(source, EncodedSource)
    if is_encoded:
        check_encoded(config)
    text_encoders = [] if is_encoded else [e.make() for e in config.text_encoders]
    selection, pictures = _select(config, source, look_at)
    broken = tuple(
        Broken(each.key, each.detail)
        for each in selection.removed
        if each.reason == BROKEN
    )
    num_seen = len(selection.kept) + len(broken)
    check_broken(broken, of=num_seen, max_broken=config.max_broken)
    planned, records = _deal(config, source, selection, pictures)
    _check_splits(config, planned)
    codec = (
        None if is_encoded else _make_codec(config, source, planned, records["index"])
    )
    manifest = describe(
        config,
        source,
        codec,
        text_encoders,
        splits={
            split: sum(len(shard) for shard in planned if shard.split == split)
            for split in SPLITS
        },
        shapes=list(dict.fromkeys(sorted(shard.shape for shard in planned))),
    )
    batches = BatchEncoder(config, source, manifest, codec, text_encoders)
    with whole_files.new_folder(work.plan) as folder:
        save_codec = source.save_codec if codec is None else codec.save
        save_codec(folder / shards.CODEC_FILE)
        with limited_threads(config.num_threads):
            empty = batches.empty_caption()
        shards.save_empty_caption(folder / shards.EMPTY_CAPTION_FILE, empty)
        report = _report(config, source, selection, planned)
        (folder / REPORT_FILE).write_text(report, encoding="utf-8")
        plan = Plan(
            manifest=manifest,
            shards=tuple(planned),
            source=digest_of_source(source),
            num_entries=len(source),
            files=tuple(sorted(os.listdir(folder))),
            broken=broken,
            removed=selection.counts,
        )
        plan.write(folder, records)
    return plan


def _select(
    config: EncodeConfig, source: Source | EncodedSource, look_at: LookAt
) -> tuple[Selection, dict[int, int]]:
    """Which records stay, and the digests of the pictures that were looked at."""
    digests: dict[int, int] = {}

    def look(indices: Sequence[int]) -> Iterable[Look]:
        """Looks at pictures, and keeps their digests."""
        for index, (seen, digest) in zip(indices, look_at(indices), strict=True):
            digests[int(index)] = digest
            yield seen

    has_buckets = len(config.latent_shapes()) > 1
    selection = select(source, config.filters, read_pictures=has_buckets, look_at=look)
    return selection, digests


def _deal(
    config: EncodeConfig,
    source: Source | EncodedSource,
    selection: Selection,
    pictures: Mapping[int, int],
) -> tuple[list[PlannedShard], np.ndarray]:
    """The shards, and their records in order: [R] `RECORD`.

    Args:
      config: how they are dealt.
      source: of the config.
      selection: of its records.
      pictures: number of a record -> digest of its picture, of those looked at.
    """
    shapes = config.latent_shapes()
    records = np.zeros(len(selection.kept), RECORD)
    dealt: dict[tuple, list[int]] = {}  # places in these
    for place, index in enumerate(map(int, selection.kept)):
        entry = source.entry(index)
        if isinstance(source, EncodedSource):
            shape = source.latent_spec.shape
        elif len(shapes) == 1:
            shape = shapes[config.square]
        else:
            height, width = selection.sizes[place].tolist()
            shape = shapes[nearest_bucket(height, width, tuple(shapes))]
        held_out = is_held_out(entry.captions[0], fraction=config.validation_fraction)
        split = entry.split or ("validation" if held_out else "train")
        picture = pictures.get(index, NOT_LOOKED_AT)
        records[place] = index, digest_of_entry(entry), picture
        dealt.setdefault((SPLITS.index(split), shape), []).append(place)
    planned, start = [], 0
    for split, shape in sorted(dealt):
        count = len(dealt[split, shape])
        for first, last in shards.shard_bounds(count, config.records_per_shard):
            planned.append(
                PlannedShard(SPLITS[split], shape, start + first, start + last)
            )
        start += count
    return planned, records[[place for key in sorted(dealt) for place in dealt[key]]]


def _report(
    config: EncodeConfig,
    source: Source | EncodedSource,
    selection: Selection,
    planned: Sequence[PlannedShard],
) -> str:
    """The page about the records that came in, went and stay."""
    splits, buckets = collections.Counter(), collections.Counter()
    for shard in planned:
        splits[shard.split] += len(shard)
        buckets["{} x {}".format(*shard.shape)] += len(shard)
    return report_page(
        source,
        config.filters,
        selection,
        name=config.name,
        splits=splits,
        buckets=buckets,
    )


def _check_splits(config: EncodeConfig, planned: Sequence[PlannedShard]) -> None:
    """Raises UserError if a split would have no example."""
    for split in SPLITS:
        if not any(shard.split == split for shard in planned):
            raise UserError(
                f"split {split} of data set {config.name} must hold at least 1 "
                "example, got none; ask for more, or change validation_fraction "
                f"{config.validation_fraction:g}."
            )


def _make_codec(
    config: EncodeConfig,
    source: Source,
    planned: Sequence[PlannedShard],
    numbers: np.ndarray,
) -> ImageCodec:
    train = [shard for shard in planned if shard.split == "train"]
    own = [number for shard in train for number in numbers[shard.start : shard.stop]]
    return config.codec.make(TrainingImages(config, source, sorted(own)))


class TrainingImages(Sequence):
    """Pictures of a source in the sizes of buckets, drawn when they are asked for.

    Args:
      config: says the buckets.
      source: of the pictures.
      numbers: theirs in the source.
    """

    def __init__(self, config: EncodeConfig, source: Source, numbers: Sequence[int]):
        self._source, self._numbers = source, numbers
        self._sizes = tuple(config.latent_shapes())

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        """A picture; in the place of one that is broken, the next that is not."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        for place in [*range(index, len(self)), *range(index)]:
            with contextlib.suppress(BrokenPicture):
                picture = self._source.picture(int(self._numbers[place]))
                size = nearest_bucket(*picture.shape[:2], self._sizes)
                return fit(picture, size)[0]
        raise UserError(
            "source must hold a picture that is whole, got none in its training split; "
            "see whether its files are all there."
        )
