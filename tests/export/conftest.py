# SPDX-License-Identifier: Apache-2.0
"""Random models with nothing left at zero, and run folders that hold them."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from rfjax import checkpoint
from rfjax.config import Config, config_to_dict
from rfjax.data.synthetic import SyntheticConfig
from rfjax.models import make_model
from rfjax.models.mmdit import MMDiTConfig
from rfjax.train.loop import TrainConfig


def model_config(**fields) -> MMDiTConfig:
    defaults = {
        "depth": 2,
        "latent_channels": 3,
        "context_dim": 20,
        "pooled_dim": 12,
        "grid_tokens": 4,
        "max_grid_tokens": 11,
        "compute_dtype": "float32",
    }
    return MMDiTConfig(**(defaults | fields))


def random_leaves(config: MMDiTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Path -> float32; modulations and the final layer are not zero as at init."""
    rng = np.random.default_rng(seed)
    return {
        path: (rng.standard_normal(shape) * _std(path, shape)).astype(np.float32)
        for path, shape in make_model(config).shapes().items()
    }


def _std(path, shape):
    if not path.endswith("kernel"):
        return 0.3
    return (0.5 if "modulation" in path else 1.0) / np.sqrt(shape[-2])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: dict
    ema_params: dict


@pytest.fixture
def make_config():
    return model_config


@pytest.fixture
def make_leaves():
    return random_leaves


@pytest.fixture(scope="session")
def saved_checkpoints(tmp_path_factory):
    """Folders of checkpoints of random weights; each is saved once, then copied."""
    folders = {}

    def find(config, steps, change):
        if (config, steps, change) not in folders:
            workdir = tmp_path_factory.mktemp("saved")
            save_checkpoints(workdir, config, steps, change)
            folders[config, steps, change] = workdir / checkpoint.FOLDER
        return folders[config, steps, change]

    return find


def save_checkpoints(workdir, config, steps, change):
    """Raw weights of seed 0 and EMA weights of seed 1."""
    checkpoints = checkpoint.Checkpoints(
        workdir, config=checkpoint.CheckpointConfig(keep=9)
    )
    trees = [random_leaves(config, seed) for seed in (0, 1)]
    for tree in trees:
        change(tree)
    state = State(*(traverse_util.unflatten_dict(tree, sep="/") for tree in trees))
    for step in steps:
        checkpoints.save(step, state, data_position={"step": step})
    checkpoints.close()


def nothing(leaves):
    """Leaves them as they are."""


@pytest.fixture
def make_run(tmp_path, saved_checkpoints):
    """Makes a run folder with raw weights of seed 0 and EMA weights of seed 1."""

    def make(config, *, steps=(4,), change=nothing, data=None, **settings):
        workdir = tmp_path / "run"
        shutil.copytree(
            saved_checkpoints(config, steps, change), workdir / checkpoint.FOLDER
        )
        run = Config(
            model=config,
            data=SyntheticConfig(**(data or {})),
            train=TrainConfig(num_steps=4000),
            **settings,
        )
        (workdir / "config.json").write_text(json.dumps(config_to_dict(run)))
        record = {"data": "emoji", "validation_protocol": "val_v1"}
        (workdir / "run.json").write_text(json.dumps(record))
        lines = [
            {"step": 2, "samples": 512, "val/loss": 0.75, "val_ema/loss": 0.625},
            {"step": 4, "samples": 1024, "train/loss": 0.5},
        ]
        (workdir / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "val_'
        )
        return workdir

    return make
