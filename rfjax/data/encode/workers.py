# SPDX-License-Identifier: Apache-2.0
"""Does tasks of an encoding by several processes of this machine.

Each computes with a fixed number of threads, so that no result depends on how many
processes there are. One that dies is named, and another does its task again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rfjax import schema
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.task import Tasks
from rfjax.errors import UserError

HERE = 0  # workers: none, this process does the tasks
FEW_TASKS = 3  # up to which further processes take longer to start than they save
MOST_DEATHS = 3  # in one task
LEAVE_SECONDS = 5.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerFailed(RuntimeError):
    """A bug in a worker; the message is the traceback there."""


@dataclasses.dataclass(eq=False)
class _Worker:
    """A process, and what it is doing.

    Attributes:
      number: its place, from 1.
      process: of the operating system.
      task: number of its task; None while it has none.
      examples: of that task that are done.
    """

    number: int
    process: subprocess.Popen
    task: int | None = None
    examples: int = 0


def do_tasks(
    tasks: Tasks,
    given: Sequence[Mapping[str, Any]],
    *,
    num_workers: int,
    progress: Callable[[int], None],
    describe: Callable[[int], str],
    warn: Callable[[str], None],
) -> list[Any]:
    """Does tasks, in this process or by others.

    Args:
      tasks: of this process.
      given: what is to be done, as `Tasks.do` takes it.
      num_workers: processes; `HERE`: this one.
      progress: called with the number of examples done since the last call; negative
        if what a worker had done died with it.
      describe: a task of `given`, by its place, in words, as "shard 3".
      warn: told of workers that died.

    Returns:
      The result of each task.

    Raises:
      UserError: what the first process that cannot go on says, or several died in one
        task. Whatever is done by then stays so.
      WorkerFailed: a worker had a bug.
      Stopped: a signal asked to stop.
    """
    if num_workers == HERE or not given:
        return [tasks.do(task, progress=_Since(progress)) for task in given]
    workers = _Workers(tasks, given, progress, describe, warn)
    with workers.ending():
        return workers.do_all(min(num_workers, len(given)))


def suitable_workers(config: EncodeConfig, *, num_tasks: int) -> int:
    """How many processes suit this machine: one for each GPU, or for its cores.

    Args:
      config: says how many threads each has.
      num_tasks: what they have to do; few are done sooner without them.
    """
    if num_tasks <= FEW_TASKS:
        return HERE
    cores = len(os.sched_getaffinity(0)) // config.num_threads
    return max(1, min(len(_accelerators()) or cores, num_tasks))


class _Since:
    """Tells a counter what was done since it was last told.

    Args:
      progress: the counter.
    """

    def __init__(self, progress: Callable[[int], None]):
        self._progress, self._before = progress, 0

    def __call__(self, done: int) -> None:
        self._progress(done - self._before)
        self._before = done


class _Workers:
    """Processes, and what they do; see `do_tasks` for the arguments."""

    def __init__(
        self,
        tasks: Tasks,
        given: Sequence[Mapping[str, Any]],
        progress: Callable[[int], None],
        describe: Callable[[int], str],
        warn: Callable[[str], None],
    ):
        self._job = {
            "config": schema.to_dict(tasks.config),
            "out": str(tasks.work.out),
        }
        self._num_threads = tasks.config.num_threads
        self._given = given
        self._progress, self._describe, self._warn = progress, describe, warn
        self._workers: list[_Worker] = []
        self._answers: queue.SimpleQueue[tuple[_Worker, str]] = queue.SimpleQueue()
        self._waiting = collections.deque(range(len(given)))
        self._deaths: collections.Counter[int | None] = collections.Counter()
        self._results: list[Any] = [None] * len(given)

    def do_all(self, num_workers: int) -> list[Any]:
        """Does all tasks."""
        for number in range(1, num_workers + 1):
            self._workers.append(self._start(number))
        while True:
            for worker in self._workers:
                if worker.task is None and self._waiting:
                    worker.task = self._waiting.popleft()
                    _tell(worker, self._given[worker.task])
            if all(worker.task is None for worker in self._workers):
                return self._results
            worker, answer = self._answers.get()
            if answer:
                self._note(worker, json.loads(answer))
            else:
                self._replace(worker)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """All processes are ended after the block."""
        try:
            yield
        finally:
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                try:
                    worker.process.wait(LEAVE_SECONDS)
                except subprocess.TimeoutExpired:
                    worker.process.kill()
                    worker.process.wait()
                with contextlib.suppress(BrokenPipeError):  # of what it never read
                    worker.process.stdin.close()

    def _start(self, number: int) -> _Worker:
        """Starts a process, whose lines become answers; its last one is empty."""
        environment = dict.fromkeys(_THREADS, str(self._num_threads))
        if devices := _accelerators():
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        process = subprocess.Popen(
            [sys.executable, "-m", "rfjax.data.encode.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            # Ctrl-C in a terminal is for the command alone, which ends its workers.
            start_new_session=True,
        )
        worker = _Worker(number, process)

        def receive() -> None:
            """Passes lines on."""
            with process.stdout:
                for line in process.stdout:
                    self._answers.put((worker, line))
            self._answers.put((worker, ""))

        threading.Thread(target=receive, daemon=True).start()
        _tell(worker, self._job)
        return worker

    def _note(self, worker: _Worker, answer: Mapping[str, Any]) -> None:
        """Notes what a worker says; raises what it failed with."""
        if "error" in answer:
            raise (UserError if answer["is_refusal"] else WorkerFailed)(answer["error"])
        if "examples" in answer:
            self._progress(answer["examples"] - worker.examples)
            worker.examples = answer["examples"]
        else:
            self._results[worker.task] = answer["result"]
            worker.task, worker.examples = None, 0

    def _replace(self, worker: _Worker) -> None:
        """Starts another process in the place of one that died.

        Raises:
          UserError: several died in the same task.
        """
        status = worker.process.wait()
        cause = f"status {status}" if status >= 0 else signal.Signals(-status).name
        where = "before its first task"
        if worker.task is not None:
            where = f"in {self._describe(worker.task)}"
            self._waiting.appendleft(worker.task)
        name = f"worker {worker.number} (process {worker.process.pid})"
        self._progress(-worker.examples)
        self._deaths[worker.task] += 1
        if self._deaths[worker.task] >= MOST_DEATHS:
            raise UserError(
                f"workers must live until their task is done, but {name} was ended by "
                f"{cause} {where}, as {MOST_DEATHS - 1} before it; if memory is short, "
                "choose fewer --workers or a smaller batch_size, and run the same "
                "command again."
            )
        self._warn(f"{name} was ended by {cause} {where}; another one takes over.")
        self._workers[self._workers.index(worker)] = self._start(worker.number)


def _tell(worker: _Worker, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # its end is noticed by its answers
        worker.process.stdin.write(json.dumps(message) + "\n")
        worker.process.stdin.flush()


def _accelerators() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA gives them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [n for n in visible.split(",") if n not in ("", "-1")]  # -1: none
    nodes = (name.removeprefix("nvidia") for name in os.listdir("/dev"))
    return sorted((n for n in nodes if n.isdecimal()), key=int)
