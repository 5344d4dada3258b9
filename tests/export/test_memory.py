# SPDX-License-Identifier: Apache-2.0
"""What export and import of large models cost, by the commands that users run."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import traverse_util

from rfjax import checkpoint
from rfjax.config import Config, config_to_dict
from rfjax.data.synthetic import SyntheticConfig
from rfjax.export import save
from rfjax.models import make_model
from rfjax.models.mmdit import MMDiTConfig
from rfjax.train.loop import TrainConfig

LIMIT_GB = 3.0

# The command, and then the most memory that its process ever had. What the kernel tells
# the parent of a child would include the parent's own memory at the fork.
COMMAND = """
import sys
from pathlib import Path
from rfjax import main
assert main.run(sys.argv[1:]) == 0
print(Path("/proc/self/status").read_text())
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class EmaOnly:
    """A train state of which only the average is kept."""

    ema_params: dict


def write_run(workdir, depth):
    """A run folder with one set of random weights: what an export reads."""
    config = Config(
        model=MMDiTConfig(depth=depth, qk_norm=True),
        data=SyntheticConfig(
            latent_shape=(32, 32, 16), context_shape=(154, 4096), pooled_dim=2048
        ),
        train=TrainConfig(num_steps=1000),
    )
    rng = np.random.default_rng(0)
    leaves = {
        path: 0.02 * rng.standard_normal(shape, np.float32)
        for path, shape in make_model(config.model).shapes().items()
    }
    state = EmaOnly(traverse_util.unflatten_dict(leaves, sep="/"))
    checkpoints = checkpoint.Checkpoints(
        workdir, config=checkpoint.CheckpointConfig(keep=1)
    )
    checkpoints.save(1, state, data_position={"step": 1})
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(config_to_dict(config)))
    record = {"data": "random", "validation_protocol": "val_v1"}
    (workdir / "run.json").write_text(json.dumps(record))
    return sum(leaf.nbytes for leaf in leaves.values())


def peak_of(*flags):
    """The most memory, in bytes, that a command ever had."""
    process = subprocess.run(
        [sys.executable, "-c", COMMAND, *flags],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", process.stdout)[1])


@pytest.mark.slow
def test_memory_stays_below_the_size_of_the_model(tmp_path):
    num_bytes = write_run(tmp_path / "run", depth=24)
    start = time.perf_counter()
    peak = peak_of("export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/out")
    seconds = time.perf_counter() - start
    print(f"{num_bytes / 1e9:.2f} GB exported in {seconds:.0f} s, {peak / 1e9:.2f} GB")
    written = sum(file.stat().st_size for file in tmp_path.rglob("out/**/*.safetens*"))
    assert written > num_bytes
    assert peak < LIMIT_GB * 1e9 < num_bytes


@pytest.mark.slow
def test_an_import_needs_its_largest_parameter_not_the_model(
    make_config, make_leaves, tmp_path
):
    config = make_config(depth=13)
    leaves = make_leaves(config)
    save.write_diffusers(leaves.__getitem__, make_model(config), tmp_path / "weights")
    data = SyntheticConfig(latent_shape=(8, 8, 3), context_shape=(3, 20), pooled_dim=12)
    run = Config(model=config, data=data, train=TrainConfig(num_steps=2000))
    fields = config_to_dict(run)
    del fields["model"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    peak = peak_of(
        "import",
        f"--from={tmp_path}/weights",
        f"--config={tmp_path}/config.json",
        f"--workdir={tmp_path}/run",
    )
    num_bytes = sum(leaf.nbytes for leaf in leaves.values())
    largest = max(leaf.nbytes for leaf in leaves.values())
    print(f"{num_bytes / 1e9:.2f} GB imported, {peak / 1e9:.2f} GB")
    # Python and its libraries have 0.5 GB before the first parameter is read.
    assert peak < 0.6e9 + 4 * largest < 1.2 * num_bytes
