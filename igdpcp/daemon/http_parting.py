# SPDX-License-Identifier: Apache-2.0
"""Sockets after their last response: a peer that still sends must not lose by an RST what it has not read yet."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

PARTING_LIMIT = 64  # sockets
PARTING_TIMEOUT = 2.0  # seconds that a peer has to end its side
LOOK_INTERVAL = 0.1  # seconds between two looks at them
DRAIN_SIZE = 64 * 1024  # bytes of one socket that are read and forgotten at each look


class PartingSockets:
    """Each is half-closed at once, and closed when its peer has ended too, after a time, or to make room.

    They are looked at now and then instead of being watched: most have ended by then, and that costs the least.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._sockets: deque[tuple[socket.socket, float]] = deque()  # and when each is closed in any case
        self._timer: asyncio.TimerHandle | None = None

    def add(self, sock: socket.socket) -> None:
        """Take over a socket on which everything was sent."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # the peer has reset it
            sock.close()
            return
        self._sockets.append((sock, self._loop.time() + PARTING_TIMEOUT))
        if len(self._sockets) > PARTING_LIMIT:
            oldest, _ = self._sockets.popleft()
            _drain(oldest)
            oldest.close()
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_INTERVAL, self._look)

    def close(self) -> None:
        """Close all of them."""
        while self._sockets:
            sock, _ = self._sockets.popleft()
            _drain(sock)
            sock.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._loop.time()
        for _ in range(len(self._sockets)):
            sock, deadline = self._sockets.popleft()
            if _drain(sock) or now >= deadline:
                sock.close()
            else:
                self._sockets.append((sock, deadline))
        self._timer = self._loop.call_later(LOOK_INTERVAL, self._look) if self._sockets else None


def _drain(sock: socket.socket) -> bool:
    """Forget what has come; whether the peer has ended."""
    try:
        return not sock.recv(DRAIN_SIZE)
    except BlockingIOError:
        return False
    except OSError:  # reset, or TCP_USER_TIMEOUT has ended it
        return True
