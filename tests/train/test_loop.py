# SPDX-License-Identifier: Apache-2.0
"""Runs that are stopped, killed, damaged or confused with others."""

import collections
import contextlib
import gc
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tqdm import tqdm

from rfjax import checkpoint, commands, main, run_folder, stopping
from rfjax.config import from_config_dict, load_config
from rfjax.config_files import apply_overrides, load_config_file
from rfjax.errors import StorageError
from rfjax.train.loop import advance

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.model.depth=1",
    "--config.data.latent_shape=[4, 4, 4]",
    "--config.model.latent_channels=4",
    "--config.train.num_steps=24",
    "--config.train.global_batch_size=8",
    "--config.train.log_every_steps=4",
    "--config.optimizer.warmup_steps=2",
    "--config.optimizer.cooldown_steps=4",
    "--config.checkpoint.every_steps=8",
    "--config.validation.every_steps=8",
    "--config.validation.num_samples=8",
    "--config.validation.batch_size=8",
]
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def make_config(*overrides):
    fields = load_config_file(str(ROOT / "configs" / "debug.py"))
    return from_config_dict(apply_overrides(fields, [*SMALL, *overrides]))


def train(workdir, *overrides):
    lines = []
    commands.train(make_config(*overrides), workdir=workdir, report=lines.append)
    return lines


def params_of(workdir, *, step=None, weights="raw"):
    from rfjax.models import make_model

    network = make_model(load_config(workdir).model)
    return checkpoint.restore_params(
        workdir,
        network.abstract_params(),
        weights=weights,
        step=step,
    )


