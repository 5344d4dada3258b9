# SPDX-License-Identifier: Apache-2.0
"""Lets JAX connect to the service in the first process through this one.

JAX aborts, in C++ and with a stack trace, as soon as its connection to that service is
closed. Here its end of the connection stays open when the other one closes, so that
`links` has the time to end this process properly.
"""

from __future__ import annotations

import asyncio
import contextlib


async def relay_to(host: str, port: int) -> int:
    """Passes connections at a port of this machine on to another machine.

    Returns:
      The port, open to processes of this machine only.
    """

    async def pass_on(
        near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter
    ) -> None:
        """Passes on one connection."""
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            near_writer.close()  # JAX tries again
            return
        await asyncio.gather(_pass(near_reader, writer), _pass(reader, near_writer))

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what comes; ends without closing anything."""
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
