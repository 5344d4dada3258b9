# SPDX-License-Identifier: Apache-2.0
"""A first depth study on emoji scenes: three depths, three lengths, minutes on a CPU.

    rfjax encode --config=configs/data/emoji_scenes.py --out=data/emoji_scenes
    rfjax sweep  --config=configs/sweeps/emoji_depth.py --workdir=runs/depth
    rfjax fit    --runs=runs/depth --out=reports/depth

Hardware: 2 CPU cores. Duration: about 3 minutes. Expected: val_ema/loss falls with
depth and length. The runs are far too short for trustworthy exponents; the intervals
show it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the sweep."""
    base = {
        "objective": "rf/lognorm(0.00,1.00)",
        "model": {
            "context_dim": 384,
            "pooled_dim": 384,
            "qk_norm": True,
            "grid_tokens": 4,
            "max_grid_tokens": 8,
            "compute_dtype": "float32",
        },
        "data": {
            "kind": "shards",
            "path": "data/emoji_scenes",
            "caption_dropout": 0.1,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 20},
        "ema": {"decay": 0.98, "every_steps": 1},
        "train": {"global_batch_size": 32, "log_every_steps": 20},
        # Only the end of a run, after its cooldown, is a point of the law.
        "checkpoint": {"every_steps": 1000, "keep": 1},
        "validation": {"every_steps": 1000, "num_samples": 128, "batch_size": 64},
    }
    grid = {
        "depths": [1, 2, 3],
        "num_samples": [1920, 3840, 7680],
        "seeds": [0],
        "cooldown_fraction": 0.25,
        "reference_depth": 2,
        "learning_rate_exponent": -0.5,
    }
    return ConfigDict({"base": base, "grid": grid})
