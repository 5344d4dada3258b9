# SPDX-License-Identifier: Apache-2.0
"""Clip art by colour and noun: prompts such as "red car" that training never showed.

    apt-get install openclipart-svg
    rfjax encode --config=configs/data/openclipart.py --out=data/openclipart
    rfjax train  --config=configs/openclipart.py --workdir=runs/openclipart
    rfjax sample --workdir=runs/openclipart --sheet
    rfjax sample --workdir=runs/openclipart --prompt="red car" --out=red_car.png

Hardware: 2 CPU cores. Duration: about an hour (1.6 CPU seconds a step). Validation is
on combinations of a colour and a noun of which training shows each, but not both
together. Squares are drawn unless `--aspect` asks for another shape.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the config."""
    config = ConfigDict()
    config.seed = 0
    config.objective = "rf/lognorm(0.00,1.00)"
    config.shift = 1.0
    config.model = ConfigDict(
        {
            "depth": 4,
            "context_dim": 384,
            "pooled_dim": 384,
            "qk_norm": True,
            "grid_tokens": 8,
            "max_grid_tokens": 16,
            "compute_dtype": "float32",
        }
    )
    config.data = ConfigDict(
        {
            "kind": "shards",
            "path": "data/openclipart",
            "caption_dropout": 0.1,
            # Of the captions "red car" and "red car, toyota land cruiser, vehicle".
            "caption_weights": (0.5, 0.5),
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.optimizer = ConfigDict(
        {
            "learning_rate": 2e-3,
            "warmup_steps": 100,
            "cooldown_steps": 800,
            "weight_decay": 0.01,
        }
    )
    config.ema = ConfigDict({"decay": 0.995, "every_steps": 1})
    config.train = ConfigDict(
        {"num_steps": 3200, "global_batch_size": 64, "log_every_steps": 50}
    )
    config.checkpoint = ConfigDict({"every_steps": 400, "keep": 2})
    config.validation = ConfigDict({"every_steps": 400, "batch_size": 32})
    config.sample = ConfigDict(
        {"num_steps": 24, "solver": "heun", "guidance_scale": 3.0}
    )
    return config
