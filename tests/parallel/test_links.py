# SPDX-License-Identifier: Apache-2.0
"""Who is missing, who is gone: real connections, of processes and of threads."""

import concurrent.futures
import contextlib
import importlib
import os
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rfjax import main
from rfjax.errors import UserError
from rfjax.parallel import agreement, links, processes


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Process(links.Links):
    """The connections of a process that is played by a thread."""

    def __init__(self, address, index, count):
        self.said, self.ended = [], queue.Queue()
        super().__init__(
            address=address,
            index=index,
            count=count,
            say=self.said.append,
            end=lambda *verdict: self.ended.put(verdict),
        )
        opened.append(self)


opened = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while opened:
        opened.pop().close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(links, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(links, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(links, "FLUSH_SECONDS", 0.05)


def of_all(members, function):
    """What a function of each process returns when all call it at once."""
    with concurrent.futures.ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(function, members))


@pytest.fixture
def three(quick):
    address = free_address()
    members = [Process(address, index, 3) for index in range(3)]
    of_all(members, lambda each: each.join(each.index))
    return members


def test_all_get_the_values_of_all_in_order(three):
    assert (
        of_all(three, lambda each: each.share((each.index, "x")))
        == [[[0, "x"], [1, "x"], [2, "x"]]] * 3
    )
    assert of_all(three, lambda each: each.leave(seconds=None)) == [True] * 3
    three.pop().close()  # whoever ends now is not gone
    time.sleep(0.3)
    assert all(each.ended.empty() for each in three)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["closed", "silent"])
def test_all_others_hear_of_one_that_is_gone(three, lost, how):
    victim, awake = three.pop(lost), threading.Event()
    if how == "closed":

        def die():
            """As the kernel does for it: all at once, and nothing is said any more."""
            victim._over = True
            for writer in list(victim._writers.values()):
                writer.close()

        victim._loop.call_soon_threadsafe(die)
    else:  # as a process that is stopped
        victim._loop.call_soon_threadsafe(awake.wait)
    for each in three:
        text, status = each.ended.get(timeout=5)
        assert text.startswith(f"process {lost} of 3 is gone (")
        assert how in text
        assert status == 75
        assert each.first_is_gone == (lost == 0)
    awake.set()


def test_all_others_follow_one_that_ends_alone(three):
    three[1].announce_end(143)
    start = time.monotonic()
    for each in (three[0], three[2]):
        text, status = each.ended.get(timeout=5)
        assert text.startswith("process 1 of 3 ended with exit status 143")
        assert status == 143
    assert time.monotonic() - start > 0.4, "they may save first"
    assert three[1].ended.empty()


def test_an_error_that_another_explains_is_not_reported(three):
    three[2].announce_end(1)
    try:
        raise RuntimeError("connection closed by peer")
    except RuntimeError:
        three[0].follow(seconds=0.2)
    assert three[0].ended.get_nowait()[0].startswith("process 2 of 3 ended")
    try:
        raise UserError("refused here as well")
    except UserError:
        three[1].follow(seconds=0.2)
    assert three[1].ended.empty()


def test_numbers_are_given_once_and_addresses_free(quick):
    address = free_address()
    first, second, other = (Process(address, index, 3) for index in (0, 1, 1))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        joins = [pool.submit(each.join, 0) for each in (first, second)]
        while not (first._missing == [2] and second._missing == [2]):
            time.sleep(0.01)
        with pytest.raises(UserError, match="process 1 is here already; give all"):
            other.join(0)
        with pytest.raises(UserError, match="process 7 is not one of them; give all"):
            Process(address, 7, 8).join(0)
        joins.append(pool.submit(Process(address, 2, 3).join, 0))
        assert [join.result(timeout=5) for join in joins] == [[0, 0, 0]] * 3
    with pytest.raises(UserError, match="must have a free port, .*in use"):
        Process(address, 0, 3).join(0)


