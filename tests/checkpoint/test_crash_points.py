# SPDX-License-Identifier: Apache-2.0
"""Wherever a run is killed, the same command goes on, to the bit."""

import dataclasses
import functools
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rfjax import checkpoint, commands, run_folder
from rfjax.commands.job import make_job, make_stream, read_manifest
from rfjax.config import from_config_dict
from rfjax.config_files import apply_overrides, load_config_file
from rfjax.parallel.mesh import make_mesh

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OVERRIDES = [
    "--config.model.depth=1",
    "--config.data.latent_shape=[4, 4, 4]",
    "--config.model.latent_channels=4",
    "--config.train.num_steps=5",
    "--config.train.global_batch_size=8",
    "--config.train.log_every_steps=1",
    "--config.optimizer.warmup_steps=1",
    "--config.optimizer.cooldown_steps=1",
    "--config.checkpoint.every_steps=2",
    "--config.checkpoint.keep=1",
    "--config.validation.every_steps=4",
    "--config.validation.num_samples=8",
    "--config.validation.batch_size=8",
    "--config.metric_writers=[]",
]


@pytest.fixture(scope="module")
def config():
    fields = load_config_file(str(ROOT / "configs" / "debug.py"))
    return from_config_dict(apply_overrides(fields, OVERRIDES))


@pytest.fixture(scope="module")
def built(config):
    """The job of the run on one device: its steps are compiled once for all kills."""
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    manifest = read_manifest(config)
    stream = make_stream(config, mesh=mesh)
    return make_job(config, mesh=mesh, stream=stream, manifest=manifest), manifest


@pytest.fixture(scope="module")
def train(config, built):
    """Folder -> trains a run in it."""
    job, manifest = built

    def make(config):
        return dataclasses.replace(job, stream=make_stream(config)), manifest

    with pytest.MonkeyPatch.context() as patch:
        module = importlib.import_module("rfjax.commands.train")
        patch.setattr(module, "make_job_here", make)
        yield functools.partial(commands.train, config)


def snapshots_of_a_run(folder):
    """What a kill leaves at each change that a run makes in its folder, in order."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    library = folder / "snapshots.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "snapshots.c",
         "-ldl", "-lpthread"], check=True,
    )  # fmt: skip
    (folder / "snapshots").mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "rfjax.main", "train", "--config=configs/debug.py",
         f"--workdir={folder}/run", *OVERRIDES],
        cwd=ROOT, text=True, capture_output=True,
        env=os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "LD_PRELOAD": str(library),
            "WATCHED": str(folder / "run"),
            "SNAPSHOTS": str(folder / "snapshots"),
        },
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return sorted((folder / "snapshots").iterdir(), key=lambda path: int(path.name))


def outcome(workdir, job):
    """All that a run leaves, without times and the number of devices."""
    checkpoints = checkpoint.Checkpoints(workdir, config=job.checkpoint)
    state, position = checkpoints.restore_newest(job.abstract_state)
    checkpoints.close()
    files = sorted(
        str(path.relative_to(workdir))
        for path in [*workdir.iterdir(), *(workdir / "checkpoints").iterdir()]
    )
    metrics = [
        {name: value for name, value in line.items() if not name.startswith("perf/")}
        for line in run_folder.read_metrics(workdir)
    ]
    return {
        "files": files,
        "metrics": metrics,
        "run": run_folder.read_run(workdir) | {"num_devices": None},
        "config": json.loads((workdir / "config.json").read_text()),
        "position": position,
        "state": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)],
    }


def leave_unfinished(path, *, make):
    """Kills a process that is writing a file or folder, with a function of its name."""
    script = (
        "import os; from pathlib import Path; from rfjax import partial_files\n"
        f"with partial_files.{make}(Path({str(path)!r})) as partial:\n"
        "    os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", script])
    assert process.returncode == -9
    assert len(os.listdir(path.parent)) == 1


def test_a_start_that_was_killed_before_its_first_file_goes_on(tmp_path):
    leave_unfinished(tmp_path / "config.json", make="new_file")
    with run_folder.exclusive(tmp_path):
        run_folder.claim(tmp_path, {"seed": 0})
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]
    # Control: a file that no start leaves.
    (tmp_path / "config.json").rename(tmp_path / ".config.json.old")
    with pytest.raises(ValueError, match="not a run of rfjax"):
        run_folder.claim(tmp_path, {"seed": 0})


def test_a_checkpoint_that_was_half_taken_over_goes(tmp_path):
    leave_unfinished(tmp_path / "checkpoints" / "8", make="new_folder")
    checkpoint.Checkpoints(tmp_path, config=checkpoint.CheckpointConfig()).close()
    assert os.listdir(tmp_path / "checkpoints") == []


@pytest.mark.slow
def test_a_run_that_is_killed_anywhere_resumes_to_the_bit(
    tmp_path_factory, built, train
):
    job, _ = built
    folder = tmp_path_factory.mktemp("killed")
    snapshots = snapshots_of_a_run(folder)
    assert len(snapshots) > 200
    train(workdir=folder / "whole")
    expected = outcome(folder / "whole", job)
    assert outcome(folder / "run", job) == expected, "nobody was killed"
    failed = {}
    for snapshot in snapshots:
        left = sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*"))
        try:
            train(workdir=snapshot)
            found = outcome(snapshot, job)
            wrong = [name for name in expected if found[name] != expected[name]]
        except Exception as error:
            wrong = repr(error)
        if wrong:
            failed[snapshot.name] = (wrong, left)
            print(snapshot.name, wrong, left)
        shutil.rmtree(snapshot)
    print(f"{len(snapshots) - len(failed)} of {len(snapshots)} resume to the bit")
    assert not failed, failed
