# SPDX-License-Identifier: Apache-2.0
r"""The depth study on emoji scenes: six depths, four budgets of data, on a laptop CPU.

    rfjax encode --config=configs/data/emoji_scenes.py --out=data/emoji_scenes_40k \
      --config.source.num_train=40960
    rfjax sweep  --config=configs/sweeps/emoji_study.py --workdir=runs/study --dry-run
    rfjax sweep  --config=configs/sweeps/emoji_study.py --workdir=runs/study
    rfjax fit    --runs=runs/study --out=reports/study

Hardware: 1 CPU core. Duration: about an hour. Expected: `notebooks/study` of this
repository, read by `notebooks/depth_scaling.ipynb`. No scene is seen twice: the longest
run reads half of the data. Depths 2 and 3 are trained with three seeds, for the noise.
`emoji_study.py:5` stops at depth 5, to predict depth 6 before it is trained.
`emoji_study.py:rates` asks instead which learning rate is best at which depth, under
both parameterisations (25 minutes). Expected: the best rate falls with depth under the
standard one, and stays under muP. At depth 2, the base depth, both are the same run.
"""

from ml_collections import ConfigDict

DEPTHS = (1, 2, 3, 4, 5, 6)


def get_config(arg: str = "6") -> ConfigDict:
    """Returns the study up to a depth, or the sweep of learning rates.

    Raises:
      ValueError: if the argument is neither.
    """
    if arg not in ("rates", *map(str, DEPTHS)):
        raise ValueError(
            f"configs/sweeps/emoji_study.py:ARG must be rates or a depth of {DEPTHS}, "
            f"got {arg!r}."
        )
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
            "path": "data/emoji_scenes_40k",
            "caption_dropout": 0.1,
        },
        "optimizer": {"learning_rate": 6e-3, "warmup_steps": 40},
        "ema": {"decay": 0.98, "every_steps": 1},
        "train": {"global_batch_size": 32, "log_every_steps": 20},
        "checkpoint": {"every_steps": 200, "keep": 1},
        # Only the end of a run, after its cooldown, is a point of the law.
        "validation": {"every_steps": 100_000, "num_samples": 256, "batch_size": 64},
    }
    if arg == "rates":
        grid = {
            "depths": [1, 2, 4],
            "num_samples": [5120],
            "learning_rates": [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2],
            "parameterisations": ["standard", "mup"],
            "learning_rate_exponent": 0.0,
        }
    else:
        depths = [depth for depth in DEPTHS if depth <= int(arg)]
        grid = {
            "depths": depths,
            "num_samples": [2560, 5120, 10240, 20480],
            "repeated_depths": [depth for depth in (2, 3) if depth in depths],
            "repeat_seeds": [1, 2],
            "learning_rate_exponent": -1.0,
        }
    grid |= {"seeds": [0], "reference_depth": 2, "cooldown_fraction": 0.25}
    return ConfigDict({"base": base, "grid": grid})
