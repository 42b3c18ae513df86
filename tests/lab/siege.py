# SPDX-License-Identifier: Apache-2.0
"""A hostile LAN host, as a program of its own: connections that never finish a request, and a burst of searches.

    python -m tests.lab.siege CORE GATEWAY PORT CONNECTIONS SEARCHES

Prints ``ready`` when the connections were opened, and sends each of them a byte a second from then on, opening those
anew that were ended. Upon a line of input it sends the searches, within a second if it can, and prints how many.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time

SSDP_GROUP = ("239.255.255.250", 1900)
SEARCH = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n'
REQUEST = b"POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\nX: " + b"x" * 4096
TICK = 0.01  # seconds; in each, its part of the connections gets a byte and its part of the searches leaves
TICKS = 100  # to the second


class Trickle:
    """Connections that get a byte a second each."""

    def __init__(self, target: tuple[str, int], count: int) -> None:
        self._target = target
        self._sockets = [self._connection() for _ in range(count)]
        self._sent = [0] * count

    def tick(self, number: int) -> None:
        """Feed those whose turn it is."""
        for index in range(number % TICKS, len(self._sockets), TICKS):
            position = self._sent[index]
            try:
                self._sockets[index].send(REQUEST[position : position + 1])
                self._sent[index] += 1
            except BlockingIOError:
                pass
            except OSError:  # it was ended
                self._sockets[index].close()
                self._sockets[index], self._sent[index] = self._connection(), 0

    def _connection(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(self._target)
        return sock


def main() -> None:
    core, gateway, port, connections, searches = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    trickle = Trickle((gateway, int(port)), int(connections))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    began = time.monotonic()
    number = burst_ends = 0
    while True:
        trickle.tick(number)
        if number < burst_ends:
            for _ in range(int(searches) // TICKS):
                sender.sendto(SEARCH, SSDP_GROUP)
            if number + 1 == burst_ends:
                print("sent", flush=True)
        number += 1
        if number == TICKS:
            print("ready", flush=True)
        if select.select([sys.stdin], [], [], max(0.0, began + number * TICK - time.monotonic()))[0]:
            if not sys.stdin.readline():
                return
            burst_ends = number + TICKS


if __name__ == "__main__":
    main()
