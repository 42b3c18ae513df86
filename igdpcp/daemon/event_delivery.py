# SPDX-License-Identifier: Apache-2.0
"""Carries one event to its subscriber, within bounds of time and memory that the subscriber cannot stretch."""

from __future__ import annotations

import asyncio
import socket

from igdpcp.daemon.http_server import Peer
from igdpcp.net.sockets import event_sender
from igdpcp.upnp.gena import status_of

CONNECT_TIMEOUT = 3.0  # seconds
DELIVERY_TIMEOUT = 10.0  # seconds for everything; subscribers may take 30 (UPnP Device Architecture 1.1 section 4.3.2)
ANSWER_LIMIT = 4 * 1024  # bytes of an answer after which its first line is not waited for


async def deliver(peer: Peer, port: int, event: bytes) -> int:
    """Send the message to ``port`` of the subscriber; the status of its answer.

    The connection comes from the address that the subscriber reached when it subscribed, through the same device.
    Raises OurFault when that address or device is gone, OSError (a TimeoutError too) when nobody is reached or answers,
    MalformedRequest when the answer is no HTTP response.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DELIVERY_TIMEOUT):
        with event_sender(peer.device, peer.local_address) as sock:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.sock_connect(sock, (str(peer.address), port))
            await loop.sock_sendall(sock, event)
            return status_of(await _first_line(sock))


async def _first_line(sock: socket.socket) -> bytes:
    """What the subscriber sends until its status line is complete, it ends, or it has sent too much."""
    loop = asyncio.get_running_loop()
    answer = b""
    while b"\n" not in answer and len(answer) < ANSWER_LIMIT:
        piece = await loop.sock_recv(sock, ANSWER_LIMIT)
        if not piece:
            break
        answer += piece
    return answer
