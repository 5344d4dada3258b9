# SPDX-License-Identifier: Apache-2.0
"""The console script `rfjax`: calls a command, prints its result, gives its status.

`rfjax --help` lists the commands, `rfjax COMMAND --help` the flags of one. Wrong input
ends with one line and status 1, a signal with status 128 + its number, a mistyped
command with 2, the loss of another process with 75. A bug keeps its traceback.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import logging

from rfjax import __version__, partial_files, stopping
from rfjax.commands import COMMANDS, command_line
from rfjax.cpu import restart_with_huge_pages
from rfjax.errors import UserError, describe_refusal


def run(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(__version__)
        return 0
    try:
        name = command_line.name_of(args)
    except command_line.UnknownCommand as error:
        print(f"rfjax: {error}", file=sys.stderr)
        return 2
    asks_for_help = args[:1] in ([], ["help"]) or {"-h", "--help"} & set(args)
    if name is None or asks_for_help:
        command_line.print_help(name, args)
        return 0 if asks_for_help else 2
    COMMANDS[name].prepare(args)
    if argv is None and COMMANDS[name].computes:
        restart_with_huge_pages()
    if argv is None:
        # A reader of a log through a pipe wants each line when it is printed.
        sys.stdout.reconfigure(line_buffering=True)
    logging.set_verbosity(logging.WARNING)
    # Compiled programs are kept between commands; JAX reads this when it starts.
    with contextlib.suppress(RuntimeError):  # a user without a home
        cache = Path.home() / ".cache" / "rfjax"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    with stopping.handling() as stop:
        status = _call(name, args, stop)
        if argv is None:
            stopping.ignore_signals()  # nothing is left that they could interrupt
            if status or _is_joined():
                _end_process(status)
            stop.keep_ignoring = True
    return status


def _call(name: str, args: Sequence[str], stop: stopping.StopSignals) -> int:
    """The exit status of a command; signals that arrive after it are ignored."""
    try:
        try:
            status = _print_result(name, args, stop)
            stop.closed = True
            return status
        except Exception:
            stop.closed = True
            stop.raise_again()
            raise
    except UserError as error:
        # Input that cannot be used: what and why, without a traceback.
        print(f"rfjax {name}: {error}", file=sys.stderr)
        return error.exit_status
    except stopping.Stopped as stopped:
        stop.closed = True
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"rfjax {name}: {stopped}", file=sys.stderr)
        return stopped.exit_status
    except Exception as error:
        if refusal := describe_refusal(error):
            print(f"rfjax {name}: {refusal}", file=sys.stderr)
            return 1
        traceback.print_exc()
        print(
            f"rfjax {name}: this is a bug in rfjax {__version__}; please report the "
            "lines above on the project's issue tracker, with the command line: "
            f"rfjax {shlex.join(args)}",
            file=sys.stderr,
        )
        return 1


def _print_result(name: str, args: Sequence[str], stop: stopping.StopSignals) -> int:
    """Calls a command and prints what it returns, in one process of a job."""
    speak = True
    # First of all, so that the others hear of whatever is wrong in one process.
    if COMMANDS[name].joins:
        from rfjax.parallel import processes

        processes.start(
            say=lambda line: print(f"rfjax {name}: {line}", file=sys.stderr),
            end=stopping.end_process,
        )
        if processes.is_joined():
            stop.follow_others = processes.follow
        speak = processes.is_first()
    call = command_line.parse(
        args,
        report=lambda line: speak and print(line),
        warn=lambda line: speak and print(line, file=sys.stderr),
    )
    result = call()
    if speak and result is not None and str(result):
        print(result)
    return getattr(result, "exit_status", 0)


def _is_joined() -> bool:
    """Whether this is one of several processes; nothing is imported to find out."""
    processes = sys.modules.get("rfjax.parallel.processes")
    return processes is not None and processes.is_joined()


def _end_process(status: int) -> NoReturn:
    """Exits without library teardown.

    A signal may have left it half done, and after a failed save threads of orbax wait
    for minutes for one another.
    """
    partial_files.remove_unfinished()
    if _is_joined():
        from rfjax.parallel import processes

        # All end well, or are stopped, together; one that fails does so alone.
        seconds = None if status == 0 else 10 if status in stopping.EXIT_STATUSES else 0
        processes.leave(status, seconds=seconds)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the terminal may be gone
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(run())
