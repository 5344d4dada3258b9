# SPDX-License-Identifier: Apache-2.0
"""A connection from every process of a job to the first: who is missing, who is gone.

JAX notices a lost process after minutes or aborts at once, in C++ in either case, and
names nobody. So the processes hold connections of their own, at the address that would
otherwise be JAX's. The kernel closes the connection of a process that is killed; a
process that hangs, or whose machine is gone, falls silent. The first process then tells
all others, and each ends itself from the thread that listens, because the main thread
waits inside a collective for a process that will never come.

Every message is a line of JSON; an empty line is a sign of life.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rfjax.errors import UserError

# Seconds that a process waits for the others at the start: until it says so, and until
# it ends.
NOTICE_SECONDS = 30.0
LIMIT_SECONDS = 300.0
# Seconds between signs of life, and how many of them may be missed.
BEAT_SECONDS = 2.0
SILENT_BEATS = 10
# Seconds that a process may take to end by itself once another has ended.
GRACE_SECONDS = 10.0
# Seconds for the last message of the first process to leave its machine.
FLUSH_SECONDS = 0.2

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the same command may succeed next time

_LONGEST_MESSAGE = 2**26  # bytes
_LEAVING = "leaving"


class MissingProcesses(UserError):
    """Some processes of the job did not come in time.

    Attributes:
      exit_status: that of a job whose processes must all be started again.
    """

    exit_status = EXIT_STATUS


class Links:
    """The connections of one process: the first has one to each other process.

    Attributes:
      index: number of this process.
      first_is_gone: whether the first process is lost, so that others must write what
        it would have written.
    """

    def __init__(
        self,
        *,
        address: str,
        index: int,
        count: int,
        say: Callable[[str], None],
        end: Callable[[str, int], None],
    ):
        """Connects to nobody yet.

        Args:
          address: HOST:PORT of the first process.
          index: number of this process.
          count: how many there are.
          say: prints a line on standard error.
          end: (line, exit status) -> ends the process; called in another thread.
        """
        self.index = index
        self.first_is_gone = False
        self._address, self._count, self._say, self._end = address, count, say, end
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._silent_beats: dict[int, int] = {}
        self._values: dict[int, Any] = {}  # of the round under way, in the first
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._missing: list[int] = []
        self._joined = self._over = False
        self._ended: set[int] = set()
        self._verdict: tuple[str, int] | None = None
        self._servers: list[asyncio.Server] = []
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(ready)),
            name="rfjax-links",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    def join(self, value: Any) -> list[Any]:
        """`share` for the first time: waits until all processes are here.

        Raises:
          MissingProcesses: some did not come in time.
          UserError: the address cannot be used, or the first process refuses this one.
        """
        if self.index == 0:
            self.run(self._listen())
            self._send({"value": value})
        else:
            asyncio.run_coroutine_threadsafe(self._connect(value), self._loop)
        start, notice = time.monotonic(), NOTICE_SECONDS
        while True:
            waited = time.monotonic() - start
            seconds = max(min(notice, LIMIT_SECONDS) - waited, 0)
            with contextlib.suppress(queue.Empty):
                return self._answer(seconds)
            if notice >= LIMIT_SECONDS:
                raise MissingProcesses(
                    f"all {self._count} processes must start within "
                    f"{LIMIT_SECONDS:g} s, and {self._describe_missing()}; start all "
                    "of them again."
                )
            self._say(
                f"has waited {notice:g} s for the {self._count} processes of the job: "
                f"{self._describe_missing()}; waiting up to {LIMIT_SECONDS:g} s."
            )
            notice *= 2

    def share(self, value: Any) -> list[Any]:
        """The values of all processes, in order; all call it and get the same.

        Args:
          value: anything that JSON can hold.
        """
        # As it arrives in the other processes: JSON has no tuples.
        self._send({"value": json.loads(json.dumps(value))})
        values = self._answer()
        if _LEAVING in values:
            raise RuntimeError("another process has left the job")
        return values

    def leave(self, *, seconds: float | None) -> bool:
        """Waits until all processes leave; then connections may end.

        Args:
          seconds: how long to wait; None: until all are there, or one is gone.

        Returns:
          Whether they are all there.
        """
        if self._joined:
            self._send({"value": _LEAVING})
            with contextlib.suppress(queue.Empty):
                self._answer(seconds)
        return self._over

    def announce_end(self, exit_status: int) -> None:
        """Tells the others that this process ends alone; they follow."""
        self._send({"ended": exit_status})
        end = time.monotonic() + 1.0
        while self.index not in self._ended and time.monotonic() < end:
            time.sleep(0.01)

    def follow(self, *, seconds: float) -> None:
        """Ends this process if another one is gone, or if that explains its error.

        Args:
          seconds: how long the news may take.
        """
        time.sleep(seconds)
        # Where another process has refused its input, this one says what it refuses.
        if self._verdict is not None and not isinstance(sys.exception(), UserError):
            self._end(*self._verdict)

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine, run in the thread of the connections."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Ends all connections, and the thread."""
        self._over = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    async def _live(self, ready: threading.Event) -> None:
        """What the thread does until `close`."""
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        ready.set()
        beating = asyncio.create_task(self._beat())
        await self._closing.wait()
        beating.cancel()
        for opened in (*self._servers, *self._writers.values()):
            opened.close()
        listening = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(listening, timeout=1)

    def _answer(self, seconds: float | None = None) -> Any:
        """What the first process answers; raises queue.Empty when time is over."""
        answer = self._answers.get(timeout=seconds)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _describe_missing(self) -> str:
        """Who is missing, as far as this process knows."""
        if self.index != 0 and not self._writers:
            return f"process 0 does not answer at {self._address}"
        missing = self._missing or sorted({*range(self._count)} - {*self._values})
        return f"{_names(missing)} missing at {self._address}"

    async def _connect(self, value: Any) -> None:
        """Connects to the first process as soon as it answers, and listens to it."""
        host, _, port = self._address.rpartition(":")
        while not (self._joined or self._over):
            reader = None
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    host.strip("[]"), int(port), limit=_LONGEST_MESSAGE
                )
            # A first process that says nothing is one of an earlier start, on its way
            # out.
            if reader is not None:
                hello = {"process": self.index, "value": value}
                _write(writer, hello)
                with contextlib.suppress(OSError, ValueError):
                    line = await asyncio.wait_for(reader.readline(), 10)
                    self._hear(json.loads(line))
                    self._writers[0] = writer
                    return await self._listen_to(0, reader)
                writer.close()
            await asyncio.sleep(0.3)
        return None

    async def _listen(self) -> None:
        """Lets the others connect to this process, the first."""
        port = int(self._address.rpartition(":")[2])
        try:
            server = await asyncio.start_server(
                self._welcome, None, port, limit=_LONGEST_MESSAGE
            )
        except OSError as error:
            raise UserError(
                f"the address of the first process must have a free port, got "
                f"{self._address} ({error.strerror}); choose another port."
            ) from error
        self._servers.append(server)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Takes in a process that connects, unless all are here already."""
        try:
            hello = json.loads(await asyncio.wait_for(reader.readline(), 10))
            index, value = int(hello["process"]), hello["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return writer.close()  # not a process of ours
        if self._joined:
            return writer.close()
        if not 0 < index < self._count or index in self._writers:
            why = "is here already" if index in self._writers else "is not one of them"
            _write(
                writer,
                {
                    "refused": f"each process must have its own number below "
                    f"{self._count}, and process {index} {why}; give all processes "
                    "the same count and different numbers."
                },
            )
            return writer.close()
        self._writers[index] = writer
        self._take(index, {"value": value})
        return await self._listen_to(index, reader)

    async def _listen_to(self, index: int, reader: asyncio.StreamReader) -> None:
        """Takes in what a process says, until its connection ends."""
        self._silent_beats[index] = 0
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                self._silent_beats[index] = 0
                if line.strip():
                    message = json.loads(line)
                    if self.index == 0:
                        self._take(index, message)
                    else:
                        self._hear(message)
        self._writers.pop(index).close()
        self._lose(index, "its connection is closed")

    async def _beat(self) -> None:
        """Gives a sign of life now and then, and notices who gives none.

        It counts its own beats, not seconds: a process that was stopped itself must not
        blame the others for the time.
        """
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            for index, beats in list(self._silent_beats.items()):
                self._silent_beats[index] = beats + 1
                self._writers[index].write(b"\n")
                if beats >= SILENT_BEATS:
                    self._lose(index, f"silent for {beats * BEAT_SECONDS:g} s")

    def _send(self, message: Mapping[str, Any]) -> None:
        """Says something to the first process; from any thread."""
        if self.index == 0:
            self._loop.call_soon_threadsafe(self._take, 0, message)
        else:
            self._loop.call_soon_threadsafe(_write, self._writers.get(0), message)

    def _take(self, index: int, message: Mapping[str, Any]) -> None:
        """Takes in, in the first process, what one of all says."""
        if "ended" in message:
            self._tell({"ended": index, "status": message["ended"]})
            return
        self._values[index] = message["value"]
        missing = sorted({*range(self._count)} - {*self._values})
        if not missing:
            values = [self._values[process] for process in range(self._count)]
            self._values = {}
            self._tell({"values": values})
        elif not self._joined:
            self._tell({"missing": missing})

    def _tell(self, message: Mapping[str, Any]) -> None:
        """Says something to all processes, this one included."""
        for writer in self._writers.values():
            _write(writer, message)
        self._hear(message)

    def _hear(self, message: Mapping[str, Any]) -> None:
        """Takes in, in every process, what the first one says."""
        if "missing" in message:
            self._missing = message["missing"]
        elif "values" in message:
            self._joined = True
            self._over = message["values"] == [_LEAVING] * self._count
            self._answers.put(message["values"])
        elif "refused" in message:
            self._joined = self._over = True  # nothing more comes of it
            self._answers.put(UserError(message["refused"]))
        elif "gone" in message:
            self.first_is_gone = message["gone"] == 0
            self._follow(
                f"process {message['gone']} of {self._count} is gone "
                f"({message['how']}), so this one ends too; start all "
                "of them again, and a run resumes from its newest checkpoint.",
                EXIT_STATUS,
                seconds=FLUSH_SECONDS if self.index == 0 else 0,
            )
        elif "ended" in message:
            self._ended.add(message["ended"])
            if message["ended"] != self.index:
                self._follow(
                    f"process {message['ended']} of {self._count} ended with exit "
                    f"status {message['status']}, and its output says why; this one "
                    "ends too.",
                    message["status"],
                    seconds=GRACE_SECONDS,
                )

    def _lose(self, index: int, how: str) -> None:
        """Ends the job because a process is lost, unless it is ending anyway."""
        self._silent_beats.pop(index, None)
        if self._over or index in self._ended or self._verdict is not None:
            return
        if self.index == 0:
            self._tell({"gone": index, "how": how})
        else:
            self._hear({"gone": index, "how": how})

    def _follow(self, text: str, exit_status: int, *, seconds: float) -> None:
        """Ends this process in some seconds."""
        if self._verdict is None:
            self._verdict = (text, exit_status)
            self._loop.call_later(seconds, self._end, text, exit_status)


def _write(writer: asyncio.StreamWriter | None, message: Mapping[str, Any]) -> None:
    """Writes a message; a connection that has ended is noticed by who reads it."""
    if writer is not None:
        writer.write(json.dumps(message).encode() + b"\n")


def _names(indices: list[int]) -> str:
    """As "process 1 is", "processes 1, 2, ... (6 of them) are"."""
    if len(indices) == 1:
        return f"process {indices[0]} is"
    shown = ", ".join(map(str, indices[:5]))
    return f"processes {shown}{', ...' if indices[5:] else ''} are"
