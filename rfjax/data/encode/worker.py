# SPDX-License-Identifier: Apache-2.0
"""A process that does tasks for `workers`: `python -m rfjax.data.encode.worker`.

It is given one JSON object a line: first {"config", "out"}, then a task each. It
answers with lines as well, which `workers` reads. When its standard input ends, whoever
started it has ended too, and so does this process.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from typing import Any

from rfjax import partial_files, schema, stopping
from rfjax.data.encode.config import EncodeConfig
from rfjax.data.encode.task import Tasks
from rfjax.data.encode.work_folder import WorkFolder
from rfjax.errors import UserError, describe_refusal


def main() -> None:
    """Does the tasks that come, one after the other; never returns."""
    # Whatever a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def answer(**message: Any) -> None:
        """Sends a line."""
        answers.write(json.dumps(message) + "\n")

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(lines,), daemon=True).start()
    with stopping.handling():
        try:
            job = json.loads(lines.get())
            config = schema.build(EncodeConfig, job["config"])
            tasks = Tasks(config, WorkFolder(job["out"]))
            while True:
                task = json.loads(lines.get())
                result = tasks.do(task, progress=lambda n: answer(examples=n))
                answer(result=result)
        except stopping.Stopped as stopped:
            os._exit(stopped.exit_status)
        except UserError as error:
            answer(error=str(error), is_refusal=True)
        except Exception as error:
            refusal = describe_refusal(error)
            text = refusal or traceback.format_exc()
            answer(error=text, is_refusal=refusal is not None)
    os._exit(1)


def _receive(lines: queue.SimpleQueue[str]) -> None:
    """Passes lines on; ends the process when there will be no more."""
    for line in sys.stdin:
        lines.put(line)
    partial_files.remove_unfinished()
    os._exit(0)


if __name__ == "__main__":
    main()
