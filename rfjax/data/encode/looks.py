# SPDX-License-Identifier: Apache-2.0
"""Looks at pictures before there is a plan, in parts that any process can do.

Filters may ask for what a picture looks like, and buckets for its size. What is found
is kept, part by part, so that a process that is killed costs no more than a part.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xxhash

from rfjax import schema, whole_files
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.plan import (
    NOT_LOOKED_AT,
    digest_of_entry,
    digest_of_picture,
    digest_of_size,
)
from rfjax.data.filters import pictures
from rfjax.data.sources import Source
from rfjax.errors import UserError

PART = 256  # pictures
_FILE = re.compile(r"[0-9a-f]{16}\.npz")


@dataclasses.dataclass(frozen=True)
class LooksPart:
    """Some records whose pictures are looked at together.

    Attributes:
      indices: their numbers in the source.
      file: where what is found is kept.
    """

    indices: tuple[int, ...]
    file: Path


def make_parts(
    config: EncodeConfig, source: Source, indices: Sequence[int], folder: Path
) -> list[LooksPart]:
    """The parts of some records; the same source and filters give the same files."""
    fields = schema.to_dict(config)
    settings = json.dumps([fields["source"], fields["filters"]], default=str)
    parts = []
    for start in range(0, len(indices), PART):
        own = tuple(int(index) for index in indices[start : start + PART])
        digest = xxhash.xxh3_64(settings.encode())
        for index in own:
            digest.update(b"%d %d;" % (index, digest_of_entry(source.entry(index))))
        parts.append(LooksPart(own, folder / f"{digest.hexdigest()}.npz"))
    return parts


def write_part(
    config: EncodeConfig,
    source: Source,
    part: LooksPart,
    *,
    progress: Callable[[int], None],
) -> None:
    """Looks at the pictures of a part, and keeps what is found."""
    watched = _Watched(source)
    looks = []
    for index in part.indices:
        looks.append(pictures.look(watched, index, config.filters))
        progress(len(looks))
    compared = [look for look in looks if look.descriptor is not None]
    with whole_files.replacing(part.file) as partial, partial.open("wb") as file:
        np.savez(
            file,
            sizes=np.array([look.size or (0, 0) for look in looks], np.int32),
            broken=np.array([look.broken for look in looks]),
            digests=np.array([look.digest.hex() for look in looks]),
            thumbnails=np.array([look.thumbnail for look in compared], np.uint8),
            descriptors=np.array([look.descriptor for look in compared], np.int16),
            pictures=np.array(
                [watched.digests.get(i, NOT_LOOKED_AT) for i in part.indices], np.uint64
            ),
        )


def read_part(part: LooksPart) -> Iterator[tuple[pictures.Look, int]]:
    """Yields each look of a part, and the digest of the picture.

    Raises:
      FileNotFoundError: it was not written yet.
      UserError: it is damaged.
    """
    try:
        with np.load(part.file) as file:
            arrays = dict(file)
        compared = iter(zip(arrays["thumbnails"], arrays["descriptors"], strict=True))
        for row in range(len(part.indices)):
            broken = str(arrays["broken"][row])
            is_compared = len(arrays["descriptors"]) and not broken
            small, descriptor = next(compared) if is_compared else (None, None)
            yield (
                pictures.Look(
                    None if broken else tuple(map(int, arrays["sizes"][row])),
                    broken=broken,
                    digest=bytes.fromhex(str(arrays["digests"][row])),
                    thumbnail=small,
                    descriptor=descriptor,
                ),
                int(arrays["pictures"][row]),
            )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(
            f"{part.file} must hold what pictures look like, got something else "
            f"({error}); remove it, and run the same command again."
        ) from error


def looks_files(folder: Path) -> list[Path]:
    """The files of all parts in a folder, of whatever filters."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _FILE.fullmatch(path.name)]


class _Watched:
    """A source, of which the digests of the pictures that are looked at are kept."""

    def __init__(self, source: Source):
        self._source = source
        self.digests: dict[int, int] = {}
        if hasattr(source, "size"):
            self.size = self._size

    def picture(self, index: int) -> np.ndarray:
        """As of the source."""
        image = self._source.picture(index)
        self.digests[index] = digest_of_picture(image)
        return image

    def _size(self, index: int) -> tuple[int, int]:
        size = self._source.size(index)
        self.digests[index] = digest_of_size(size)
        return size
