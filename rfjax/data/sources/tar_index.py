# SPDX-License-Identifier: Apache-2.0
"""Where in a tar each file of a sample is, so that samples are read at random.

All headers of a tar are read once; the result is an Arrow file in ~/.cache/rfjax/tars,
which is mapped into memory from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

from rfjax import whole_files
from rfjax.errors import UserError
from rfjax.packages import import_package

_VERSION = 1  # of the files in the cache


def read_index(path: Path) -> Any:
    """The samples of a tar, in its order.

    Args:
      path: of a tar that is not compressed.

    Returns:
      An Arrow table with a row for each sample: `name` (bytes) and, for each of its
      files, `suffixes` (lower case, without the first dot), `offsets` and `sizes`.

    Raises:
      UserError: the file is no whole tar.
    """
    pyarrow = import_package("pyarrow", use="tars")
    place = path.stat()
    what = f"{_VERSION} {os.path.abspath(path)} {place.st_size} {place.st_mtime_ns}"
    name = hashlib.sha256(os.fsencode(what)).hexdigest()[:32]
    with contextlib.suppress(OSError, RuntimeError, pyarrow.ArrowException):
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cached = Path(home) / "rfjax" / "tars" / f"{name}.arrow"
        if not cached.is_file():
            table = _scan(path)
            cached.parent.mkdir(parents=True, exist_ok=True)
            with (
                whole_files.replacing(cached) as partial,
                pyarrow.ipc.new_file(str(partial), table.schema) as writer,
            ):
                writer.write_table(table)
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(cached))).read_all()
    return _scan(path)  # there is no home, or no room in it


def _scan(path: Path) -> Any:
    """Reads all headers of a tar."""
    import pyarrow

    samples: dict[bytes, list[tuple[str, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # it keeps all that it has seen
                split = _split(member.name)
                if member.isreg() and split is not None:
                    name, suffix = split
                    place = (suffix, member.offset_data, member.size)
                    samples.setdefault(os.fsencode(name), []).append(place)
    except (tarfile.TarError, EOFError) as error:
        with path.open("rb") as file:
            magic = file.read(6)
        compressed = magic.startswith(
            (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f")
        )
        reason = "a compressed one" if compressed else str(error)
        remedy = "unpack it once" if compressed else "copy it again, or leave it out"
        raise UserError(
            f"{path} must be a whole tar, got {reason}; {remedy}."
        ) from error
    columns = {
        "name": pyarrow.array(list(samples), pyarrow.binary()),
        "suffixes": pyarrow.array(
            [[suffix for suffix, _, _ in files] for files in samples.values()],
            pyarrow.list_(pyarrow.string()),
        ),
        "offsets": pyarrow.array(
            [[offset for _, offset, _ in files] for files in samples.values()],
            pyarrow.list_(pyarrow.int64()),
        ),
        "sizes": pyarrow.array(
            [[size for _, _, size in files] for files in samples.values()],
            pyarrow.list_(pyarrow.int64()),
        ),
    }
    return pyarrow.table(columns)


def _split(member: str) -> tuple[str, str] | None:
    """A file's sample and its ending, split at the first dot, as WebDataset does.

    None for what belongs to no sample: hidden files, and names without a dot.
    """
    folder, _, file = member.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not (stem and dot and suffix) or "__MACOSX" in folder.split("/"):
        return None
    return f"{folder}/{stem}" if folder else stem, suffix.lower()
