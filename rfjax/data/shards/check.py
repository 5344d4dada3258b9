# SPDX-License-Identifier: Apache-2.0
"""Whether the files of a data set are those that its manifest names."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from rfjax.data.manifest import MANIFEST_FILE, Manifest, StoredFile
from rfjax.data.shards.layout import read_manifest
from rfjax.errors import MissingFileError, UserError

# Below this size every checksum is computed before training starts.
FULL_CHECK_BYTES = 2 * 1024**3

_REMEDY = "copy it again, or make the data set again with `rfjax encode`."


def check_shards(root: str | os.PathLike, *, full: bool | None = None) -> Manifest:
    """Checks every file named in the manifest and returns the manifest.

    Sizes are always compared; contents by SHA-256 when `full`, or, when `full` is
    None, if the data set is smaller than `FULL_CHECK_BYTES`. Of a larger one only the
    files beside the shards are then read whole: a shard has its own checksum for
    every record, which is verified when the record is read.

    Raises:
      MissingFileError: the folder, the manifest or a file is missing.
      UserError: a file is truncated or altered, or the manifest is inconsistent.
    """
    root = Path(root)
    manifest = read_manifest(root)
    small = sum(file.num_bytes for file in manifest.files) < FULL_CHECK_BYTES
    for file in manifest.files:
        is_read = full or (full is None and (small or not file.split))
        check_file(root, file, contents=is_read)
    _check_counts(root, manifest)
    return manifest


def find_damage(root: str | os.PathLike, manifest: Manifest) -> list[str]:
    """What is wrong with the files that a manifest names, one sentence each."""
    checks = [lambda: _check_counts(root, manifest)]
    checks += [
        functools.partial(check_file, Path(root), file, contents=True)
        for file in manifest.files
    ]
    problems = []
    for check in checks:
        try:
            check()
        except (MissingFileError, UserError) as error:
            problems.append(str(error))
    return problems


def _check_counts(root: str | os.PathLike, manifest: Manifest) -> None:
    """Raises unless the shards of a split hold as many records as it has.

    Each must be of one of the buckets, too.
    """
    buckets = manifest.latent.buckets or (None,)
    for file in manifest.files:
        if file.split and file.bucket not in buckets:
            raise UserError(
                f"bucket of {file.path} in {root} must be one of latent.buckets "
                f"{list(manifest.latent.buckets)}, got {file.bucket}; {_REMEDY}"
            )
    for split, num_records in manifest.splits.items():
        stored = sum(f.num_records for f in manifest.files if f.split == split)
        if stored != num_records:
            raise UserError(
                f"split {split} of {root} must hold {num_records} records, its shards "
                f"hold {stored}; {_REMEDY}"
            )


def check_file(root: Path, file: StoredFile, *, contents: bool) -> None:
    """Raises unless a file is there, as long as it was, and if asked with its bytes."""
    path = root / file.path
    if not path.is_file():
        raise MissingFileError(
            f"data file {path} is named in {MANIFEST_FILE} but missing; {_REMEDY}"
        )
    num_bytes = path.stat().st_size
    if num_bytes != file.num_bytes:
        raise UserError(
            f"data file {path} must have {file.num_bytes} bytes, has {num_bytes} "
            f"(truncated or overwritten); {_REMEDY}"
        )
    if contents and sha256_of(path) != file.sha256:
        raise UserError(
            f"data file {path} does not match its SHA-256 checksum in "
            f"{MANIFEST_FILE}; {_REMEDY}"
        )


def verified(root: str | os.PathLike, name: str) -> Path:
    """The path of a file beside the shards, once its contents are verified."""
    files = {file.path: file for file in read_manifest(root).files}
    if name not in files:
        raise MissingFileError(
            f"{MANIFEST_FILE} of data set {root} must name {name}, and does not; "
            f"{_REMEDY}"
        )
    check_file(Path(root), files[name], contents=True)
    return Path(root) / name


def sha256_of(path: Path) -> str:
    """The SHA-256 checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
