# SPDX-License-Identifier: Apache-2.0
"""Two real processes over loopback train like one: same losses, one run folder."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from rfjax import checkpoint, commands, run_folder
from rfjax.commands import job
from rfjax.config import from_config_dict
from rfjax.config_files import apply_overrides, load_config_file
from rfjax.parallel import processes
from rfjax.parallel.mesh import MeshConfig, make_mesh

# A minute of CPU time: three programs are compiled, one of them twice.
pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "configs" / "debug.py"
OVERRIDES = (
    "--config.model.depth=1",
    "--config.mesh.fsdp=2",
    "--config.train.num_steps=4",
    "--config.train.log_every_steps=1",
    "--config.optimizer.warmup_steps=1",
    "--config.optimizer.cooldown_steps=0",
    "--config.checkpoint.every_steps=2",
    "--config.validation.every_steps=4",
)


def losses(workdir):
    """[step, loss] of each line of metrics, and the validation loss of the last."""
    lines = run_folder.read_metrics(workdir)
    trained = [(m["step"], m["train/loss"]) for m in lines if "train/loss" in m]
    (validated,) = [m["val_ema/loss"] for m in lines if "val_ema/loss" in m]
    return np.array([*trained, (0, validated)])


def train_here(workdir):
    config = from_config_dict(apply_overrides(load_config_file(str(CONFIG)), OVERRIDES))
    commands.train(config, workdir=workdir, report=lambda line: None)
    return workdir


def start_two_processes(*args):
    """Starts `rfjax *args` in two processes of four devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environ = os.environ | {
        # Compiled quickly rather than well; the numbers do not depend on it.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        # Gloo waits 30 seconds for the other process, so neither may skip compiling.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        processes.ADDRESS: address,
        processes.COUNT: "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "rfjax.main", *args],
            env=environ | {processes.INDEX: str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def run_two_processes(*args):
    """Runs `rfjax *args` in two processes of four devices; returns what they print."""
    started = start_two_processes(*args)
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return [out for out, _ in outputs]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    flags = (f"--config={CONFIG}", f"--workdir={workdir}", *OVERRIDES)
    return workdir, run_two_processes("train", *flags)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    return train_here(tmp_path_factory.mktemp("one") / "run")


def test_losses_equal_those_of_one_process(by_two, by_one):
    expected = losses(by_one)
    np.testing.assert_allclose(losses(by_two[0]), expected, rtol=1e-5)
    assert expected[:4, 0].tolist() == [1, 2, 3, 4]
    assert np.ptp(expected[:4, 1]) > 1e-3  # control: steps do differ


def test_losses_equal_those_of_one_device(by_two, tmp_path, monkeypatch):
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    monkeypatch.setattr(job, "make_mesh_for", lambda config: alone)
    expected = losses(train_here(tmp_path / "run"))
    np.testing.assert_allclose(losses(by_two[0]), expected, rtol=1e-5)


def test_two_processes_read_buckets_like_one(bucketed_root, tmp_path):
    fields = load_config_file(str(CONFIG))
    fields["data"] = {"kind": "shards", "path": str(bucketed_root)}
    sizes = {"latent_channels": 4, "context_dim": 6, "pooled_dim": 5, "grid_tokens": 2}
    fields["model"] |= sizes
    fields["train"]["global_batch_size"] = 8
    file = tmp_path / "config.json"
    file.write_text(json.dumps(fields))
    overrides = (*OVERRIDES, "--config.mesh.fsdp=1")
    together, alone = tmp_path / "together", tmp_path / "alone"
    run_two_processes("train", f"--config={file}", f"--workdir={together}", *overrides)
    config = from_config_dict(apply_overrides(fields, overrides))
    commands.train(config, workdir=alone, report=lambda line: None)
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-5)
    assert np.ptp(losses(alone)[:4, 1]) > 1e-3  # control: steps do differ


def test_one_of_them_writes_and_prints(by_two):
    workdir, (first, second) = by_two
    assert f"finished 4 steps in {workdir}" in first
    assert "steps" not in second  # what Gloo prints is left
    assert checkpoint.finished_steps(workdir) == [2, 4]
    assert not list(workdir.glob("**/*tmp*"))


def test_one_process_goes_on_with_their_checkpoint(by_two, by_one, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(by_two[0], workdir)
    shutil.rmtree(workdir / checkpoint.FOLDER / "4")
    train_here(workdir)
    np.testing.assert_allclose(losses(workdir), losses(by_one), rtol=1e-5)
    assert checkpoint.finished_steps(workdir) == [2, 4]


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_in_the_compilation_stops_all(tmp_path, signalled):
    """None may end alone: the others would wait for it, and abort."""
    workdir = tmp_path / "run"
    flags = (f"--config={CONFIG}", f"--workdir={workdir}", *OVERRIDES)
    started = start_two_processes("train", *flags)
    try:
        end = time.monotonic() + 200
        while run_folder.read_run(workdir).get("status") != "running":
            assert all(process.poll() is None for process in started)
            assert time.monotonic() < end
            time.sleep(0.01)
        started[signalled].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [143, 143], outputs
    assert not any("Traceback" in errors for _, errors in outputs)
    assert run_folder.read_run(workdir)["status"] == "stopped"


@pytest.mark.parametrize("signalled", [(1,), (0, 1)], ids=["one", "both"])
def test_a_signal_to_any_stops_all_at_the_same_step(tmp_path, signalled):
    workdir = tmp_path / "run"
    started = start_two_processes(
        "train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *OVERRIDES,
        "--config.train.num_steps=1000",
        "--config.checkpoint.every_steps=1000",
        "--config.validation.every_steps=1000",
    )
    steps = []

    def last_step():
        return max([m["step"] for m in run_folder.read_metrics(workdir)], default=0)

    try:
        end = time.monotonic() + 200
        while last_step() < 5:
            assert all(process.poll() is None for process in started)
            assert time.monotonic() < end
            time.sleep(0.01)
        steps.append(last_step())
        for index in signalled:
            started[index].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [143, 143], outputs
    assert not any("Traceback" in errors for _, errors in outputs)
    run = run_folder.read_run(workdir)
    (saved,) = checkpoint.finished_steps(workdir)
    assert (run["status"], run["step"], run["saved_step"]) == ("stopped", saved, saved)
    assert saved - steps[0] < 20, "agreed at once, not at the next tenth step"
    checkpoint.check_step(workdir, saved)
    parts = [path.name for path in workdir.glob("checkpoints/*/state/ocdbt*")]
    assert sorted(parts) == ["ocdbt.process_0", "ocdbt.process_1"]


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGKILL, "connection is closed"), (signal.SIGSTOP, "silent for 20 s")],
)
@pytest.mark.parametrize("when", ["compiling", "training", "saving", "evaluating"])
def test_a_lost_process_ends_the_others(tmp_path, lost, number, how, when):
    workdir = tmp_path / "run"
    started = start_two_processes(
        "train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *OVERRIDES,
        "--config.train.num_steps=1000",
        f"--config.checkpoint.every_steps={1 if when == 'saving' else 1000}",
        f"--config.validation.every_steps={1 if when == 'evaluating' else 1000}",
    )
    try:
        end = time.monotonic() + 400
        while not (
            run_folder.read_run(workdir).get("status") == "running"
            and (when == "compiling" or len(run_folder.read_metrics(workdir)) > 2)
        ):
            assert all(process.poll() is None for process in started)
            assert time.monotonic() < end
            time.sleep(0.01)
        started[lost].send_signal(number)
        signalled = time.monotonic()
        _, errors = started[1 - lost].communicate(timeout=60)
        assert time.monotonic() - signalled < 30
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert started[1 - lost].returncode == 75, errors
    assert errors.splitlines()[-1].startswith(f"rfjax: process {lost} of 2 is gone (")
    assert how in errors
    assert "Traceback" not in errors
    assert "Check failure" not in errors
    assert run_folder.read_run(workdir)["status"] == "failed"
