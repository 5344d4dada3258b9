# SPDX-License-Identifier: Apache-2.0
"""No command removes what it did not write: every place that removes or replaces.

A new `rmtree`, `unlink`, `replace` or `rename` makes the first test fail until a test
here shows that other files next to it and below it survive.
"""

import ast
import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from rfjax import (
    checkpoint,
    checksums,
    commands,
    partial_files,
    run_folder,
    whole_files,
)
from rfjax.config import from_config_dict
from rfjax.config_files import load_config_file
from rfjax.scaling.study import sweep

ROOT = Path(__file__).parents[1]

OF_MODULES = {
    "os": {"remove", "unlink", "rmdir", "removedirs", "rename", "renames", "replace",
           "truncate"},
    "shutil": {"rmtree", "move"},
}  # fmt: skip
OF_PATHS = {"unlink", "rmdir", "rename"}

# Where the project removes or replaces -> what shows that nothing else is lost.
SHOWN_BY = {
    "whole_files.replacing": "test_a_file_is_written_next_to_others",
    "whole_files.new_folder": "test_a_folder_is_made_next_to_others",
    "partial_files.move_content": "test_a_folder_that_is_there_is_filled_in_place",
    "partial_files._taking": "test_only_the_dead_lose_what_they_left",
    "partial_files._remove": "test_only_the_dead_lose_what_they_left",
    "partial_files._move_entries": "test_a_move_that_was_cut_short_goes_on",
    "checkpoint.collector.remove_old": "test_a_checkpoint_with_notes_in_it_stays",
    "checkpoint.collector._remove_renamed": "test_a_checkpoint_with_notes_in_it_stays",
    "checkpoint.collector.remove_leftovers": "test_a_checkpoint_with_notes_in_it_stays",
    "checksums.join_parts": "test_parts_of_a_list_are_joined",
    "data.encode.merge._move_shards": "test_what_others_put_into_the_folder_stays",
    "data.encode.work_folder.publish": "test_what_others_put_into_the_folder_stays",
    "data.encode.work_folder.remove": "test_what_others_put_into_the_folder_stays",
    "data.encode.work_folder._remove_if_empty": (
        "test_what_others_put_into_the_folder_stays"
    ),
    "bench.checkpoint.measure_saving": "test_all_of_the_state_is_saved",
}


def removals(path):
    """(function, line) of each call in a file that removes or replaces files."""
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, node.func.value
        module = owner.id if isinstance(owner, ast.Name) else ""
        is_table = any(keyword.arg == "columns" for keyword in node.keywords)
        if name in OF_MODULES.get(module, ()) or (name in OF_PATHS and not is_table):
            inside = [f for f in functions if f.lineno <= node.lineno <= f.end_lineno]
            yield inside[-1].name if inside else "", node.lineno


def test_every_place_that_removes_or_replaces_is_known():
    found = set()
    for path in sorted((ROOT / "rfjax").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "rfjax").with_suffix("").parts)
        found |= {f"{module}.{function}" for function, _ in removals(path)}
        # Names imported on their own would escape the search.
        assert not re.search(r"from (os|shutil) import", path.read_text()), path
    assert found == set(SHOWN_BY)
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert all(f"def {name}(" in tests for name in SHOWN_BY.values())
    scripts = [ROOT / "Makefile", *(ROOT / "launch").iterdir(), ROOT / ".ci" / "run"]
    for path in scripts:
        assert not re.search(r"^\s*rm |[;&|] *rm ", path.read_text(), re.M), path


@pytest.fixture
def theirs(tmp_path):
    """Makes files of others, and checks at the end that they are intact."""
    files = {}

    def put(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"years of work in {name}")
        files[path] = path.read_bytes()
        return path

    yield put
    assert {path: path.read_bytes() for path in files} == files


def fail_in(context):
    with pytest.raises(ZeroDivisionError), context:
        raise ZeroDivisionError


