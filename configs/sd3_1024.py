# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning the models of the SD3 depth study at 1024 px, one slice of v5p.

    rfjax plan  --config=configs/sd3_1024.py:38 --topology=v5p:4x4x4
    rfjax train --config=configs/sd3_1024.py:38 --workdir=runs/sd3-1024-38

The argument is the depth, as in configs/sd3.py. What changes with the resolution (SD3,
section 5.3.2): 4,096 image tokens instead of 256, positions a quarter as far apart
(position_scale), noisier timesteps (shift), normalised queries and keys, and attention
by the splash kernel, whose memory does not grow with the square of the tokens. The
data are synthetic; for a real run set data.kind to shards and data.path. Start from a
run at 256 px that was trained with qk_norm as well. Depths 15 and 38 have been compiled
for a TPU (configs/plans).
"""

from ml_collections import ConfigDict

# Depth -> mesh.fsdp, as in configs/sd3.py.
FSDP = {15: 8, 18: 16, 21: 8, 24: 16, 30: 16, 38: 16}


def get_config(arg: str = "38") -> ConfigDict:
    """Returns the config of one depth, 38 if none is given.

    Raises:
      ValueError: if the depth is not one of the study's.
    """
    if arg not in map(str, FSDP):
        raise ValueError(
            f"configs/sd3_1024.py:ARG must be a depth of {', '.join(map(str, FSDP))}, "
            f"got {arg!r}; write e.g. configs/sd3_1024.py:24."
        )
    depth = int(arg)
    config = ConfigDict()
    config.seed = 0
    config.objective = "rf/lognorm(0.00,1.00)"
    config.shift = 3.0
    config.model = ConfigDict(
        {
            "depth": depth,
            "qk_norm": True,
            "grid_tokens": 64,
            "position_scale": 0.25,
            "attention": "splash",
            "remat": "linear",
        }
    )
    config.data = ConfigDict(
        {
            "kind": "synthetic",
            "latent_shape": [128, 128, 16],
            "context_shape": [154, 4096],
            "pooled_dim": 2048,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": FSDP[depth], "tensor": 1})
    config.optimizer = ConfigDict(
        {"learning_rate": 2e-5, "warmup_steps": 1000, "weight_decay": 0.01}
    )
    config.ema = ConfigDict({"decay": 0.99, "every_steps": 100})
    config.train = ConfigDict(
        {"num_steps": 50_000, "global_batch_size": 384, "log_every_steps": 100}
    )
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 2})
    config.validation = ConfigDict({"every_steps": 5000, "batch_size": 128})
    config.sample = ConfigDict(
        {"num_steps": 50, "solver": "euler", "guidance_scale": 5.0, "shift": 3.0}
    )
    return config
