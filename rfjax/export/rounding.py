# SPDX-License-Identifier: Apache-2.0
"""Weights in the dtype of a file, and what they lose by it.

Every dtype rounds, float16 by up to 2^-11 of a weight and bfloat16 by 2^-8. What is
told is worse: weights so small that they become 0, or denormal with fewer digits.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from rfjax.errors import UserError
from rfjax.export.tensor_file import DTYPES


def cast(tensor: np.ndarray, dtype: str, *, where: str) -> np.ndarray:
    """Converts a float32 tensor to the dtype of a file.

    Args:
      tensor: any shape.
      dtype: a name in `tensor_file.DTYPES`.
      where: name of the tensor, for messages.

    Raises:
      UserError: values that are not finite, or overflow the dtype.
    """
    with np.errstate(over="ignore"):  # it is found below
        rounded = tensor.astype(DTYPES[dtype][1], order="C")
    if np.isfinite(rounded).all():
        return rounded
    if not np.isfinite(tensor).all():
        raise UserError(
            f"weights must be finite, got NaN or infinity in {where}; export an "
            "earlier step."
        )
    largest = np.abs(tensor).max()
    fitting = [
        name
        for name, (_, numpy_dtype) in DTYPES.items()
        if largest <= ml_dtypes.finfo(numpy_dtype).max
    ]
    raise UserError(
        f"dtype {dtype} cannot hold the weights {where}: the largest is {largest:.3g}; "
        f"export as {' or '.join(fitting)}."
    )


@dataclasses.dataclass
class Rounding:
    """Casts the weights of an export one by one, and counts those that are too small.

    Attributes:
      dtype: of the files, a name in `tensor_file.DTYPES`.
      num_weights: cast so far.
      num_zeros: of them, those that were not 0 and became 0.
      num_denormals: those that became denormal: fewer digits the smaller they are.
      largest_error: of the denormal ones, relative.
    """

    dtype: str
    num_weights: int = 0
    num_zeros: int = 0
    num_denormals: int = 0
    largest_error: float = 0.0

    def cast(self, tensor: np.ndarray, *, where: str) -> np.ndarray:
        """As the function `cast`."""
        rounded = cast(tensor, self.dtype, where=where)
        self.num_weights += tensor.size
        if self.dtype == "float32":  # nothing is rounded
            return rounded
        stored = rounded.astype(np.float32)
        is_small = np.abs(stored) < self._smallest_normal
        is_small &= tensor != 0
        exact, stored = tensor[is_small], stored[is_small]
        is_zero = stored == 0
        self.num_zeros += int(is_zero.sum())
        self.num_denormals += int((~is_zero).sum())
        errors = np.abs(stored / exact - 1)[~is_zero]
        self.largest_error = max(self.largest_error, float(errors.max(initial=0)))
        return rounded

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user of the files must know."""
        losses = []
        if self.num_zeros:
            losses.append(f"{self.num_zeros:,} became 0")
        if self.num_denormals:
            losses.append(
                f"{self.num_denormals:,} became denormal (below "
                f"{self._smallest_normal:.3g}) and changed by up to "
                f"{100 * self.largest_error:.2g} %"
            )
        if not losses:
            return ()
        finer = list(DTYPES)[: list(DTYPES).index(self.dtype)]
        return (
            f"dtype {self.dtype} is too coarse for some of {self.num_weights:,} weights"
            f": {', '.join(losses)}; export as {' or '.join(finer)} to keep them.",
        )

    @property
    def _smallest_normal(self) -> float:
        return float(ml_dtypes.finfo(DTYPES[self.dtype][1]).smallest_normal)