def test_a_file_is_written_next_to_others(tmp_path, theirs):
    # As names of unfinished files were once made.
    theirs(f".{os.getpid()}.a.json")
    theirs("a.json.txt")
    target = theirs("elsewhere/a.json")
    whole_files.write_json(tmp_path / "a.json", 1)
    whole_files.write_json(tmp_path / "a.json", 2)
    fail_in(whole_files.replacing(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_text() == "2\n"
    # A folder is never taken for a file; the write fails and its content stays.
    with pytest.raises(OSError, match="directory"):
        whole_files.write_text(target.parent, "")
    assert sorted(path.name for path in tmp_path.glob("*a.json")) == [
        f".{os.getpid()}.a.json",
        "a.json",
    ]


def test_links_and_devices_stay_what_they_are(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.txt").write_text("old")
    (tmp_path / "link").symlink_to("disk/a.txt")
    whole_files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "a.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "stdout").symlink_to("pipe")  # as /dev/stdout is
    for name in ("pipe", "stdout"):
        whole_files.write_text(tmp_path / name, f"through {name}")
        assert os.read(reader, 99) == f"through {name}".encode()
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_that_is_taken_is_not_used(tmp_path, theirs):
    assert whole_files.unused(tmp_path / "sample.png").name == "sample.png"
    theirs("sample.png")
    theirs("sample-2.png")
    (tmp_path / "sample-3.png").symlink_to("nowhere")
    assert whole_files.unused(tmp_path / "sample.png").name == "sample-4.png"


def test_a_folder_is_made_next_to_others(tmp_path, theirs):
    theirs(f".out.partial-{os.getpid()}/a.txt")
    theirs("beside/a.txt")
    fail_in(whole_files.new_folder(tmp_path / "out"))
    with whole_files.new_folder(tmp_path / "out") as folder:
        (folder / "ours.txt").write_text("")
    theirs("out/theirs.txt")
    with (
        pytest.raises(ValueError, match="new or empty folder"),
        whole_files.new_folder(tmp_path / "out"),
    ):
        pass
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(whole_files.new_folder(tmp_path / "new"))
        (folder / "half.txt").write_text("")
        partial_files.remove_unfinished()  # the process ends here
        assert not folder.exists()
        stack.pop_all()


def test_a_folder_is_replaced_only_if_it_is_ours(tmp_path, theirs):
    out = tmp_path / "out"
    with whole_files.new_folder(out) as folder:
        (folder / "a.txt").write_text("old")
    with whole_files.new_folder(out, replaces=["a.txt", "b.txt"]) as folder:
        (folder / "a.txt").write_text("new")
    assert (out / "a.txt").read_text() == "new"
    theirs("out/c.txt")
    with pytest.raises(ValueError, match=r"no earlier report wrote \(c\.txt\)"):
        with whole_files.new_folder(out, replaces=["a.txt"]):
            pass
    assert (out / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_the_same_by_any_name(tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        path = tmp_path / "out" / ".." / "out"
        with whole_files.new_folder(path, replaces=["a.txt"]) as folder:
            (folder / "a.txt").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="must not be the current folder"):
        whole_files.check_free(out / "..", field="out")


def test_parts_of_a_list_are_joined(tmp_path, theirs):
    theirs("step/notes.txt")
    theirs("checksums.json.1")  # next to the folder, not in it
    step = tmp_path / "step"
    checksums.write(step, {}, part=0)
    checksums.join_parts(step, leave_out=())
    assert list(checksums.read(step)) == ["notes.txt"]


def save_one(folder, step, **config):
    """A checkpoint of one number, by a process of its own."""
    import jax.numpy as jnp

    from rfjax.train.state import TrainState

    checkpoints = checkpoint.Checkpoints(
        folder, config=checkpoint.CheckpointConfig(keep=1, **config)
    )
    params = {"w": jnp.ones(3)}
    state = TrainState(
        step=jnp.int32(step), params=params, ema_params=params, opt_state={}
    )
    checkpoints.save(step, state, data_position={"global_next_index": 0})
    checkpoints.close()


def test_requested_checkpoints_stay_when_nobody_requests_them_any_more(tmp_path):
    save_one(tmp_path, 1, keep_steps=(1, 5))
    save_one(tmp_path, 2)
    save_one(tmp_path, 3, keep_steps=(2,))  # late, but 2 is still there
    save_one(tmp_path, 4)
    assert checkpoint.finished_steps(tmp_path) == [1, 2, 4]
    assert checkpoint.find_damage(tmp_path, 1) == []
    checkpoint.inherit(tmp_path / "branch", source=tmp_path, step=1)
    (tmp_path / "checkpoints" / "1" / "kept").unlink()
    save_one(tmp_path, 5)
    save_one(tmp_path / "branch", 2)
    assert checkpoint.finished_steps(tmp_path) == [2, 5]
    assert checkpoint.finished_steps(tmp_path / "branch") == [2], "a wish of the trunk"


def test_a_checkpoint_with_notes_in_it_stays(tmp_path, theirs):
    """Old checkpoints are removed, but not with other files in them."""
    save_one(tmp_path, 1)
    save_one(tmp_path, 2)
    assert checkpoint.finished_steps(tmp_path) == [2], "control: 1 was ours alone"
    theirs("checkpoints/2/state/notes.txt")
    theirs("checkpoints/notes.txt")
    theirs("checkpoints/1/thesis.tex")  # named like a step
    save_one(tmp_path, 3)
    assert checkpoint.finished_steps(tmp_path) == [1, 2, 3]
    # As older versions saved them: without a list, so only known names are ours.
    (tmp_path / "checkpoints" / "3" / "checksums.json").unlink()
    theirs("checkpoints/3/notes.txt")
    theirs("checkpoints/.1.removed/notes.txt")
    theirs("checkpoints/5.orbax-checkpoint-tmp.old/notes.txt")
    leftover = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "thesis.tex").write_text("years of work")
    # What killed saves and removals leave, which is ours.
    for name in ("2.orbax-checkpoint-tmp/state", ".9.removed-0123abcd/state"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    save_one(tmp_path, 4)
    assert checkpoint.finished_steps(tmp_path) == [1, 2, 3, 4]
    (kept,) = tmp_path.glob("checkpoints/4.orbax*kept*/thesis.tex")
    assert kept.read_text() == "years of work"
    assert not list(tmp_path.glob("checkpoints/2.orbax*"))
    assert not list(tmp_path.glob("checkpoints/.9.removed*"))


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/3/notes.txt", "x/y"])
def test_a_folder_that_is_no_run_keeps_its_files(tmp_path, theirs, name):
    theirs(name)
    config = from_config_dict(load_config_file(f"{ROOT}/configs/debug.py"))
    with pytest.raises(
        ValueError, match=r"line 1 must be a JSON|holds no config\.json"
    ):
        commands.train(config, workdir=tmp_path, report=lambda line: None)


def test_tables_of_others_keep_their_names(tmp_path, theirs):
    for folder, name in (("a", "runs.csv"), ("b", "sweep.json")):
        theirs(f"{folder}/{name}")
        with pytest.raises(ValueError, match=f"holds a {name} that no sweep wrote"):
            sweep.write_cells(
                [], {}, workdir=tmp_path / folder, complete=dict, may_change=tuple
            )
    theirs("coordinates.json")
    config = from_config_dict(load_config_file(f"{ROOT}/configs/debug.py"))
    with pytest.raises(ValueError, match=r"holds a coordinates\.json that `rfjax coo"):
        commands.coordinates(
            config, depths=[1, 2], num_steps=4, parameterisation="mup", out=tmp_path
        )


def test_metrics_are_cut_only_behind_the_checkpoint(tmp_path):
    lines = '{"step": 1, "note": "by hand"}\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 3}\n')
    run_folder.trim_metrics(tmp_path, last_step=2)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_the_demo_is_set_aside_not_deleted(tmp_path, theirs):
    theirs("runs/other/metrics.jsonl")
    (tmp_path / "runs" / "emoji").mkdir()
    (tmp_path / "runs" / "emoji" / "mine.txt").write_text("kept")
    subprocess.run(
        ["make", "-f", ROOT / "Makefile", "clean-demo"], cwd=tmp_path, check=True
    )
    assert not (tmp_path / "runs" / "emoji").exists()
    (moved,) = tmp_path.glob("demo-*/runs/emoji/mine.txt")
    assert moved.read_text() == "kept"
