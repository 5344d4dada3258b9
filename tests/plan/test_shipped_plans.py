# SPDX-License-Identifier: Apache-2.0
"""The shipped configs against the TPU compiler: minutes each, so all are slow."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from rfjax import commands
from rfjax.config import Config, from_config_dict
from rfjax.config_files import load_config_file
from rfjax.plan.topology import parse_topology

ROOT = Path(__file__).parents[2]
SUMMARIES = sorted((ROOT / "configs" / "plans").glob("*.json"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler"
    ),
]


def load(name: str) -> Config:
    """sd3-38 is configs/sd3.py:38."""
    file, depth = name.rsplit("-", 1)
    fields = load_config_file(f"{ROOT}/configs/{file}.py:{depth}")
    return from_config_dict(fields)


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_a_committed_summary_is_what_the_compiler_says_now(path):
    """CONFIG-DEPTH.TOPOLOGY.json, e.g. sd3-38.v5p-4x4x4.json."""
    config, topology = path.stem.split(".")
    expected = json.loads(path.read_text())
    assert str(parse_topology(topology.replace("-", ":"))) == expected["topology"]
    config = load(config)
    batch_size = expected["global_batch_size"]  # chosen for the memory of the chip
    train = dataclasses.replace(config.train, global_batch_size=batch_size)
    config = dataclasses.replace(config, train=train)
    found = commands.plan(config, topology=expected["topology"]).to_json()
    assert found["mesh"] == expected["mesh"]
    assert found["flops_seen_ratio"] == pytest.approx(1.0, abs=0.05)
    for field in ("share_of_peak_hidden", "share_of_peak_exposed", "hbm_headroom"):
        assert found[field] == pytest.approx(expected[field], abs=0.01), field


def test_weak_scaling_from_16_to_256_chips_loses_little():
    """The same examples per chip: more copies by `data`, the same shards."""
    config = load("sd3-15")

    def exposed_seconds(topology: str) -> float:
        num_chips = parse_topology(topology).num_chips
        train = dataclasses.replace(config.train, global_batch_size=64 * num_chips)
        scaled = dataclasses.replace(config, train=train)
        return commands.plan(scaled, topology=topology).estimate.exposed_seconds

    few, many = exposed_seconds("v5p:2x2x4"), exposed_seconds("v5p:4x8x8")
    assert many / few < 1.1
    assert many > few  # control: what is summed over `data` costs something
