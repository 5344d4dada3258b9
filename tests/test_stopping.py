# SPDX-License-Identifier: Apache-2.0
"""Signals: what they ask for, what they interrupt, and the exit status they leave."""

import importlib
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rfjax import checkpoint, main, stopping
from rfjax.checkpoint.restore import readable

# The file whose function `rfjax verify` calls.
VERIFY = importlib.import_module("rfjax.commands.verify")

HEADER = """
import hashlib, os, signal, sys, time
from pathlib import Path
from rfjax import stopping, whole_files

def compile_something():  # a call that Python cannot interrupt, as XLA's compiler
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def ready():
    print("ready", flush=True)
"""


def run_script(body, *numbers, cwd, pause=0.3):
    """Sends signals to a script that prints ready; (status, stderr, seconds)."""
    process = subprocess.Popen(
        # The tests themselves may run under nohup.
        ["env", "--default-signal=HUP,INT", sys.executable, "-c",
         HEADER + textwrap.dedent(body)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n", process.communicate()
        start = time.monotonic()
        for index, number in enumerate(numbers):
            time.sleep(pause if index else 0)
            process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, errors, time.monotonic() - start


IN_PYTHON = """
with stopping.handling() as stop:
    try:
        with whole_files.new_folder("out") as folder:
            (folder / "half").write_text("half")
            ready()
            while True:
                time.sleep(1)
    except stopping.Stopped as stopped:
        sys.exit(stopped.exit_status)
"""
IN_THE_COMPILER = """
with stopping.handling() as stop, stop.last_words(Path("said").write_text):
    with whole_files.new_folder("out") as folder:
        (folder / "half").write_text("half")
        ready()
        compile_something()
"""
IN_A_CALLBACK = """
class Dropping:  # Python drops what is raised in here
    def __del__(self):
        ready()
        time.sleep(0.5)

with stopping.handling() as stop:
    try:
        Dropping()
        while True:
            time.sleep(1)
    except stopping.Stopped as stopped:
        sys.exit(stopped.exit_status)
"""
UNSAVED = """
with stopping.handling() as stop, stop.last_words(Path("said").write_text):
    stop.unsaved = True
    ready()
    while stop.requested is None:
        time.sleep(0.01)
    time.sleep(1.5)  # saving
    Path("saved").touch()
    stop.unsaved = False
    try:
        stop.raise_if_requested()
    except stopping.Stopped as stopped:
        sys.exit(stopped.exit_status)
"""


@pytest.mark.parametrize(
    "script",
    [IN_PYTHON, IN_THE_COMPILER, IN_A_CALLBACK],
    ids=["python", "C", "callback"],
)
@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ([signal.SIGTERM], 143),
        ([signal.SIGINT], 130),
        ([signal.SIGHUP], 129),
        ([signal.SIGTERM, signal.SIGTERM], 143),
    ],
)
def test_nothing_unsaved_ends_at_once_and_leaves_nothing_unfinished(
    script, numbers, status, tmp_path
):
    returned, errors, seconds = run_script(script, *numbers, cwd=tmp_path)
    # As shells have it: a second signal may come when Python has almost ended.
    assert (returned if returned >= 0 else 128 - returned) == status, errors
    assert "Traceback" not in errors
    assert seconds < 10, "the scripts would run forever"
    names = ["said"] if script is IN_THE_COMPILER else []
    assert [path.name for path in tmp_path.iterdir()] == names
    if script is IN_THE_COMPILER:
        assert (tmp_path / "said").read_text() == "stopped"


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], 143),
        ([signal.SIGHUP, signal.SIGTERM], 129),
        ([signal.SIGINT, signal.SIGTERM], 130),
        ([signal.SIGTERM, signal.SIGINT], 143),
    ],
)
def test_what_is_unsaved_is_saved_whatever_else_comes(numbers, status, tmp_path):
    returned, errors, _ = run_script(UNSAVED, *numbers, cwd=tmp_path)
    assert returned == status, errors
    assert (tmp_path / "saved").exists()
    assert errors.count("saving and stopping") == 1
    assert "Traceback" not in errors


def test_a_second_interrupt_does_not_wait(tmp_path):
    numbers = (signal.SIGINT, signal.SIGINT)
    script = UNSAVED.replace("sleep(1.5)", "sleep(25)")
    returned, errors, seconds = run_script(script, *numbers, cwd=tmp_path)
    assert returned == 130
    assert "Traceback" not in errors
    assert seconds < 10
    assert [path.name for path in tmp_path.iterdir()] == ["said"]


def test_a_hangup_under_nohup_has_no_effect(tmp_path):
    body = """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping.handling() as stop:
        ready()
        time.sleep(1)
    sys.exit(7 if stop.requested is None else 1)
    """
    assert run_script(body, signal.SIGHUP, cwd=tmp_path)[0] == 7


def test_handlers_and_wakeups_come_back():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stopping.handling() as outer, stopping.handling() as inner:
        assert outer is inner
        with pytest.raises(stopping.Stopped, match="stopped by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        assert outer.requested == signal.SIGTERM
        with pytest.raises(stopping.Stopped):
            inner.raise_if_requested()
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    with stopping.handling() as new:
        assert new.requested is None


def test_a_signal_after_the_end_changes_nothing(monkeypatch):
    """The command's status is known; it must not become a traceback."""

    class Late(stopping.StopSignals):
        @property
        def closed(self):
            return self.is_closed

        @closed.setter
        def closed(self, value):
            self.is_closed = value
            if value:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(stopping, "StopSignals", Late)
    monkeypatch.setattr(VERIFY, "verify", lambda: None)
    assert main.run(["verify"]) == 0


def test_a_terminal_that_is_gone_is_a_hangup(tmp_path):
    """Nothing can be printed then, and the status is still that of SIGHUP."""
    script = """
import signal, sys, time
from importlib import import_module
from rfjax import main
signal.signal(signal.SIGHUP, signal.SIG_DFL)
def wait():
    print("ready", flush=True)
    time.sleep(30)
import_module("rfjax.commands.verify").verify = wait
sys.argv = ["rfjax", "verify"]
sys.exit(main.run())
"""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-c", script],
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 999)
    os.close(ours)
    try:
        assert process.wait(timeout=20) == 129
    finally:
        process.kill()


def test_what_a_library_makes_of_a_stop_is_no_error_of_its_own(
    monkeypatch, tmp_path, capsys
):
    """An interrupted read must not look like a damaged checkpoint."""

    def read():
        with readable(tmp_path, 3):
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt as stopped:
                raise RuntimeError("error while reading array index") from stopped

    def fail():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise OSError("the loop is closed")

    for run in (read, fail):
        monkeypatch.setattr(VERIFY, "verify", run)
        assert main.run(["verify"]) == 143
        assert capsys.readouterr().err == "rfjax verify: stopped by SIGTERM\n"
    with pytest.raises(checkpoint.CheckpointError), readable(tmp_path, 3):
        raise RuntimeError("control: nobody asked to stop")


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_every_command_ends_with_the_status_of_its_signal(number, monkeypatch, capsys):
    def wait():
        signal.raise_signal(number)

    monkeypatch.setattr(VERIFY, "verify", wait)
    # The tests themselves may run under nohup.
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert main.run(["verify"]) == 128 + number
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert capsys.readouterr().err == (
        f"rfjax verify: stopped by {signal.Signals(number).name}\n"
    )
