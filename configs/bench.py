# SPDX-License-Identifier: Apache-2.0
"""A model to time steps with: SD3's layout at 256 px, small enough for a CPU.

    rfjax bench step --config=configs/bench.py --peer=diffusers

Hardware: any. Duration: about 3 minutes on 2 CPU cores. Expected: the times of
forward, backward and update, in float32, and their ratio to PyTorch's.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "6") -> ConfigDict:
    """Returns the config; the argument is the depth, 6 if absent.

    Raises:
      ValueError: if the depth is none.
    """
    if not arg.isdecimal():
        raise ValueError(
            f"configs/bench.py:ARG must be a depth, got {arg!r}; write e.g. "
            "configs/bench.py:12."
        )
    return ConfigDict(
        {
            "model": {
                "depth": int(arg),
                "qk_norm": True,
                "context_dim": 1024,
                "pooled_dim": 768,
                "grid_tokens": 16,
                "max_grid_tokens": 64,
                "compute_dtype": "float32",
                "unroll": int(arg),
            },
            "data": {
                "kind": "synthetic",
                "latent_shape": [32, 32, 16],
                "context_shape": [77, 1024],
                "pooled_dim": 768,
            },
            "optimizer": {"learning_rate": 1e-4, "weight_decay": 0.01},
            "ema": {"decay": 0.99, "every_steps": 1},
            "train": {"num_steps": 2000, "global_batch_size": 8},
        }
    )
