# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are read while the run goes on and removes old ones."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax import checkpoint, commands
from rfjax.checkpoint import collector, pins
from rfjax.train.state import TrainState

ROOT = Path(__file__).parents[2]


def state_at(step):
    params = {"w": jnp.full(3, step, jnp.float32)}
    return TrainState(
        step=jnp.int32(step), params=params, ema_params=params, opt_state={}
    )


def save(workdir, *steps, keep=1):
    config = checkpoint.CheckpointConfig(keep=keep)
    checkpoints = checkpoint.Checkpoints(workdir, config=config)
    for step in steps:
        checkpoints.save(step, state_at(step), data_position={"step": step})
    checkpoints.close()


def read(workdir, step):
    shapes = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    return checkpoint.restore_params(workdir, shapes, weights="raw", step=step)["w"]


def test_what_is_read_stays_until_it_is_read(tmp_path):
    save(tmp_path, 1)
    with checkpoint.pinned(tmp_path) as step, checkpoint.pinned(tmp_path, 1):
        assert step == 1
        save(tmp_path, 2, 3)
        assert checkpoint.finished_steps(tmp_path) == [1, 3], "control: 2 was not read"
        np.testing.assert_array_equal(read(tmp_path, 1), 1)
    save(tmp_path, 4)
    assert checkpoint.finished_steps(tmp_path) == [4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_a_slow_removal_takes_nothing_that_has_come_since(tmp_path, monkeypatch):
    """As of large checkpoints on a network disk."""
    is_saved = threading.Event()

    def remove_late(workdir, *, steps):
        is_saved.wait(timeout=60)
        remove_old(workdir, steps=steps)

    remove_old = collector.remove_old
    monkeypatch.setattr(collector, "remove_old", remove_late)
    config = checkpoint.CheckpointConfig(keep=1)
    checkpoints = checkpoint.Checkpoints(tmp_path, config=config)
    for step in (1, 2, 3):
        checkpoints.save(step, state_at(step), data_position={"step": step})
    while 3 not in checkpoint.finished_steps(tmp_path):
        time.sleep(0.01)
    assert checkpoint.finished_steps(tmp_path) == [1, 2, 3]
    is_saved.set()
    checkpoints.close()
    assert checkpoint.finished_steps(tmp_path) == [3]


def test_a_killed_reader_holds_nothing(tmp_path):
    save(tmp_path, 1)
    script = (
        "import sys; from rfjax import checkpoint\n"
        f"with checkpoint.pinned({str(tmp_path)!r}):\n"
        "    print('reading', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout.readline() == b"reading\n"
    save(tmp_path, 2)
    assert checkpoint.finished_steps(tmp_path) == [1, 2], "control: it is being read"
    reader.kill()
    reader.communicate()
    save(tmp_path, 3)
    assert checkpoint.finished_steps(tmp_path) == [3]


def remove_once_chosen(monkeypatch, step):
    """Removes a checkpoint in the moment after a reader has chosen it."""

    def choose(workdir, asked=None):
        chosen = checkpoint.choose_step(workdir, asked)
        if chosen == step:
            shutil.rmtree(Path(workdir) / "checkpoints" / str(step))
        return chosen

    monkeypatch.setattr(pins, "choose_step", choose)


def test_what_is_gone_before_it_is_read_is_not_damaged(tmp_path, monkeypatch):
    save(tmp_path, 1, 2, 3, keep=3)
    remove_once_chosen(monkeypatch, 3)
    with checkpoint.pinned(tmp_path) as step:
        assert step == 2, "the next newest"
    remove_once_chosen(monkeypatch, 1)
    message = r"checkpoint 1 of .* was removed .* choose one of the steps \[2\]"
    with pytest.raises(checkpoint.CheckpointRemoved, match=message):
        read(tmp_path, 1)


def test_what_goes_while_it_is_read_is_not_damaged(tmp_path):
    """As where the trainer is on another machine, whose locks are not seen here."""
    save(tmp_path, 1, 2, keep=2)
    with checkpoint.pinned(tmp_path, 1):
        shutil.rmtree(tmp_path / "checkpoints" / "1")
        with pytest.raises(checkpoint.CheckpointRemoved, match="was removed while"):
            checkpoint.check_step(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):  # control
        read(tmp_path, 2)


def test_a_file_system_without_locks_can_be_read(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    save(tmp_path, 1)
    monkeypatch.setattr(pins.fcntl, "flock", refuse)
    np.testing.assert_array_equal(read(tmp_path, None), 1)
    save(tmp_path, 2)
    assert checkpoint.finished_steps(tmp_path) == [2]


@pytest.mark.slow
def test_all_readers_beside_a_run_that_saves_every_step(tmp_path):
    """None of them sees damage, and the run keeps its newest checkpoint in the end."""
    workdir = tmp_path / "run"
    trainer = subprocess.Popen(
        [sys.executable, "-m", "rfjax.main", "train", f"--workdir={workdir}",
         "--config=configs/debug.py", "--config.train.num_steps=80",
         "--config.checkpoint.every_steps=1", "--config.checkpoint.keep=1",
         "--config.validation.num_samples=32"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not checkpoint.finished_steps(workdir):
        assert trainer.poll() is None, trainer.communicate()
        time.sleep(0.1)
    steps = []
    while trainer.poll() is None:
        steps.append(commands.evaluate(workdir).metrics["step"])
        commands.export(workdir, out=tmp_path / f"export-{len(steps)}")
        assert commands.verify(workdir=workdir).exit_status == 0
    assert trainer.returncode == 0, trainer.communicate()
    assert len(set(steps)) > 1
    assert checkpoint.finished_steps(workdir) == [80]
