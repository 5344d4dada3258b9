# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, written and read one tensor at a time.

The file is an 8-byte little-endian header length, a JSON header that gives dtype,
shape and byte range of each tensor, and the bytes. Shapes are known before any
weight is read, so the header is written first and memory holds a single tensor.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rfjax.errors import MissingFileError, UserError

DTYPES = {  # of exports, those that lose least first
    "float32": ("F32", np.dtype(np.float32)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
}
NAMES = {code: name for name, (code, _) in DTYPES.items()}
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")


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


class TensorFiles:
    """The tensors of one or several safetensors files, read when asked for.

    Attributes:
      shapes: name -> shape.
      dtypes: name -> a name in `DTYPES`.
    """

    def __init__(self, paths: Iterable[Path]):
        self._files = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in paths:
            with _open(path) as file:
                for name in file.keys():
                    tensor = file.get_slice(name)
                    self._files[name] = path
                    self.shapes[name] = tuple(tensor.get_shape())
                    self.dtypes[name] = NAMES.get(
                        tensor.get_dtype(), tensor.get_dtype()
                    )

    def read(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields tensors as float32, one in memory at a time."""
        with contextlib.ExitStack() as stack:
            open_files = {}
            for name in names:
                path = self._files[name]
                if path not in open_files:
                    open_files[path] = stack.enter_context(_open(path))
                yield open_files[path].get_tensor(name).astype(np.float32)


def refuse_pickle(path: Path) -> None:
    """Raises UserError, saying how to convert, if the name is that of a pickle."""
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run code when it is read; weights must be "
            "safetensors. Convert a file you trust in PyTorch: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), "
            "'weights.safetensors')."
        )


def _open(path: Path):
    """Opens a safetensors file, refusing any other file."""
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; give a safetensors file.")
    refuse_pickle(path)
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(
            f"{path} must be a whole safetensors file, got one that is truncated or "
            f"damaged ({error}); copy or download it again."
        ) from error
