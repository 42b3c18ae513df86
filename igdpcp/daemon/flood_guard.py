# SPDX-License-Identifier: Apache-2.0
"""Hosts that flood the SSDP sockets: after their share of a second the kernel drops what they send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import lru_cache
from ipaddress import IPv4Address, ip_address

from igdpcp.model import IPAddress
from igdpcp.net.source_filter import SOURCES_LIMIT, drop_sources

DATAGRAMS_PER_HOST = 200  # looked at in one window, whatever they are
WINDOW = 1.0  # seconds
HOSTS_LIMIT = 256  # hosts with a share of their own in one window; all others have one together
_OTHERS = ""


class FloodGuard:
    """Counts datagrams by source on all sockets together; everybody starts anew with each window."""

    def __init__(self) -> None:
        self.dropped = 0  # datagrams that were read and not admitted
        self.barred_hosts = 0  # each time that one was barred
        self._loop = asyncio.get_running_loop()
        self._counts: dict[str, int] = {}
        self._barred: set[IPAddress] = set()
        self._sockets: set[socket.socket] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, sock: socket.socket) -> None:
        """Keep barred hosts out of this socket too."""
        self._sockets.add(sock)
        if self._barred:
            self._filter(sock)

    def forget(self, sock: socket.socket) -> None:
        """The socket is about to be closed."""
        self._sockets.discard(sock)

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def admits(self, host: str) -> bool:
        """Whether to look at a datagram of ``host``, which is an address as recvfrom() gives it."""
        counts = self._counts
        if host not in counts:
            if not counts:
                self._timer = self._loop.call_later(WINDOW, self._begin_anew)
            if len(counts) >= HOSTS_LIMIT:
                host = _OTHERS
        count = counts[host] = counts.get(host, 0) + 1
        if count <= DATAGRAMS_PER_HOST:
            return True
        self.dropped += 1
        if count == DATAGRAMS_PER_HOST + 1:
            self._bar(host)
        return False

    def _bar(self, host: str) -> None:
        if host != _OTHERS and len(self._barred) < SOURCES_LIMIT:
            self.barred_hosts += 1
            self._barred.add(plain_address(host))
            self._filter_all()

    def _begin_anew(self) -> None:
        self._counts.clear()
        if self._barred:
            self._barred.clear()
            self._filter_all()

    def _filter_all(self) -> None:
        for sock in self._sockets:
            self._filter(sock)

    def _filter(self, sock: socket.socket) -> None:
        is_ipv4 = sock.family == socket.AF_INET
        sources = [source for source in self._barred if isinstance(source, IPv4Address) == is_ipv4]
        with contextlib.suppress(OSError):  # no filter: what comes is read and dropped one by one
            drop_sources(sock, sources)


@lru_cache(HOSTS_LIMIT)  # the same few hosts send again and again
def plain_address(host: str) -> IPAddress:
    """The address in what recvfrom() gives: without the zone of a link-local one."""
    return ip_address(host.partition("%")[0])
