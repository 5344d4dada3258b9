# SPDX-License-Identifier: Apache-2.0
"""What killed processes left unfinished is removed by the next, and nothing else."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from rfjax import partial_files, whole_files

WRITE = """
import os, signal, sys
from rfjax import whole_files
with whole_files.new_folder("out") as folder, whole_files.replacing("a.json") as file:
    (folder / "half.txt").write_text("half")
    file.write_text("half")
"""


def run(script, cwd):
    """The exit status of a script."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, cwd=cwd, timeout=60).returncode


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def write_both(folder):
    with whole_files.new_folder(folder / "out") as out:
        (out / "whole.txt").write_text("whole")
    whole_files.write_text(folder / "a.json", "whole")


def test_two_that_finish_moving_do_it_together(tmp_path, monkeypatch):
    out, move = tmp_path / "out", os.replace
    (out / "work" / "done").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (out / "work" / "done" / name).write_text(name)

    def overtaken(*args):
        monkeypatch.setattr(os, "replace", move)
        partial_files.finish_moving(out / "work")
        move(*args)

    monkeypatch.setattr(os, "replace", overtaken)
    partial_files.move_content(out / "work" / "done")
    assert names(out) == ["a", "b", "c", "work"]
    assert not names(out / "work")


def test_only_the_dead_lose_what_they_left(tmp_path):
    kill = "    os.kill(os.getpid(), signal.SIGKILL)"
    assert run(WRITE + kill, tmp_path) == -signal.SIGKILL
    left = names(tmp_path)
    assert len(left) == 2, "control: something is left"
    assert all(map(partial_files.is_partial, left))
    others = [
        ".out.partial-000000abcdef",  # of another host
        ".a.partial-000000abcdef.json",
        ".out2" + left[1].removeprefix(".out"),  # of another name
        ".out.partial-1234",
    ]
    for name in others:
        (tmp_path / name).write_text("of others")
    wait = "    print(flush=True)\n    sys.stdin.read()"
    live = subprocess.Popen(
        [sys.executable, "-c", WRITE + wait],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    live.stdout.readline()
    held = sorted({*names(tmp_path)} - {*others})
    assert len(held) == 2, "the second removed what the first left"
    assert not {*held} & {*left}
    with pytest.raises(
        ValueError, match="out must not be in use, .* process is writin"
    ):
        write_both(tmp_path)
    assert {*held} <= {*names(tmp_path)}
    live.communicate(timeout=30)  # it ends
    assert live.returncode == 0
    assert (tmp_path / "out" / "half.txt").exists()
    assert names(tmp_path) == sorted([*others, "a.json", "out"])


def test_a_file_system_without_locks_keeps_everything(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    assert run(WRITE + "    os.kill(os.getpid(), 9)", tmp_path) == -signal.SIGKILL
    left = names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(partial_files.fcntl, "flock", refuse)
        write_both(tmp_path)
    assert names(tmp_path) == sorted([*left, "a.json", "out"])
    (tmp_path / "out" / "whole.txt").unlink()
    write_both(tmp_path)
    assert names(tmp_path) == ["a.json", "out"], "control: with locks they go"


@pytest.mark.parametrize("num_moves", range(4))
def test_a_move_that_was_cut_short_goes_on(tmp_path, num_moves):
    """Killed at any moment, the folder that was there is empty, or in the end whole."""
    (tmp_path / "out").mkdir()
    script = f"""
    import os
    from rfjax import partial_files, whole_files
    move, left = os.replace, [{num_moves}]

    def move_or_die(*args):
        if left[0] == 0:
            os.kill(os.getpid(), 9)
        left[0] -= 1
        move(*args)

    os.replace = move_or_die
    with whole_files.new_folder("out") as folder:
        (folder / "shards").mkdir()
        (folder / "a.npz").write_text("a")
        (folder / "rfjax.json").write_text("says what it holds")
    """
    whole = ["a.npz", "rfjax.json", "shards"]
    status = run(script, tmp_path)
    assert status == (0 if num_moves == 3 else -signal.SIGKILL)
    moved = {*names(tmp_path / "out")} & {*whole}
    assert len(moved) == num_moves
    assert "rfjax.json" not in moved or num_moves == 3, "it comes last"
    with pytest.raises(
        ValueError, match=r"empty folder, got .* with a\.npz, rfjax\.js"
    ):
        whole_files.check_free(tmp_path / "out", field="out")
    assert names(tmp_path / "out") == whole
    assert names(tmp_path) == ["out"]
