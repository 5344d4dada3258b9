# SPDX-License-Identifier: Apache-2.0
"""A tiny model on synthetic data: trains, validates and saves in seconds.

    rfjax train --config=configs/debug.py --workdir=runs/debug

Hardware: 2 CPU cores. Duration: about 10 seconds. Expected: train/loss falls from about
1.9 to below 1.3 in 60 steps.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the debug config."""
    config = ConfigDict()
    config.seed = 0
    config.objective = "rf/lognorm(0.00,1.00)"
    config.shift = 1.0
    config.model = ConfigDict(
        {
            "depth": 2,
            "context_dim": 32,
            "pooled_dim": 32,
            "qk_norm": True,
            "grid_tokens": 4,
            "max_grid_tokens": 4,
            "compute_dtype": "float32",
        }
    )
    config.data = ConfigDict({"kind": "synthetic"})
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.optimizer = ConfigDict(
        {"learning_rate": 3e-3, "warmup_steps": 10, "cooldown_steps": 20}
    )
    config.ema = ConfigDict({"decay": 0.95, "every_steps": 1})
    config.train = ConfigDict(
        {"num_steps": 60, "global_batch_size": 32, "log_every_steps": 10}
    )
    config.checkpoint = ConfigDict({"every_steps": 20, "keep": 2})
    config.validation = ConfigDict({"every_steps": 30, "batch_size": 32})
    config.sample = ConfigDict({"num_steps": 20, "guidance_scale": 2.0})
    return config