def test_one_that_waits_alone_says_so_and_ends(quick, monkeypatch, capsys):
    monkeypatch.setattr(links, "NOTICE_SECONDS", 0.2)
    monkeypatch.setattr(links, "LIMIT_SECONDS", 2.0)
    importlib.import_module("rfjax.commands.evaluate")  # takes longer than that
    address = free_address()
    for name, value in zip(processes.VARIABLES, (address, "3", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(main.run, ["evaluate", "--workdir=absent"])
        third = Process(address, 2, 3)
        with pytest.raises(links.MissingProcesses, match="process 1 is missing at"):
            third.join(0)
        assert waiting.result() == 75
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(
        "rfjax evaluate: has waited 0.2 s for the 3 processes of the job: process"
    )
    assert f"process 1 is missing at {address}" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    monkeypatch.setattr(links, "LIMIT_SECONDS", 0.1)
    lonely = free_address()
    with pytest.raises(UserError, match=f"process 0 does not answer at {lonely}"):
        Process(lonely, 1, 2).join(0)


def test_what_differs_is_named_with_who_has_it():
    same = {"config.seed": 1, "data": "abc"}
    agreement.check_same([same, dict(same), dict(same)])
    with pytest.raises(UserError) as refusal:
        agreement.check_same([same, {"data": "abd"}, same | {"data": "abd"}])
    assert "config.seed: 1 in processes 0, 2, None in process 1; " in str(refusal.value)
    assert "data: 'abc' in process 0, 'abd' in processes 1, 2; st" in str(refusal.value)


def test_folders_are_compared_by_what_they_show(three, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "APPEAR_SECONDS", 0.1)
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b")

    def refusals(*folders):
        def check(each):
            try:
                agreement.check_shared(
                    tmp_path / folders[each.index], share=each.share, field="workdir"
                )
            except UserError as error:
                return str(error)

        found = set(of_all(three, check))
        assert sorted(os.listdir(tmp_path)) == ["b", "link"]
        assert not any((tmp_path / "b").iterdir())
        (one,) = found
        return one

    assert refusals("b", "b", "link") is None
    assert refusals("new/run", "new/run", "new/run") is None
    assert "process 0 (" in refusals("run", "run", "other")
    assert "does not see what process 2 writes" in refusals("run", "run", "b/run")


SCRIPT = """
import os, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from rfjax import main, stopping
from rfjax.parallel import processes

index = os.environ["JAX_PROCESS_ID"]
sys.argv[0] = "rfjax"
with stopping.handling() as stop, stop.last_words(print):
    processes.start(say=print, end=stopping.end_process)
    stop.follow_others = processes.follow
    processes.NEWS_SECONDS = 0.2
    os.chdir(sys.argv[1 + int(index)])
    common = ["train", f"--config={sys.argv[3]}"]
    print(main.run([*common, "--workdir=run", f"--config.seed={index}"]))
    print(main.run([*common, "--workdir=run"]))
    while True:
        try:
            multihost_utils.process_allgather(np.float32(1))
        except Exception:
            stop.raise_again()
            raise
        print("ready", flush=True)
"""


def test_real_processes_refuse_and_follow(tmp_path):
    """They differ in seed, share no folder, and then the first is killed."""
    config = main.__file__.replace("rfjax/main.py", "configs/debug.py")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    environ = os.environ | {
        "XLA_FLAGS": "",
        processes.ADDRESS: free_address(),
        processes.COUNT: "2",
    }
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), *folders, config]
    with contextlib.ExitStack() as stack:
        started = []
        for index in map(str, range(2)):
            process = subprocess.Popen(
                command, env=environ | {processes.INDEX: index}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        first, other = started
        printed = iter(other.stdout.readline, "ready\n")
        statuses = [line.strip() for line in printed if "Gloo" not in line]
        first.send_signal(signal.SIGKILL)
        out, errors = other.communicate(timeout=30)
    assert statuses == ["1", "1"], errors
    assert other.returncode == 75, errors
    seeds, apart, gone = [line for line in errors.splitlines() if line]
    assert "differ in config.seed: 0 in process 0, 1 in process 1; start" in seeds
    assert "workdir must be one folder that all processes share" in apart
    assert gone.startswith("rfjax: process 0 of 2 is gone (its connection is")
    assert out.splitlines()[-1] == "failed", "the last words"
    assert not any(any(folder.iterdir()) for folder in folders)