def assert_equal_to_the_bit(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(workdir)
    return workdir


def losses(workdir):
    return [
        (line["step"], line["train/loss"])
        for line in run_folder.read_metrics(workdir)
        if "train/loss" in line
    ]


def test_a_run_leaves_what_it_should(uninterrupted):
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["validation_protocol"] == "val_v1"
    assert checkpoint.finished_steps(uninterrupted) == [16, 24]
    assert [step for step, _ in losses(uninterrupted)] == [4, 8, 12, 16, 20, 24]
    validations = [
        line for line in run_folder.read_metrics(uninterrupted) if "val/loss" in line
    ]
    assert [line["step"] for line in validations] == [8, 16, 24]
    assert {"val_ema/loss", "val/loss_t0", "val_ema/loss_t7"} <= set(validations[0])
    assert validations[-1]["val/loss"] < validations[0]["val/loss"]
    assert validations[-1]["samples"] == 24 * 8
    assert {line["val_ema/num_samples"] for line in validations} == {8}


def run_cli(workdir, *overrides, **options):
    return subprocess.Popen(
        ["env", "--default-signal=HUP,INT",  # the tests may run under nohup
         sys.executable, "-m", "rfjax.main", "train", "--config=configs/debug.py",
         f"--workdir={workdir}", *SMALL, "--config.mesh.data=-1", *overrides],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | options.pop("env", {}), **options,
    )  # fmt: skip


def wait_for(condition, process, *, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def last_logged_step(workdir):
    try:
        return max((step for step, _ in losses(workdir)), default=0)
    except json.JSONDecodeError:
        return 0


def interrupt(process, workdir, *numbers):
    """Sends signals to a run under way; (exit status, standard error, seconds)."""
    wait_for(lambda: last_logged_step(workdir) >= 8, process)
    start = time.monotonic()
    for number in numbers:
        process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors, time.monotonic() - start


@pytest.mark.parametrize(
    ("numbers", "exit_status"),
    [
        ([signal.SIGKILL], -signal.SIGKILL),
        ([signal.SIGTERM, signal.SIGTERM], 143),  # SLURM sends two
        pytest.param([signal.SIGINT], 130, marks=pytest.mark.slow),
        pytest.param([signal.SIGHUP], 129, marks=pytest.mark.slow),
        pytest.param([signal.SIGINT, signal.SIGINT], 130, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes_to_the_bit(
    uninterrupted, tmp_path, numbers, exit_status
):
    workdir = tmp_path / "run"
    process = run_cli(workdir)
    returned, errors, seconds = interrupt(process, workdir, *numbers)
    run = run_folder.read_run(workdir)
    assert returned == exit_status, errors
    assert "Traceback" not in errors
    assert run["status"] == ("running" if exit_status < 0 else "stopped")
    assert seconds < 20, "a step, a save, and the end of Python: one second, if idle"
    if exit_status > 0 and numbers != [signal.SIGINT] * 2:
        assert run["step"] == checkpoint.finished_steps(workdir)[-1] >= 8
    report = train(workdir)
    assert run_folder.read_run(workdir)["status"] == "finished"
    if exit_status > 0 and numbers != [signal.SIGINT] * 2:
        assert any(f"resuming at step {run['step']}" in line for line in report)
    assert_equal_to_the_bit(params_of(workdir), params_of(uninterrupted))
    assert_equal_to_the_bit(
        params_of(workdir, weights="ema"), params_of(uninterrupted, weights="ema")
    )
    steps = [step for step, _ in losses(workdir)]
    assert steps == sorted(set(steps)), "no step is logged twice"
    assert losses(workdir)[-1] == losses(uninterrupted)[-1]


def test_a_signal_ends_a_compilation(tmp_path):
    workdir = tmp_path / "run"
    process = run_cli(workdir, env={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    wait_for(lambda: run_folder.read_run(workdir).get("status") == "running", process)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert time.monotonic() - start < 20
    assert "Traceback" not in errors
    assert run_folder.read_run(workdir)["status"] == "stopped"
    assert not losses(workdir), "not a step was made"
    assert not checkpoint.finished_steps(workdir)


@pytest.fixture
def stop_in_evaluation(monkeypatch):
    """Number -> from now on, that evaluation is interrupted by SIGTERM."""
    from rfjax.data import Dataset

    real, calls = Dataset.validation_batches, []

    def arrange(number):
        def batches(*args, **options):
            yield_from = real(*args, **options)

            def generate():
                calls.append(None)
                for batch in yield_from:
                    # The first pass compiles; raw and EMA weights take one each.
                    if len(calls) == 2 * number:
                        os.kill(os.getpid(), signal.SIGTERM)
                    yield batch

            return generate()

        monkeypatch.setattr(Dataset, "validation_batches", batches)

    yield arrange
    monkeypatch.undo()


@pytest.mark.parametrize(("number", "step"), [(1, 8), (3, 24)])
def test_a_validation_that_was_cut_short_is_made_up_for(
    uninterrupted, tmp_path, stop_in_evaluation, monkeypatch, number, step
):
    """In the middle, and after the last step."""
    workdir = tmp_path / "run"
    with monkeypatch.context():
        stop_in_evaluation(number)
        with pytest.raises(stopping.Stopped):
            train(workdir)
    monkeypatch.undo()
    run = run_folder.read_run(workdir)
    assert (run["status"], run["step"]) == ("stopped", step)
    assert checkpoint.finished_steps(workdir)[-1] == step
    validated = [m["step"] for m in run_folder.read_metrics(workdir) if "val/loss" in m]
    assert step not in validated
    train(workdir)
    assert run_folder.read_run(workdir)["status"] == "finished"

    def validations(folder):
        lines = run_folder.read_metrics(folder)
        return [(m["step"], m["val/loss"]) for m in lines if "val/loss" in m]

    assert validations(workdir) == validations(uninterrupted)
    assert_equal_to_the_bit(params_of(workdir), params_of(uninterrupted))


def test_another_seed_gives_other_parameters(uninterrupted, tmp_path):
    """Control of the equality above."""
    train(tmp_path / "run", "--config.seed=1")
    kernel = params_of(tmp_path / "run")["patch_embed"]["kernel"]
    assert np.abs(kernel - params_of(uninterrupted)["patch_embed"]["kernel"]).max() > (
        1e-3
    )


def test_resume_on_another_mesh(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints" / "24")
    train(workdir, "--config.mesh.data=2", "--config.mesh.fsdp=4")
    (_, expected), (_, actual) = losses(uninterrupted)[-1], losses(workdir)[-1]
    assert actual == pytest.approx(expected, rel=1e-5)


def test_a_finished_run_is_left_alone(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_text()
    train(uninterrupted)
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_a_run_killed_after_its_last_save_still_removes_the_others(
    uninterrupted, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    train(workdir, "--config.checkpoint.keep=1")  # as if both were there by a kill
    assert checkpoint.finished_steps(workdir) == [24]


def test_evaluate_repeats_the_last_validation(uninterrupted):
    metrics = commands.evaluate(uninterrupted).metrics
    logged = [
        line for line in run_folder.read_metrics(uninterrupted) if "val/loss" in line
    ][-1]
    for name in ("val/loss", "val_ema/loss", "val_ema/loss_t3"):
        assert metrics[name] == pytest.approx(logged[name], rel=1e-6)
    older = commands.evaluate(uninterrupted, step=16).metrics
    assert older["val/loss"] != pytest.approx(metrics["val/loss"], rel=1e-5)


def test_a_folder_of_another_config_is_refused(uninterrupted):
    message = r"another config \(optimizer\.learning_rate: 0\.003 there, 0\.1 here\)"
    with pytest.raises(ValueError, match=message):
        train(uninterrupted, "--config.optimizer.learning_rate=0.1")
    # Where and how often is not what: these may change.
    train(uninterrupted, "--config.checkpoint.keep=3", "--config.mesh.fsdp=2")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and holds no config\.json"):
        train(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "thesis.tex"]


@pytest.mark.parametrize("evidence", ["run.json", "metrics.jsonl", "both"])
def test_a_run_whose_checkpoints_vanished_is_not_started_anew(
    uninterrupted, tmp_path, evidence
):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    shutil.rmtree(workdir / "checkpoints")
    for name in {"run.json", "metrics.jsonl"} - {evidence}:
        if evidence != "both":
            (workdir / name).unlink()
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match=r"trained to step 24 and holds no checkpoint"):
        train(workdir)
    after = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    assert after == before
    # Control: it was only not mounted.
    shutil.copytree(uninterrupted / "checkpoints", workdir / "checkpoints")
    train(workdir)


def test_a_run_that_never_saved_has_lost_nothing(tmp_path):
    """Killed before its first checkpoint, it starts again by the same command."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    run_folder.update_run(tmp_path, status="running", saved_step=None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4}\n')
    run_folder.check_not_lost(tmp_path, saved_steps=[], checkpoints=folder)
    message = "trained to step 4 and holds no checkpoint"
    with pytest.raises(ValueError, match=message):
        run_folder.check_not_lost(
            tmp_path, saved_steps=[], checkpoints=tmp_path / "not-mounted"
        )
    run_folder.update_run(tmp_path, saved_step=0)  # imported weights
    with pytest.raises(ValueError, match=message):
        run_folder.check_not_lost(tmp_path, saved_steps=[], checkpoints=folder)
    run_folder.check_not_lost(tmp_path, saved_steps=[0], checkpoints=folder)


def test_saves_that_follow_at_once_are_remembered(tmp_path):
    """Killed while one save follows the other; then the checkpoints vanish."""
    workdir = tmp_path / "run"
    process = run_cli(
        workdir, "--config.train.num_steps=400", "--config.checkpoint.every_steps=4",
        "--config.optimizer.cooldown_steps=0",
    )  # fmt: skip
    wait_for(lambda: len(checkpoint.finished_steps(workdir)) > 1, process)
    process.kill()
    process.communicate()
    assert run_folder.read_run(workdir)["saved_step"] is not None
    for path in (workdir / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    before = (workdir / "metrics.jsonl").read_bytes()
    args = ["--config.train.num_steps=400", "--config.checkpoint.every_steps=4",
            "--config.optimizer.cooldown_steps=0"]  # fmt: skip
    with pytest.raises(ValueError, match="holds no checkpoint"):
        train(workdir, *args)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_two_processes_cannot_train_one_folder(tmp_path):
    with run_folder.exclusive(tmp_path / "run"):
        with pytest.raises(ValueError, match=r"in use by another training process"):
            train(tmp_path / "run")


# A failed read leaves tasks of orbax behind, which outlive their event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["largest", "_METADATA", "manifest.ocdbt"])
def test_a_truncated_checkpoint_is_reported(uninterrupted, tmp_path, name):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    state = workdir / "checkpoints" / "24" / "state"
    if name == "largest":
        files = [path for path in state.rglob("*") if path.is_file()]
        path = max(files, key=lambda path: path.stat().st_size)
    else:
        path = state / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = r"checkpoint 24 .* is damaged .*; delete .*24 to resume from step 16"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        train(workdir)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        commands.evaluate(workdir)
    shutil.rmtree(workdir / "checkpoints" / "24")
    train(workdir)
    assert_equal_to_the_bit(params_of(workdir), params_of(uninterrupted))


def test_no_flipped_bit_is_restored(uninterrupted, tmp_path):
    """300 of them, over all files of a checkpoint: reported, or without effect."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    folder = workdir / "checkpoints" / "24"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rng = np.random.default_rng(0)
    messages, unnoticed = [], collections.Counter()
    for number in range(300):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        name = path.relative_to(folder).as_posix()
        try:
            checkpoint.check_step(workdir, 24)
            unnoticed[name] += 1
            if unnoticed[name] < 4:  # each takes a quarter of a second
                assert_equal_to_the_bit(params_of(workdir), params_of(uninterrupted))
        except checkpoint.CheckpointError as error:
            messages.append((name, str(error)))
        path.write_bytes(whole)
    # Orbax writes these after everything else; they hold times, and no values.
    assert set(unnoticed) <= {"_CHECKPOINT_METADATA", "commit_success.txt"}
    assert len(messages) > 200
    assert all(name in message for name, message in messages)
    checkpoint.check_step(workdir, 24)  # control: none of them is left


def as_an_older_rfjax_saved_it(folder):
    """Without checksums, and without the mark of one that writes them."""
    (folder / "checksums.json").unlink(missing_ok=True)
    path = folder / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace("StateHandler", "StandardHandler"))


def test_verify_names_the_damaged_files_of_every_checkpoint(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    (workdir / "checkpoints" / "16" / "data" / "metadata").unlink()
    lines = []
    found = commands.verify(workdir=workdir, report=lines.append)
    missing = "data/metadata cannot be read (No such file or directory)"
    assert found.damage == {"checkpoint 16": [missing], "checkpoint 24": []}
    assert "checkpoint 16: DAMAGED: data/metadata" in lines[0]
    assert lines[1].startswith("checkpoint 24: verified, ")
    assert main.run(["verify", f"--workdir={workdir}"]) == 1
    assert main.run(["verify", f"--workdir={workdir}", "--step=24"]) == 0
    (workdir / "checkpoints" / "24" / "checksums.json").unlink()
    metadata = workdir / "checkpoints" / "24" / "_CHECKPOINT_METADATA"
    mark = "rfjax.checkpoint.handler.StateHandler"
    assert mark in metadata.read_text()
    # As it was called when checkpoints first had checksums.
    older = metadata.read_text().replace(mark, "rfjax.checkpoint._StateHandler")
    metadata.write_text(older)
    found = commands.verify(workdir=workdir, step=24, report=lines.append)
    assert found.damage == {"checkpoint 24": ["checksums.json is missing"]}
    for step in (16, 24):
        as_an_older_rfjax_saved_it(workdir / "checkpoints" / str(step))
    lines.clear()
    assert commands.verify(workdir=workdir, report=lines.append).exit_status == 0
    assert all("saved without checksums, cannot be verified" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "data/metadata",
            '{"global_next_index": 193}',
            r"position .* 193}, which",
        ),
        (None, None, r"it holds step 24 and .* which must be 20 and 160"),
    ],
)
def test_a_state_of_another_step_is_refused(
    uninterrupted, tmp_path, name, content, message
):
    """Even where no checksum tells: the position must be steps times batch."""
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    folder = workdir / "checkpoints" / "24"
    as_an_older_rfjax_saved_it(folder)
    if name is None:
        shutil.rmtree(workdir / "checkpoints" / "16")
        folder.rename(workdir / "checkpoints" / "20")
    else:
        (folder / name).write_text(content)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        train(workdir)


def test_an_unfinished_save_is_named(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted, workdir)
    folder = workdir / "checkpoints"
    (folder / "24").rename(folder / "24.orbax-checkpoint-tmp")
    message = r"24 cannot be read: its save was interrupted .* of the steps \[16\]"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        commands.evaluate(workdir, step=24)
    with pytest.raises(checkpoint.CheckpointError, match=r"holds none of that step"):
        commands.evaluate(workdir, step=99)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        commands.evaluate(tmp_path)
    train(workdir)
    assert_equal_to_the_bit(params_of(workdir), params_of(uninterrupted))


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path):
    from rfjax.train.divergence import TrainingDiverged

    message = r"must stay finite, got .* at step .*lower optimizer\.learning_rate"
    with pytest.raises(TrainingDiverged, match=message):
        train(
            tmp_path / "run",
            "--config.optimizer.learning_rate=1e30",
            "--config.optimizer.clip_norm=1e30",
        )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "diverged"


LONGER = ("--config.train.num_steps=400", "--config.optimizer.cooldown_steps=0")


@contextlib.contextmanager
def file_size_limit(num_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_save_that_fails_is_noticed_at_once_and_leaves_nothing(tmp_path, capfd):
    """Under a limit of file sizes; not only when the next save is due."""
    workdir = tmp_path / "run"
    args = (*LONGER, "--config.checkpoint.every_steps=1000")
    message = (
        r"room for checkpoint 2 \(\d+\.\d MB\), got files of up to 100\.0 kB \(File"
    )
    with file_size_limit(100_000), pytest.raises(StorageError, match=message):
        train(workdir, *args, "--config.checkpoint.keep_steps=[2]")
    run = run_folder.read_run(workdir)
    assert (run["status"], run["saved_step"]) == ("failed", None)
    assert losses(workdir)[-1][0] < 400
    assert not list((workdir / "checkpoints").iterdir())
    gc.collect()
    errors = capfd.readouterr().err
    for noise in ("Event loop is closed", "never retrieved", "Traceback"):
        assert noise not in errors


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)]
    mount = ["mount", *options]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True).returncode
    ):
        pytest.skip("only the administrator can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_goes_on_once_there_is_room(
    uninterrupted, small_disk
):
    workdir = small_disk / "run"
    process = run_cli(workdir)
    wait_for(lambda: checkpoint.finished_steps(workdir), process)
    process.send_signal(signal.SIGSTOP)  # or it might finish before the disk is full
    filler = small_disk / "theirs"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    process.send_signal(signal.SIGCONT)
    start = time.monotonic()
    _, errors = process.communicate(timeout=240)
    assert time.monotonic() - start < 20, "no thread waits for another"
    assert process.returncode == 1
    said = errors.split("\r")[-1].splitlines()
    assert re.fullmatch(
        r"rfjax train: .* must have room for .*same command again\.", said[-1]
    )
    assert "Traceback" not in errors
    run = run_folder.read_run(workdir)
    assert run["status"] == "failed"
    assert (workdir / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert {p.name for p in (workdir / "checkpoints").iterdir()} <= {"8", "16"}
    filler.unlink()
    train(workdir)
    assert_equal_to_the_bit(params_of(workdir), params_of(uninterrupted))


def test_half_written_metrics_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert run_folder.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    run_folder.trim_metrics(tmp_path, last_step=1)
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "ema.every_steps=25",
            r"ema\.every_steps must be at most train\.num_steps = 24",
        ),
        ("mesh.fsdp=3", r"needs a multiple of 3 devices, 8 are visible"),
        ("train.global_batch_size=9", r"global_batch_size must be a multiple of"),
        (
            "model.context_dim=7",
            r"model\.context_dim must be 32 for data set synthetic",
        ),
        ("model.patch_size=3", r"patch_size must divide the latents, got 3"),
        ("model.max_grid_tokens=1", r"model\.max_grid_tokens must be at least 2"),
        ("validation.num_samples=1000", r"must be between 1 and the 64 records"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, override, message
):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", f"--config.{override}")
    assert not (tmp_path / "run").exists()


def test_a_start_is_summed_up_in_a_line(uninterrupted):
    lines = train(uninterrupted, "--config.checkpoint.keep=3")
    summary = r"depth 1, [\d,]+ parameters in \d+ arrays, on 8 cpu devices \(data=8\)"
    assert re.match(summary, lines[0])
    assert len(lines) == 3


def test_the_rate_begins_after_the_first_step():
    """Which compiles, for minutes."""
    text = io.StringIO()
    bar = tqdm(total=99, initial=9, file=text, mininterval=0, ascii=True)
    time.sleep(1)
    advance(bar, is_first=True)
    assert "10/99 [00:00<?, ?it/s]" in text.getvalue().split("\r")[-1]
    for _ in range(5):
        time.sleep(0.02)
        advance(bar, is_first=False)
    assert bar.n == 15
    assert bar.format_dict["elapsed"] < 0.9
    assert bar.format_dict["rate"] > 10
    bar.close()
