# SPDX-License-Identifier: Apache-2.0
"""The smallest sweep that there is."""

import pytest

from rfjax.config_files import load_config_file


@pytest.fixture(scope="session")
def sweep_fields():
    """One tiny model, a trunk and two lengths."""
    base = load_config_file("configs/debug.py")
    # Left out: what the grid sets.
    del base["seed"], base["model"]["depth"], base["train"]["num_steps"]
    del base["optimizer"]["cooldown_steps"]
    base["optimizer"] |= {"warmup_steps": 1}
    base["data"] |= {"latent_shape": [4, 4, 16], "num_validation": 8}
    base["checkpoint"] = {"every_steps": 100, "keep": 1}
    grid = {"depths": [1], "num_samples": [128, 192], "cooldown_fraction": 0.5}
    return {"base": base, "grid": grid}
