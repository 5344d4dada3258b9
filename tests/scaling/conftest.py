# SPDX-License-Identifier: Apache-2.0
"""Planted laws and run folders to find them in."""

import json

import numpy as np
import pandas as pd
import pytest

# Besiroglu et al. 2024 (arXiv:2404.10102), their refit of the Chinchilla points.
CHINCHILLA = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
# A flow-matching study on a laptop: 200 thousand to 20 million parameters.
LAPTOP = {"E": 0.42, "A": 8.0, "B": 20.0, "alpha": 0.35, "beta": 0.40}


def loss_of(law, size, samples):
    return (
        law["E"] + law["A"] / size ** law["alpha"] + law["B"] / samples ** law["beta"]
    )


def make_table(law, sizes, samples, *, noise=0.0, seed=0):
    """A runs table on the full grid of sizes and samples."""
    generator = np.random.default_rng(seed)
    size, number = (axis.ravel() for axis in np.meshgrid(sizes, samples))
    loss = loss_of(law, size, number)
    loss = loss * np.exp(noise * generator.standard_normal(len(loss)))
    return pd.DataFrame({"params": size, "samples": number, "loss": loss})


def write_run(
    folder, *, depth, samples, loss, status="finished", points=3, validated_on=64,
    **fields,
):  # fmt: skip
    """A run folder as the training loop writes it."""
    folder.mkdir(parents=True)
    params = 50_000 * depth**3
    run = {
        "params": params,
        "params_without_adaln": params // 2,
        "train_flops_per_sample": 384.0 * params,
        "image_tokens": 64,
        "context_tokens": 16,
        "data": "emoji_scenes",
        "data_hash": "d1",
        "validation_protocol": "val_v1",
        "code_version": "0.1.0",
        "config_hash": f"{depth}-{samples}",
        "seed": 0,
        "depth": depth,
        "status": status,
    }
    (folder / "run.json").write_text(json.dumps(run | fields))
    lines = []
    for part in np.linspace(0, 1, points + 1)[1:]:
        seen = int(round(samples * part))
        common = {"step": seen // 10, "samples": seen}
        lines.append({**common, "train/loss": 1.0, "perf/seconds": 60 * part})
        value = loss(params, seen) if callable(loss) else loss
        levels = {f"val_ema/loss_t{k}": value * (1 + k / 10) for k in range(8)}
        count = {} if validated_on is None else {"val/num_samples": validated_on}
        lines.append(
            {
                **common,
                "val/loss": 1.1 * value,
                "val_ema/loss": value,
                **levels,
                **count,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def planted():
    """The planted laws by name, and the function that makes tables of them."""

    class Planted:
        chinchilla = CHINCHILLA
        laptop = LAPTOP
        loss = staticmethod(loss_of)
        table = staticmethod(make_table)

    return Planted


@pytest.fixture
def new_run():
    return write_run


@pytest.fixture
def sweep(tmp_path):
    """A finished sweep of five depths and four budgets."""
    generator = np.random.default_rng(3)

    def loss(size, samples):
        return loss_of(LAPTOP, size, samples) * np.exp(0.003 * generator.normal())

    folder = tmp_path / "depth"
    for depth in (1, 2, 3, 4, 5):
        for samples in (10**5, 4 * 10**5, 10**6, 4 * 10**6):
            write_run(
                folder / f"d{depth}-{samples}", depth=depth, samples=samples, loss=loss
            )
    return folder
