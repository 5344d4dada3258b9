# SPDX-License-Identifier: Apache-2.0
"""Files that are no safetensors: what each is, and how to come by one that is."""

from __future__ import annotations

import json
from pathlib import Path

from rfjax.errors import MissingFileError, UserError

PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
PICKLE = (
    "is a pickle, which can run code when it is read; weights must be safetensors. "
    "Convert a file you trust in PyTorch: safetensors.torch.save_file(torch.load(path, "
    "weights_only=True), 'weights.safetensors')."
)
GGUF = (
    "is a GGUF file, whose weights are quantised in blocks; weights must be "
    "safetensors. Take the model that it was made from."
)
# First bytes -> what the file is. They are looked at only if it is no safetensors file,
# which may begin with any byte.
BEGINNINGS = {
    b"GGUF": GGUF,
    b"PK\x03\x04": PICKLE,  # a zip archive, as PyTorch writes them since 1.6
    b"\x80": PICKLE,
    b"version https://git-lfs": (
        "is a pointer of Git LFS, which stands for a file that was not downloaded; "
        "run `git lfs pull` in its repository, or download the file itself."
    ),
    b"<": (
        "is a web page, not weights; the download needs a login or another address: "
        "download it again."
    ),
    b"{": "is a JSON file, not weights; give the safetensors file that it is about.",
}


def refuse_by_name(path: Path) -> None:
    """Raises UserError, saying how to convert, if the name is that of other weights."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise UserError(f"{path} {PICKLE}")
    if suffix == ".gguf":
        raise UserError(f"{path} {GGUF}")


def check_regular(path: Path) -> None:
    """Raises an error unless a path is a file with something in it."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; give a safetensors file.")
    if not path.is_file():
        raise UserError(f"{path} must be a regular file; give a safetensors file.")
    if path.stat().st_size == 0:
        raise UserError(
            f"{path} must be a whole safetensors file, got one that is truncated or "
            "damaged (it is empty); copy or download it again."
        )


def describe_damage(path: Path, error: Exception) -> UserError:
    """The error for a file that is not, or no longer, a safetensors file.

    Args:
      path: the file.
      error: what its reader said.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    for beginning, what in BEGINNINGS.items():
        if start.startswith(beginning):
            return UserError(f"{path} must be a whole safetensors file, but {what}")
    size = path.stat().st_size
    if size < len(start) + 1 and start.isascii() and start.decode().isprintable():
        return UserError(
            f"{path} must be a whole safetensors file, but is the text "
            f"{start[:80].decode()!r}; download it again."
        )
    expected = _expected_size(path)
    if expected is not None and size < expected:
        error = f"{size:,} of {expected:,} bytes are there"
    return UserError(
        f"{path} must be a whole safetensors file, got one that is truncated or "
        f"damaged ({error}); copy or download it again."
    )


def _expected_size(path: Path) -> int | None:
    """Bytes that the file should have, if its header can be read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > path.stat().st_size:
            return None
        try:
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)
