# SPDX-License-Identifier: Apache-2.0
"""The HTTP server on the loopback device, and clients that say to it exactly what they are told to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

from igdpcp.daemon.http_server import HttpServer
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.http import HttpResponse

LOOPBACK = IPv4Address("127.0.0.1")
GET = b"GET /a HTTP/1.1\r\nHost: a\r\nUser-Agent: tester\r\n\r\n"
LAST = b"GET /z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HOSTS = [f"127.0.0.{n}" for n in range(2, 20)]


def at_once(request, peer):
    """A handler that responds with the path, and needs no waiting."""
    answer = asyncio.get_running_loop().create_future()
    answer.set_result(HttpResponse(200, body=request.path.encode()))
    return answer


@asynccontextmanager
async def serving(handler=at_once, admit=lambda address, device: True, **options):
    """The server and its port; it is closed with the context."""
    server = HttpServer(handler, admit, "tester/1", **options)
    listener = http_listener(LOOPBACK, 0, "")
    port = listener.getsockname()[1]
    await server.start([(listener, "br-lan")])
    try:
        yield server, port
    finally:
        await server.close()


async def connect(port, source="127.0.0.1"):
    """A connection of the host with that address."""
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))


async def exchange(port, *pieces, end=False, source="127.0.0.1"):
    """Everything the server sends in return for these bytes, until it closes; nothing when it resets."""
    reader, writer = await connect(port, source)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def hold(port, source, sent=b"G"):
    """A connection that has sent the beginning of a request, and stays so."""
    reader, writer = await connect(port, source)
    writer.write(sent)
    return reader, writer


async def is_reset(reader):
    """Whether the server ends the connection without a word."""
    try:
        return not await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return True


def let_go(connections):
    for _, writer in connections:
        writer.close()
