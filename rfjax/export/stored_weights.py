# SPDX-License-Identifier: Apache-2.0
"""Stored tensors as float32, whatever they are stored as.

Weights in float8 may have scales: NAME.weight in float8 times NAME.scale_weight (or
NAME.weight_scale), a number or one for each row, is the weight. NAME.scale_input is
about activations and the tensor scaled_fp8 a mark; neither changes a weight.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from rfjax.errors import UserError
from rfjax.export.tensor_file import StoredTensor

READABLE = {  # safetensors' code -> numpy dtype
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = (".scale_weight", ".weight_scale")
WITHOUT_EFFECT = (".scale_input", ".input_scale")
MARK = "scaled_fp8"


class TensorFiles:
    """The tensors of a network, read when asked for.

    Attributes:
      shapes: name -> shape, without what belongs to scales.
      dtypes: name -> numpy's name of the stored dtype.
    """

    def __init__(self, tensors: Mapping[str, StoredTensor], *, prefix: str = ""):
        """The tensors of files by name; `prefix` is what all names begin with.

        Raises:
          UserError: dtypes that are no floats, scales that are missing, or of another
            kind, or beside weights that are not float8.
        """
        scales = _find_scales(tensors)
        self._tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if name != prefix + MARK
            and not name.endswith(WITHOUT_EFFECT)
            and name not in scales.values()
        }
        self._scales = {name: tensors[scale] for name, scale in scales.items()}
        _check_dtypes(self._tensors)
        _check_scales(self._tensors, self._scales)
        self.shapes = {name: each.shape for name, each in self._tensors.items()}
        self.dtypes = {
            name: READABLE[each.code].name for name, each in self._tensors.items()
        }

    def read(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        """Yields tensors as float32, one in memory at a time.

        Raises:
          UserError: a finite value that float32 cannot hold.
        """
        with contextlib.ExitStack() as stack:
            open_files = {}

            def read_stored(tensor: StoredTensor) -> np.ndarray:
                """One tensor as it is stored; mapping files would keep their pages."""
                if tensor.path not in open_files:
                    file = stack.enter_context(Path(tensor.path).open("rb"))
                    open_files[tensor.path] = file
                file = open_files[tensor.path]
                file.seek(tensor.start)
                dtype, count = READABLE[tensor.code], math.prod(tensor.shape)
                return np.fromfile(file, dtype, count).reshape(tensor.shape)

            for name in names:
                stored = read_stored(self._tensors[name])
                with np.errstate(over="ignore"):  # it is found below
                    tensor = stored.astype(np.float32)
                    if name in self._scales:
                        scale = read_stored(self._scales[name]).astype(np.float32)
                        tensor *= scale.reshape(-1, *[1] * (tensor.ndim - 1))
                if not np.isfinite(tensor).all() and np.isfinite(stored).all():
                    raise UserError(
                        f"{name} of {self._tensors[name].path} must fit into float32, "
                        "got a number above 3.4e38; correct the weights."
                    )
                yield tensor


def _find_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Name of every weight that has a scale -> the name of its scale."""
    return {
        name.removesuffix(suffix) + ".weight": name
        for name in tensors
        for suffix in SCALES
        if name.endswith(suffix)
    }


def _check_dtypes(tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        if tensor.code not in READABLE:
            raise UserError(
                f"{tensor.path} must hold weights in {', '.join(READABLE)}, got "
                f"{tensor.code} for {name}: they are quantised; take the weights that "
                "they were made from."
            )


def _check_scales(
    tensors: Mapping[str, StoredTensor], scales: Mapping[str, StoredTensor]
) -> None:
    for name, scale in scales.items():
        if name not in tensors or tensors[name].code not in FLOAT8:
            got = tensors[name].code if name in tensors else "none"
            raise UserError(
                f"{scale.path} has a scale for {name}, which must then be stored as "
                f"{' or '.join(FLOAT8)}, got {got}; take the weights before they were "
                "scaled."
            )
        rows = tensors[name].shape[:1]
        if scale.code not in READABLE or scale.shape not in (
            (), (1,), (1, 1), rows, (*rows, 1)
        ):  # fmt: skip
            raise UserError(
                f"the scale of {name} in {scale.path} must be a number or one for each "
                f"row of {tensors[name].shape}, got {scale.code} of shape {scale.shape}"
                "; take the weights before they were scaled."
            )
    bare = [
        name
        for name, tensor in tensors.items()
        if tensor.code in FLOAT8 and len(tensor.shape) == 2 and name not in scales
    ]
    if scales and bare:
        raise UserError(
            f"{tensors[bare[0]].path} has scales and lacks that of {bare[0]} "
            f"({len(bare)} such weights); download it again."
        )
