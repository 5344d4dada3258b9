# SPDX-License-Identifier: Apache-2.0
"""Safetensors files: written one tensor at a time, and where their tensors lie.

The file is an 8-byte little-endian header length, a JSON header that gives dtype,
shape and byte range of each tensor, and the bytes. Shapes are known before any
weight is read, so the header is written first and memory holds a single tensor.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rfjax.export import foreign_files

DTYPES = {  # of exports, those that lose least first
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
}


def num_bytes(shape: tuple[int, ...], *, dtype: str) -> int:
    """Bytes of one tensor in a file."""
    return math.prod(shape) * DTYPES[dtype][1].itemsize


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[np.ndarray],
    *,
    dtype: str,
) -> None:
    """Writes a safetensors file from a stream.

    Args:
      path: file to make.
      shapes: name -> shape of every tensor.
      tensors: arrays already of `dtype`, in the order of `shapes`; drawn one by one.
      dtype: a name in `DTYPES`, of all tensors.
    """
    code, array_dtype = DTYPES[dtype]
    # torch loaders ask for the format.
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + num_bytes(shape, dtype=dtype)
        header[name] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            assert (tensor.shape, tensor.dtype) == (shape, array_dtype), name
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
      path: of the file.
      code: its dtype in the words of safetensors, as "F32".
      shape: of the tensor.
      start: of its first byte, from the beginning of the file.
    """

    path: Path
    code: str
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: name -> where it lies.

    Raises:
      UserError: a file of another kind, or one that is truncated or damaged.
      MissingFileError: there is none.
    """
    foreign_files.refuse_by_name(path)
    foreign_files.check_regular(path)
    try:
        with safe_open(path, framework="numpy"):  # compares header and size of the file
            pass
    except SafetensorError as error:
        raise foreign_files.describe_damage(path, error) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            path=path,
            code=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=8 + length + entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }
