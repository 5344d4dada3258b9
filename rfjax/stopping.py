# SPDX-License-Identifier: Apache-2.0
"""Signals that ask a command to stop, and the exit status that reports it.

SIGTERM (a job manager's notice), SIGINT (Ctrl-C) and SIGHUP (the terminal is gone) all
mean: save what there is to save, and exit with status 128 + number, so that a job
manager never mistakes the run for a finished one.

While nothing is unsaved, `Stopped` is raised wherever the command is, and again if that
was inside a callback of a library, where Python drops exceptions. Python cannot raise
while the main thread is inside the compiler, so a second thread then ends the process.
While something is unsaved, the request is only recorded, and the code that sets
`unsaved` checks `requested` and saves.

A second SIGTERM or SIGHUP changes nothing: job managers send several. A second Ctrl-C
ends the process immediately, again from the second thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from rfjax import partial_files

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_STATUSES = tuple(128 + number for number in SIGNALS)

# Seconds that the main thread may take to notice a signal (if it does not, it is inside
# the compiler), until `Stopped` is raised again, and to exit.
NOTICE_SECONDS = 1.0
REPEAT_SECONDS = 0.3
LEAVE_SECONDS = 20.0


class Stopped(KeyboardInterrupt):
    """A signal asked to stop, and everything that had to be saved is saved.

    Attributes:
      signal: the first one received.
    """

    def __init__(self, number: signal.Signals):
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")

    @property
    def exit_status(self) -> int:
        """143 after SIGTERM, 130 after SIGINT, 129 after SIGHUP."""
        return 128 + self.signal


class StopSignals:
    """The requests to stop so far; made by `handling`.

    Attributes:
      requested: the first signal received, or None.
      unsaved: whether there is something to save before the process may end.
      closed: whether signals come too late to have an effect.
      keep_ignoring: whether the process exits next, so that no handler is restored.
      follow_others: ends this process if another one of the job has ended, or None if
        it is alone.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None
        self.unsaved = False
        self.closed = False
        self.keep_ignoring = False
        self.follow_others: Callable[[], None] | None = None
        self._last_words: list[Callable[[str], None]] = []
        self._raised_at: float | None = None

    def raise_if_requested(self) -> None:
        """Raises Stopped if a signal was received."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def raise_again(self) -> None:
        """Raises Stopped if it was raised before.

        For code that catches all errors: a library may have turned it into another.
        The end of another process may have caused it too; then this one ends here.
        """
        if self._raised_at is not None:
            raise Stopped(self.requested)
        if self.follow_others is not None:
            self.follow_others()

    @contextlib.contextmanager
    def last_words(self, function: Callable[[str], None]) -> Iterator[None]:
        """Within the block, `function` is called if the process exits inside it.

        Args:
          function: called with "stopped" or "failed", in another thread.
        """
        self._last_words.append(function)
        try:
            yield
        finally:
            self._last_words.remove(function)

    def handle(self, number: int, frame: object = None) -> None:
        """The signal handler; runs in the main thread."""
        del frame
        if self.closed:
            return
        first = self.requested is None
        if first:
            self.requested = signal.Signals(number)
        if self.unsaved:
            if first:
                _say(f"{self.requested.name}: saving and stopping")
        elif not _is_leaving(sys.exception()):
            self._raised_at = self._raised_at or time.monotonic()
            raise Stopped(self.requested)

    def watch(self, pipe: int) -> None:
        """Ends the process where the main thread cannot; runs in its own thread.

        Args:
          pipe: file descriptor that yields the number of each signal as a byte, and 0
            to return.
        """
        first, num_interrupts, came, repeated = 0, 0, 0.0, 0.0
        while True:
            # Sleeps until the first signal; then watches what the main thread does.
            if select.select([pipe], [], [], 0.05 if first else None)[0]:
                numbers = os.read(pipe, 64)
                if 0 in numbers:
                    return
                num_interrupts += numbers.count(signal.SIGINT)
                numbers = [number for number in numbers if number in SIGNALS]
                if not first and numbers:
                    first, came = numbers[0], time.monotonic()
            if num_interrupts > 1:
                self._end_by(signal.SIGINT)
            if not first or self.unsaved or self.closed:
                continue
            now = time.monotonic()
            if self.requested is None:
                if now - came > NOTICE_SECONDS:
                    self._end_by(first)
            elif self._raised_at is not None:
                if now - self._raised_at > LEAVE_SECONDS:
                    self._end_by(first)
                if now - max(self._raised_at, repeated) > REPEAT_SECONDS:
                    repeated = now
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def end(self, text: str, exit_status: int) -> NoReturn:
        """Ends the process without returning to the main thread; see `end_process`."""
        outcome = "stopped" if exit_status in EXIT_STATUSES else "failed"
        for function in self._last_words:
            with contextlib.suppress(Exception):
                function(outcome)
        with contextlib.suppress(OSError):
            partial_files.remove_unfinished()
        _say(text)
        os._exit(exit_status)

    def _end_by(self, number: int) -> NoReturn:
        """Ends the process because of a signal."""
        self.end(str(Stopped(number)), 128 + number)


_current: StopSignals | None = None


@contextlib.contextmanager
def handling() -> Iterator[StopSignals]:
    """Within the block, signals ask to stop instead of killing the process.

    Nested blocks share one `StopSignals`. Only the main thread can set handlers;
    elsewhere (in a worker of a notebook) signals keep their meaning. So does a SIGHUP
    that is already ignored, as under nohup.
    """
    global _current
    if _current is not None:
        yield _current
        return
    stop = _current = StopSignals()
    try:
        if threading.current_thread() is threading.main_thread():
            with _handlers(stop):
                yield stop
        else:
            yield stop
    finally:
        _current = None


def raise_again() -> None:
    """As `StopSignals.raise_again`, for code that does not handle signals itself."""
    if _current is not None:
        _current.raise_again()


def end_process(text: str, exit_status: int) -> NoReturn:
    """Ends the process, from any thread and whatever the main thread does.

    Args:
      text: a line for standard error.
      exit_status: of the process.
    """
    (_current or StopSignals()).end(text, exit_status)


def ignore_signals() -> None:
    """Ignores all signals: at the end of a process, once its exit status is decided."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _handlers(stop: StopSignals) -> Iterator[None]:
    """Within the block, signals go to `stop`, and a thread watches over it."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watcher = threading.Thread(
        target=stop.watch, args=(read_end,), name="rfjax-signals", daemon=True
    )
    previous = {}
    other_pipe = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        watcher.start()
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            previous[number] = signal.signal(number, stop.handle)
        with _quiet_once_requested(stop):
            yield
    finally:
        stop.closed = True
        for number, handler in previous.items():
            if not stop.keep_ignoring:
                signal.signal(number, handler)
        signal.set_wakeup_fd(other_pipe)
        os.write(write_end, bytes(1))
        watcher.join()
        os.close(read_end)
        os.close(write_end)


def _is_leaving(exception: BaseException | None) -> bool:
    """Whether the exception, or one that led to it, is already `Stopped`."""
    while exception is not None and not isinstance(exception, Stopped):
        exception = exception.__context__
    return exception is not None


@contextlib.contextmanager
def _quiet_once_requested(stop: StopSignals) -> Iterator[None]:
    """Within the block, errors that a stop causes inside libraries are not printed.

    Python prints exceptions that it drops: `Stopped` in a callback, and errors of other
    threads, such as reads whose event loop is gone.
    """
    report = sys.unraisablehook

    def report_unless_requested(dropped: sys.UnraisableHookArgs) -> None:
        """Prints as before until a stop is requested."""
        if stop.requested is None:
            report(dropped)

    sys.unraisablehook = report_unless_requested
    try:
        yield
    finally:
        sys.unraisablehook = report


def _say(text: str) -> None:
    """Writes a line to standard error; safe in a handler, where print is not."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nrfjax: {text}\n".encode())
