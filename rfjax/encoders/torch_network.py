# SPDX-License-Identifier: Apache-2.0
"""Frozen PyTorch networks as functions of NumPy arrays.

They run in PyTorch on the CPU or a GPU, or are compiled by JAX for its devices, such as
TPUs, with torchax, which gives every PyTorch operation its meaning in JAX.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from rfjax.encoders.torch_weights import choose_device
from rfjax.packages import import_package

# [B, ...] array -> the tensors that the network returns, each [B, ...] float32.
Network = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def as_function(network: Any, *, device: str, what: str, batch_size: int) -> Network:
    """A function that calls the network in batches.

    Args:
      network: a PyTorch module that maps a tensor to a tuple of tensors, row by row.
      device: one of `rfjax.encoders.torch_weights.DEVICES`.
      what: whose network it is, for errors.
      batch_size: rows that go through the network at a time, at most.

    Raises:
      UserError: there is no such device.
      MissingPackageError: the device is "jax", and torchax is not installed.
    """
    is_jax = device == "jax"
    call = _in_jax(network, what) if is_jax else _in_torch(network, device, what)

    def in_batches(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs of all rows."""
        outputs = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            # JAX compiles for each shape: so there are few of them.
            size = 1 << (len(batch) - 1).bit_length() if is_jax else len(batch)
            filled = np.concatenate([batch, batch[:1].repeat(size - len(batch), 0)])
            outputs.append([output[: len(batch)] for output in call(filled)])
        return tuple(np.concatenate(each) for each in zip(*outputs, strict=True))

    return in_batches


def _in_torch(network: Any, device: str, what: str) -> Network:
    import torch

    device = choose_device(device, what=what)
    network = network.to(device)

    def call(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """One batch."""
        # By default convolutions on GPUs round float32 to 10 bits (TF32).
        exact = torch.backends.cudnn.flags(
            enabled=True, deterministic=True, allow_tf32=False
        )
        with torch.inference_mode(), exact:
            outputs = network(torch.from_numpy(rows).to(device))
        return tuple(output.float().cpu().numpy() for output in outputs)

    return call


def _in_jax(network: Any, what: str) -> Network:
    import jax

    torchax = import_package("torchax", use=f"device 'jax' of {what}", extra="torchax")
    weights, function = torchax.extract_jax(network)
    compiled = jax.jit(lambda weights, rows: function(weights, (rows,)))

    def call(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """One batch."""
        # PyTorch's operations rely on promotion, and TPUs round float32 by default.
        exact = jax.default_matmul_precision("highest")
        with jax.numpy_rank_promotion("allow"), exact, warnings.catch_warnings():
            # JAX has no 64 bits; they are indices here.
            warnings.filterwarnings("ignore", message=".*dtype int64 requested")
            outputs = compiled(weights, rows)
        return tuple(np.asarray(output, np.float32) for output in outputs)

    return call
