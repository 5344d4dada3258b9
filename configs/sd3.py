# SPDX-License-Identifier: Apache-2.0
"""The models of the SD3 depth study at 256 px, one TPU slice, synthetic data.

    rfjax plan  --config=configs/sd3.py:38 --topology=v5p:4x4x4
    rfjax train --config=configs/sd3.py:38 --workdir=runs/sd3-38

The argument is the depth: 15, 18, 21, 24, 30 or 38 (0.5B to 8.1B parameters); 38 if
there is none. Data has the shapes of SD3's latents and text (CLIP-L, CLIP-bigG and T5:
154 tokens of 4096), so that everything can be planned before anything is encoded; for a
real run set data.kind to shards and data.path. Hardware: any number of chips that
mesh.fsdp divides; on another one set --config.mesh.fsdp=N, or let `rfjax plan --search`
find it. Duration: what `rfjax plan` prints, an estimate; configs/plans holds what it
said when committed, each file made by --summary=configs/plans/sd3-DEPTH.TOPOLOGY.json.
"""

from ml_collections import ConfigDict

# Depth -> mesh.fsdp: a shard of 64 d / fsdp rows should be a multiple of 8, the rows of
# a TPU tile; otherwise the compiler gathers zero-padded copies.
FSDP = {15: 8, 18: 16, 21: 8, 24: 16, 30: 16, 38: 16}


def get_config(arg: str = "38") -> ConfigDict:
    """Returns the config of one depth, 38 if none is given.

    Raises:
      ValueError: if the depth is not one of the study's.
    """
    if arg not in map(str, FSDP):
        raise ValueError(
            f"configs/sd3.py:ARG must be a depth of {', '.join(map(str, FSDP))}, "
            f"got {arg!r}; write e.g. configs/sd3.py:24."
        )
    depth = int(arg)
    config = ConfigDict()
    config.seed = 0
    config.objective = "rf/lognorm(0.00,1.00)"
    config.shift = 1.0
    config.model = ConfigDict({"depth": depth, "attention": "fused", "remat": "linear"})
    config.data = ConfigDict(
        {
            "kind": "synthetic",
            "latent_shape": [32, 32, 16],
            "context_shape": [154, 4096],
            "pooled_dim": 2048,
        }
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": FSDP[depth], "tensor": 1})
    config.optimizer = ConfigDict(
        {"learning_rate": 1e-4, "warmup_steps": 1000, "weight_decay": 0.01}
    )
    config.ema = ConfigDict({"decay": 0.99, "every_steps": 100})
    config.train = ConfigDict(
        {
            "num_steps": 500_000,
            "global_batch_size": 4096,
            "log_every_steps": 100,
        }
    )
    config.checkpoint = ConfigDict({"every_steps": 1000, "keep": 2})
    config.validation = ConfigDict({"every_steps": 5000, "batch_size": 1024})
    config.sample = ConfigDict(
        {"num_steps": 50, "solver": "euler", "guidance_scale": 5.0}
    )
    return config
