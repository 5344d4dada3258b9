# SPDX-License-Identifier: Apache-2.0
"""The demo: 143 emoji and their names, memorised on a laptop CPU.

    rfjax encode --config=configs/data/emoji.py --out=data/emoji
    rfjax train  --config=configs/emoji.py --workdir=runs/emoji
    rfjax sample --workdir=runs/emoji --sheet

Hardware: 2 CPU cores. Duration: 1 to 3 minutes. Expected: train/loss about 0.13, and
crisp pictures of the captions seen in training. One picture per caption means that the
model memorises; the held-out captions show what it does beyond.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the demo config."""
    config = ConfigDict()
    config.seed = 0
    config.objective = "rf/lognorm(0.00,1.00)"
    config.shift = 1.0
    config.model = ConfigDict(
        {
            "depth": 3,
            "context_dim": 384,
            "pooled_dim": 384,
            "qk_norm": True,
            "grid_tokens": 4,
            "max_grid_tokens": 8,
            "compute_dtype": "float32",
        }
    )
    config.data = ConfigDict(
        {"kind": "shards", "path": "data/emoji", "caption_dropout": 0.1}
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 2e-3,
            "warmup_steps": 50,
            "cooldown_steps": 200,
            "weight_decay": 0.01,
        }
    )
    config.ema = ConfigDict({"decay": 0.99, "every_steps": 1})
    config.train = ConfigDict(
        {"num_steps": 700, "global_batch_size": 64, "log_every_steps": 50}
    )
    config.checkpoint = ConfigDict({"every_steps": 200, "keep": 2})
    config.validation = ConfigDict({"every_steps": 100, "batch_size": 32})
    config.sample = ConfigDict(
        {"num_steps": 24, "solver": "heun", "guidance_scale": 2.0}
    )
    return config
