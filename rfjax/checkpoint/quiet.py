# SPDX-License-Identifier: Apache-2.0
"""Keeps out what libraries print of a failed read or save, whose error is raised.

A failure leaves tasks of asyncio and threads of TensorStore behind, each of which
prints a traceback when it is collected or answered: two thousand lines for one full
disk.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable


def keep_quiet() -> None:
    """From now on, what went wrong in a checkpoint is raised and not printed as well.

    For good, because threads of a failed save are never joined.
    """
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _UnlessOrphaned):
        sys.unraisablehook = _UnlessOrphaned(sys.unraisablehook)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record is other than the error of a task or thread of orbax."""
    is_failure = record.levelno >= logging.ERROR
    return not (is_failure and (record.name == "asyncio" or "orbax" in record.pathname))


@dataclasses.dataclass(frozen=True)
class _UnlessOrphaned:
    """Prints what Python drops, except answers to an event loop that has failed.

    Threads of TensorStore have nobody to raise these to.
    """

    report: Callable[[sys.UnraisableHookArgs], object]

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        """As `sys.unraisablehook`."""
        if str(dropped.exc_value) != "Event loop is closed":
            self.report(dropped)
