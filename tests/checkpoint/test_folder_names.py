# SPDX-License-Identifier: Apache-2.0
"""What the folders of a run may be called, and what may lie in them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfjax import checkpoint, main, run_folder
from rfjax.train.state import TrainState

ROOT = Path(__file__).parents[2]


def save(workdir, value, *, step=1):
    params = {"w": jnp.full(3, value, jnp.float32)}
    state = TrainState(
        step=jnp.int32(step), params=params, ema_params=params, opt_state={}
    )
    config = checkpoint.CheckpointConfig()
    checkpoints = checkpoint.Checkpoints(workdir, config=config)
    checkpoints.save(step, state, data_position={"step": step})
    checkpoints.close()
    return state


@pytest.mark.parametrize(
    "name",
    ["run[v2]", "[!a]", "r*", "r?", "**", "{a}", "a b", "new\nline", "é日本", "100%25",
     "%s", "$x", "-dash", "a#b?c=d", "a:b@2", "x[0:3]", "'\"`;&<>|", "a" * 250],
)  # fmt: skip
def test_a_run_may_have_any_name(tmp_path, name):
    # Beside runs that patterns of these names match.
    for other in ("runv", "r1", "rr", "a", "b"):
        (tmp_path / other / "checkpoints").mkdir(parents=True)
    if name == "r*":
        save(tmp_path / "r1", 1.0)
    state = save(tmp_path / name, 2.0)
    assert checkpoint.finished_steps(tmp_path / name) == [1]
    assert checkpoint.find_damage(tmp_path / name, 1) == []
    shapes = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    found = checkpoint.restore_params(tmp_path / name, shapes, weights="raw")
    np.testing.assert_array_equal(found["w"], 2.0)
    config = checkpoint.CheckpointConfig()
    checkpoints = checkpoint.Checkpoints(tmp_path / name, config=config)
    restored, _ = checkpoints.restore_newest(state)
    checkpoints.close()
    np.testing.assert_array_equal(restored.params["w"], 2.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("back\\slash", "must be a path in UTF-8 without a backslash"),
        ("not\udcffutf8", "must be valid UTF-8"),
        ("x" * 256, "names of at most 255 bytes"),
    ],
)
def test_other_names_are_refused_at_the_start(tmp_path, name, message, capsys):
    config = f"--config={ROOT}/configs/debug.py"
    assert main.run(["train", config, f"--workdir={tmp_path}/{name}/run"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run/", "./run", "new/../run", "link", "link/run"])
def test_a_run_folder_is_made_by_any_path(tmp_path, name):
    (tmp_path / "link").symlink_to("target")
    with run_folder.exclusive(Path(f"{tmp_path}/{name}")):
        pass
    assert (tmp_path / name / ".lock").is_file()


def lock_is_a_folder(workdir):
    (workdir / run_folder.LOCK_FILE).mkdir(parents=True)


def checkpoints_is_a_file(workdir):
    (workdir / "checkpoints").write_text("")


def checkpoints_leads_nowhere(workdir):
    (workdir / "checkpoints").symlink_to("nowhere")


def another_runs_checkpoint(workdir):
    save(workdir, 1.0, step=3000)


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lock_is_a_folder, r".lock must be a file, got a folder; move it away"),
        (checkpoints_is_a_file, "checkpoints must be a folder, got a file"),
        (
            checkpoints_leads_nowhere,
            "checkpoints must be a folder, got a file or a link",
        ),
        (
            another_runs_checkpoint,
            "up to step 60 (train.num_steps), got 3000, which is",
        ),
    ],
)
def test_what_cannot_be_its_own_is_named(tmp_path, arrange, message, capsys):
    arrange(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    config = f"--config={ROOT}/configs/debug.py"
    assert main.run(["train", config, f"--workdir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) in (before, [*before, tmp_path / ".lock"])


def test_only_numbers_are_steps(tmp_path):
    save(tmp_path, 1.0)
    for name in ("²", "٣", "03", "+4", "5_000", "old_6", " 7", "8.0"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "9").write_text("a file")
    assert checkpoint.finished_steps(tmp_path) == [1]
    save(tmp_path, 2.0, step=2)
    assert checkpoint.finished_steps(tmp_path) == [1, 2]
