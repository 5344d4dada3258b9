# SPDX-License-Identifier: Apache-2.0
"""Timing a train step: the clock, the figures, and the peer's equal work."""

import dataclasses
import json
import time

import jax
import pytest

from rfjax import commands
from rfjax.bench.step import StepReport, time_in_turns
from rfjax.config import from_config_dict
from rfjax.config_files import load_config_file


def test_actions_are_timed_alternately_after_a_first_call():
    calls, lines = [], []

    def action(name, seconds):
        def act():
            calls.append(name)
            time.sleep(seconds)

        return act

    seconds = time_in_turns(
        {"a": action("a", 0.002), "b": action("b", 0.02)},
        rounds=2,
        repeats=2,
        report=lines.append,
    )
    assert calls == [*"ab", *"aabb", *"aabb"]
    assert all(0.002 <= a < b for a, b in zip(*seconds.values(), strict=True))
    assert lines[-1].startswith("round 2/2: a ")


def test_figures_follow_from_the_times():
    report = StepReport(
        device="TPU v5p",
        num_devices=4,
        global_batch_size=8,
        num_params=1000,
        flops_per_sample=3e12,
        peak_flops=459e12,
        parts={"forward": (0.01, 0.01, 0.02), "step": (0.04, 0.05, 0.06)},
        peer_name="diffusers",
        peer=(0.08, 0.05, 0.10),
    )
    assert report.flops_per_second == pytest.approx(3e12 * 8 / 4 / 0.05)
    assert report.to_json()["mfu"] == pytest.approx(1.2e14 / 459e12)
    assert report.to_json()["ratio"] == pytest.approx(0.6)
    assert "MFU 26.1%" in str(report)
    unknown = dataclasses.replace(report, peak_flops=None, peer=())
    assert unknown.to_json()["mfu"] is None, "no peak without a source"
    assert "MFU" not in str(unknown)


@pytest.fixture
def config():
    fields = load_config_file("configs/debug.py")
    fields["model"]["depth"] = 1
    fields["train"]["global_batch_size"] = 8
    return from_config_dict(fields)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_step_is_timed_alongside_pytorch(config, tmp_path):
    pytest.importorskip("diffusers")
    measured = commands.bench_step(
        config, rounds=1, peer="diffusers", json_file=tmp_path / "step.json"
    )
    assert list(measured.parts) == ["forward", "forward and backward", "step"]
    assert measured.num_devices == jax.device_count()
    saved = json.loads((tmp_path / "step.json").read_text())
    assert saved["ratio"] == pytest.approx(saved["parts"]["step"][0] / saved["peer"][0])


def test_a_peer_must_be_able_to_do_the_same_work(config):
    with pytest.raises(ValueError, match="peer must be diffusers, got 'keras'"):
        commands.bench_step(config, peer="keras")
    with pytest.raises(ValueError, match="does the same work on a CPU only"):
        commands.bench_step(
            dataclasses.replace(config, objective="eps/linear"), peer="diffusers"
        )
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        commands.bench_step(config, rounds=0)
