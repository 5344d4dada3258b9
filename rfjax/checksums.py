# SPDX-License-Identifier: Apache-2.0
"""The list of checksums of a folder: the state of every file when it was written.

    FOLDER/checksums.json    {"files": {path: [bytes, XXH3]}, "self": XXH3 of "files"}

XXH3 detects every accident, such as a flipped bit or a lost block, at the speed of
memory; it does not protect against deliberate changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from rfjax.errors import UserError

FILE = "checksums.json"

# Path relative to the folder -> [bytes, 128 bits of XXH3 in hexadecimal].
Checksums = dict[str, list]

_NUM_THREADS = 4  # reading in parallel; hashing takes a fraction of the time


def compute(folder: Path, paths: Iterable[Path]) -> Checksums:
    """Size and hash of the files among the paths, by their path within the folder."""

    def entry_of(path: Path) -> tuple[str, list]:
        """Relative path -> [bytes, hash]."""
        return path.relative_to(folder).as_posix(), [path.stat().st_size, _hash(path)]

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return dict(pool.map(entry_of, [path for path in paths if path.is_file()]))


def write(
    folder: Path, checksums: Mapping[str, list], *, part: int | None = None
) -> None:
    """Writes the list of a folder, or one numbered part of it."""
    files = dict(sorted(checksums.items()))
    text = json.dumps({"files": files, "self": _hash_of_list(files)}, indent=1)
    name = FILE if part is None else f"{FILE}.{part}"
    (folder / name).write_text(text, encoding="utf-8")


def join_parts(folder: Path, *, leave_out: Collection[str]) -> None:
    """Writes the list of a folder from its parts, hashing the files in none of them.

    Args:
      folder: holds the files and the parts of the list, which are removed.
      leave_out: paths of files to leave out of the list.
    """
    parts = sorted(folder.glob(f"{FILE}.*"))
    known: Checksums = {}
    for part in parts:
        known |= json.loads(part.read_bytes())["files"]
        part.unlink()
    rest = foreign_files(folder, {*known, *leave_out})
    write(folder, known | compute(folder, rest))


def read(folder: Path) -> Checksums | None:
    """The list of a folder, or None if it has none.

    Raises:
      UserError: the list itself is damaged.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        files = content["files"]
        if content["self"] == _hash_of_list(files):
            return files
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{FILE} does not match its own checksum")


def find_damage(
    folder: Path, checksums: Mapping[str, list], *, share: tuple[int, int] = (0, 1)
) -> list[str]:
    """Describes what is wrong with the files of a list; empty if nothing is.

    Args:
      folder: holds the files.
      checksums: as `read` returns them.
      share: (i, n): check only the i-th of n parts of the files.
    """

    def damage(name: str) -> str | None:
        """What is wrong with one file, None if nothing is."""
        num_bytes, expected = checksums[name]
        path = folder / name
        try:
            if path.stat().st_size != num_bytes:
                return f"{name} has {path.stat().st_size} bytes instead of {num_bytes}"
            if _hash(path) != expected:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        return None

    index, count = share
    # By size, so that every part has its share of the large files.
    names = sorted(checksums, key=lambda name: (checksums[name][0], name))
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return [found for found in pool.map(damage, names[index::count]) if found]


def damage_of(path: Path) -> str | None:
    """Describes what is wrong with a file; None if nothing is, or it is not listed."""
    try:
        known = read(path.parent) or {}
    except ValueError as error:
        return str(error)
    listed = {path.name: known[path.name]} if path.name in known else {}
    return next(iter(find_damage(path.parent, listed)), None)


def foreign_files(folder: Path, checksums: Collection[str]) -> list[Path]:
    """Files in a folder, at any depth, that are not in its list."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and path.relative_to(folder).as_posix() not in checksums
    ]


def _hash(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _hash_of_list(files: Mapping[str, list]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True).encode())


def digest(text: str) -> str:
    """A short name of a text: 12 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
