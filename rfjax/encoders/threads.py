# SPDX-License-Identifier: Apache-2.0
"""How many threads PyTorch computes with, on which the last bits of a sum depend."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def limited_threads(num_threads: int) -> Iterator[None]:
    """Within the block PyTorch, if some encoder uses it, computes with so many threads.

    Args:
      num_threads: at least 1.
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
