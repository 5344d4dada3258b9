# SPDX-License-Identifier: Apache-2.0
"""The checkpoint benchmark, on a small model, and its arithmetic."""

import json

import pytest

from rfjax import commands
from rfjax.bench.checkpoint import CheckpointReport
from rfjax.config import from_config_dict
from rfjax.config_files import load_config_file
from rfjax.models import make_model


def test_all_of_the_state_is_saved(tmp_path):
    config = from_config_dict(load_config_file("configs/debug.py"))
    folder, lines = tmp_path / "disk", []
    folder.mkdir()
    theirs = [
        folder / name for name in ("raw", "0", "1")
    ]  # names that the benchmark itself uses
    for path in theirs:
        path.write_text("kept")
    measured = commands.bench_checkpoint(
        config,
        folder=folder,
        rounds=2,
        json_file=tmp_path / "a.json",
        report=lines.append,
    )
    for times in (measured.step, measured.stall, measured.restore, measured.raw):
        assert len(times) == 2
        assert min(times) > 0
    assert all(s > t for s, t in zip(measured.save, measured.stall, strict=True))
    assert all(s > t > 0 for s, t in zip(measured.save, measured.hashing, strict=True))
    verifying = zip(measured.restore, measured.verifying, strict=True)
    assert all(s > t > 0 for s, t in verifying)
    # float32 parameters, average and two moments; plus step counts
    values = json.loads((tmp_path / "a.json").read_text())
    num_params = make_model(config.model).num_params
    assert 16 * num_params <= values["state_bytes"] < 16 * num_params + 100
    assert len(lines) == 2
    assert sorted(folder.iterdir()) == sorted(theirs)
    assert {path.read_text() for path in theirs} == {"kept"}


def test_shares_follow_from_the_times():
    report = CheckpointReport(
        state_bytes=10**9, every_steps=100, step=(0.1, 0.1, 9.0),
        stall=(0.2, 0.1, 0.3), save=(2.0, 3.0, 4.0), hashing=(0.1, 0.3, 0.2),
        restore=(1.0,) * 3, verifying=(0.1,) * 3, raw=(1.0, 1.0, 2.0),
    )  # fmt: skip
    assert report.stall_share == pytest.approx(0.2 / 10.2)
    assert report.ratios == (2.0, 3.0, 2.0)
    assert report.hashing_share == pytest.approx(0.2 / 3)
    assert "6.7% of a save goes into checksums" in str(report)
    assert "waits 1.96% of the time with a save every 100 steps" in str(report)


def test_what_cannot_be_measured_is_refused(tmp_path):
    config = from_config_dict(load_config_file("configs/debug.py"))
    with pytest.raises(ValueError, match="--folder must be an existing folder"):
        commands.bench_checkpoint(config, folder=tmp_path / "absent")
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        commands.bench_checkpoint(config, rounds=0)
