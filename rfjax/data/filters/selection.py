# SPDX-License-Identifier: Apache-2.0
"""The filters in their order: which records stay, and why the others go."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from rfjax.data.filters import pictures
from rfjax.data.filters.alignment import difference
from rfjax.data.filters.config import FilterConfig
from rfjax.data.filters.descriptors import normalise
from rfjax.data.filters.duplicates import find_repeated
from rfjax.data.filters.entries import EntryRules
from rfjax.data.sources.base import Source
from rfjax.errors import UserError

EXACT_DUPLICATE = "exact duplicate"
NEAR_DUPLICATE = "near-duplicate"


@dataclasses.dataclass(frozen=True)
class Removed:
    """A record that is left out.

    Attributes:
      index: its number in the source.
      key: its name in the source.
      reason: the first rule that it broke, the same words for all such records.
      detail: how, in words; "" where the reason says all.
      duplicate_of: number of the record that stays in its place, of a duplicate.
    """

    index: int
    key: str
    reason: str
    detail: str = ""
    duplicate_of: int | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which records of a source stay.

    Attributes:
      num_records: of the source.
      kept: [K] int64, their numbers, ascending.
      removed: the others: those that metadata decides, then size, then duplicates.
      sizes: [K, 2] int32, height and width of the pictures that stay, in pixels; None:
        no picture was read.
    """

    num_records: int
    kept: np.ndarray
    removed: tuple[Removed, ...]
    sizes: np.ndarray | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Reason -> records that went for it; with those kept they are all records."""
        return dict(collections.Counter(each.reason for each in self.removed))


def select(
    source: Source,
    config: FilterConfig,
    *,
    read_pictures: bool = False,
    look_at: Callable[[Sequence[int]], Iterable[pictures.Look]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Applies the filters to all records of a source.

    Args:
      source: of pictures and captions.
      config: the rules.
      read_pictures: whether pictures are read even if no rule asks for it: for their
        sizes, and to find the broken ones.
      look_at: `pictures.look` at each of some records, in their order, e.g. by several
        processes; None: one after the other, here.
      progress: called with (pictures read, pictures to read).

    Returns:
      The same for the same records and rules, whichever process reads the pictures.

    Raises:
      UserError: no record has what a rule asks for, or every record is removed, and not
        all of them for being broken.
      MissingPackageError: near-duplicates are to be found, and faiss is not installed.
    """
    if config.reads_pictures and not hasattr(source, "picture"):
        raise UserError(
            "filters must not look at pixels of a source that holds latents, got "
            f"{', '.join(config.pixel_rules)}; leave them out."
        )
    kept, removed = _by_entries(source, config)
    seen, sizes = None, None
    if read_pictures or config.reads_pictures:
        if look_at is None:
            look_at = functools.partial(_look_here, source, config)
        kept, seen = _by_pictures(
            source, config, kept, removed, _reported(look_at(kept), len(kept), progress)
        )
        sizes = np.array([each.size for each in seen], np.int32).reshape(-1, 2)
    if config.near_duplicates:
        stays = _by_likeness(source, config, kept, removed, seen)
        kept = list(itertools.compress(kept, stays))
        sizes = None if sizes is None else sizes[stays]
    selection = Selection(len(source), np.array(kept, np.int64), tuple(removed), sizes)
    if not kept and any(each.reason != pictures.BROKEN for each in removed):
        reasons = ", ".join(f"{n} {reason}" for reason, n in selection.counts.items())
        raise UserError(
            f"filters must leave a record, got all {len(source)} removed ({reasons}); "
            "loosen them."
        )
    return selection


def _by_entries(
    source: Source, config: FilterConfig
) -> tuple[list[int], list[Removed]]:
    """The records that metadata leaves, and those that go."""
    rules = EntryRules(config)
    kept, removed = [], []
    for index in range(len(source)):
        entry = source.entry(index)
        if broken := rules.broken_by(entry):
            removed.append(Removed(index, entry.key, *broken))
        else:
            kept.append(index)
    rules.check_columns()
    return kept, removed


def _by_pictures(
    source: Source,
    config: FilterConfig,
    indices: Sequence[int],
    removed: list[Removed],
    looks: Iterable[pictures.Look],
) -> tuple[list[int], list[pictures.Look]]:
    """The records that their pictures leave, and how these look; adds to `removed`."""
    kept, seen, first, repeated = [], [], {}, []
    for index, each in zip(indices, looks, strict=True):
        broken = pictures.broken_by(each, config)
        same = None
        if broken is None and config.exact_duplicates:
            same = first.setdefault(each.digest, index)
        if broken is not None:
            removed.append(Removed(index, source.entry(index).key, *broken))
        elif same not in (None, index):
            key = source.entry(index).key
            repeated.append(Removed(index, key, EXACT_DUPLICATE, duplicate_of=same))
        else:
            kept.append(index)
            seen.append(each)
    removed += repeated
    return kept, seen


def _by_likeness(
    source: Source,
    config: FilterConfig,
    indices: Sequence[int],
    removed: list[Removed],
    seen: Sequence[pictures.Look] | None,
) -> np.ndarray:
    """Which records repeat none before them; adds the others to `removed`."""
    if not indices:
        return np.zeros(0, bool)
    if config.embedding_column is not None:
        column = config.embedding_column
        vectors = [normalise(source.entry(index).columns[column]) for index in indices]
        repeated = find_repeated(np.stack(vectors), config.similarity)
        details = [f"similarity {each:.3f}" for each in repeated.similarity]
    else:
        differences = {}

        def is_same(row: int, earlier: int) -> bool:
            """Whether two pictures hardly differ when one is laid on the other."""
            pair = seen[earlier].thumbnail, seen[row].thumbnail
            differences[row] = difference(*pair, enough=config.max_difference)
            return differences[row] <= config.max_difference

        repeated = find_repeated(
            np.stack([each.descriptor for each in seen]),
            config.similarity,
            is_same=is_same,
        )
        details = [
            f"difference {differences.get(row, 0):.3f}" for row in range(len(seen))
        ]
    for row in np.flatnonzero(repeated.of >= 0):
        index, kept = indices[row], indices[repeated.of[row]]
        key = source.entry(index).key
        removed.append(Removed(index, key, NEAR_DUPLICATE, details[row], kept))
    return repeated.of < 0


def _look_here(
    source: Source, config: FilterConfig, indices: Sequence[int]
) -> Iterator[pictures.Look]:
    return (pictures.look(source, index, config) for index in indices)


def _reported(
    looks: Iterable[pictures.Look],
    total: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[pictures.Look]:
    for done, each in enumerate(looks, start=1):
        yield each
        if progress is not None:
            progress(done, total)
