# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of the LANs: accepts connections and keeps their ceilings; what is answered is the handler's."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from ipaddress import ip_address
from operator import itemgetter

from igdpcp.daemon.http_connection import Connection, Handler, HttpCounters, Peer, reset_on_close
from igdpcp.daemon.http_parting import PartingSockets
from igdpcp.daemon.lan_hosts import HostOf, by_address
from igdpcp.daemon.wall_clock import http_date
from igdpcp.log import SparingLog, line
from igdpcp.model import IPAddress
from igdpcp.upnp.http import standing_fields
from igdpcp.values import dataclass

__all__ = ["Handler", "HttpCounters", "HttpServer", "Peer"]

CONNECTIONS_LIMIT = 128  # of all hosts together
CONNECTIONS_PER_HOST = 16
UNSENT_LIMIT = 4 * 1024 * 1024  # bytes of all responses that peers have not read yet
ACCEPT_BATCH = 16  # connections that are taken in one turn of the loop
ACCEPT_TURN = 0.005  # seconds after which others have their turn
ACCEPT_PAUSE = 1.0  # seconds without accepting when the kernel has no room for another connection
DEFER_ACCEPT = 1  # seconds that the kernel keeps a connection that has sent nothing, before we have to
USER_TIMEOUT = 10_000  # milliseconds in which a peer has to take what the kernel holds for it

_address = lru_cache(maxsize=CONNECTIONS_LIMIT)(ip_address)  # the same few hosts come again and again

_log = logging.getLogger("igdpcp.http")


@dataclass(frozen=True, slots=True, eq=False)
class _Door:
    """A listening socket, its own address, and its LAN's device."""

    socket: socket.socket
    address: IPAddress
    device: str


class HttpServer:
    """Hands every request of an admitted LAN host to ``handler``; one request of a connection at a time.

    When all places are taken, a host that holds fewer than another gets the place of a connection whose peer has to do
    something, send a request or read a response: of the hosts that hold most, the one that has been waited for longest.
    So a host is kept out only while the handler is busy for every connection of those that hold more, or when it holds
    as many as any other.
    """

    def __init__(
        self,
        handler: Handler,
        admit: Callable[[IPAddress, str], bool],
        server: str = "igdpcp",
        *,
        max_connections: int = CONNECTIONS_LIMIT,
        max_connections_per_host: int = CONNECTIONS_PER_HOST,
        host_of: HostOf = by_address,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``admit`` tells for an address and a device whether that host is served; ``server`` is the Server header."""
        self.handler = handler
        self.admit = admit
        self.server = server
        self.counters = HttpCounters()
        self.log = SparingLog(_log)
        self._max_connections = max_connections
        self._max_connections_per_host = max_connections_per_host
        self._host_of = host_of
        self._wall_clock = wall_clock
        self._loop = asyncio.get_running_loop()
        self._doors: dict[socket.socket, _Door] = {}
        self._connections: dict[Connection, _Door] = {}
        self._per_host: dict[Hashable, int] = {}  # connections
        self._parting = PartingSockets(self._loop)
        self._fields = b""
        self._fields_second = -1

    @property
    def open_connections(self) -> int:
        """Those that hold a place."""
        return len(self._connections)

    @property
    def unsent(self) -> int:
        """Bytes of responses that wait until their peers have read others."""
        return sum(connection.unsent for connection in self._connections)

    async def start(self, listeners: Iterable[tuple[socket.socket, str]]) -> None:
        """Serve on these sockets, each bound to an address and with its LAN's device; again for more of them."""
        for sock, device in listeners:
            sock.setblocking(False)
            # What is accepted inherits all but the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            door = self._doors[sock] = _Door(sock, _address(sock.getsockname()[0]), device)
            self._loop.add_reader(sock, self._accept, door)

    async def close_listener(self, listener: socket.socket) -> None:
        """Stop listening on this socket; end its connections and the handlers that run for them."""
        if door := self._doors.pop(listener, None):
            await self._shut([door])

    async def close(self) -> None:
        """Stop listening, end every connection and the handlers that run for them."""
        doors = list(self._doors.values())
        self._doors.clear()
        await self._shut(doors)
        self._parting.close()

    # -- what connections share ----------------------------------------------------------------------------------

    def fields(self) -> bytes:
        """The standing fields of a response that leaves now."""
        now = int(self._wall_clock())
        if now != self._fields_second:
            self._fields_second = now
            self._fields = standing_fields(self.server, http_date(now))
        return self._fields

    def response_waits(self) -> None:
        """Keep the bytes that wait below their ceiling, at the cost of the host that has most of them waiting."""
        waiting = [connection for connection in self._connections if connection.unsent]
        while sum(connection.unsent for connection in waiting) > UNSENT_LIMIT:
            per_host: Counter[Hashable] = Counter()
            for connection in waiting:
                per_host[connection.host] += connection.unsent
            most = max(waiting, key=lambda connection: (per_host[connection.host], connection.unsent))
            waiting.remove(most)
            self.counters.unread += 1
            most.reset()

    def ended(self, connection: Connection) -> None:
        """The connection holds no place any more."""
        if self._connections.pop(connection, None):
            left = self._per_host.pop(connection.host) - 1
            if left:
                self._per_host[connection.host] = left

    def part(self, sock: socket.socket) -> None:
        """Take over a socket whose last response was sent."""
        self._parting.add(sock)

    # -- accepting -----------------------------------------------------------------------------------------------

    def _accept(self, door: _Door) -> None:
        """Take what has connected, but no more than a batch: others have their turn."""
        latest = self._loop.time() + ACCEPT_TURN
        for _ in range(ACCEPT_BATCH):
            try:
                sock, remote = door.socket.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # it is already gone
                continue
            except OSError as error:
                self._pause(door, error)
                return
            self._take(door, sock, _address(remote[0]))
            if self._loop.time() > latest:
                return

    def _take(self, door: _Door, sock: socket.socket, address: IPAddress) -> None:
        """Serve a connection, or end it at once."""
        self.counters.connections += 1
        if not self.admit(address, door.device):
            self.counters.not_on_lan += 1
            reset_on_close(sock)
            sock.close()
            return
        host = self._host_of(address, door.device)
        if not self._has_room(host):
            self.counters.over_limit += 1
            reset_on_close(sock)
            sock.close()
            return
        sock.setblocking(False)
        connection = Connection(self, sock, host, Peer(address, door.address, door.device), self._loop)
        self._connections[connection] = door
        self._per_host[host] = self._per_host.get(host, 0) + 1
        connection.receive()

    def _has_room(self, host: Hashable) -> bool:
        """Whether the host may have another connection; one that only waits may have to go for it."""
        held = self._per_host.get(host, 0)
        if held >= self._max_connections_per_host:
            return False
        if len(self._connections) < self._max_connections:
            return True
        waiting = (
            (self._per_host[connection.host], -connection.waiting_since, connection)
            for connection in self._connections
            if connection.waiting_since is not None
        )
        holds, _, idlest = max(waiting, key=itemgetter(0, 1), default=(0, 0.0, None))
        if idlest is None or holds <= held:
            return False
        self.counters.gave_way += 1
        idlest.reset()
        return True

    def _pause(self, door: _Door, error: OSError) -> None:
        """Accept nothing for a while, as the connection that could not be accepted would only be offered again."""
        self.counters.accept_errors += 1
        _log.error(line("http_accept", address=door.address, device=door.device, reason=error.strerror))
        self._loop.remove_reader(door.socket)
        self._loop.call_later(ACCEPT_PAUSE, self._go_on, door)

    def _go_on(self, door: _Door) -> None:
        if door.socket in self._doors:
            self._loop.add_reader(door.socket, self._accept, door)

    # -- ends ----------------------------------------------------------------------------------------------------

    async def _shut(self, doors: list[_Door]) -> None:
        for door in doors:
            self._loop.remove_reader(door.socket)
            door.socket.close()
        theirs = [connection for connection, door in self._connections.items() if door in doors]
        tasks = [task for connection in theirs if (task := connection.reset())]
        await asyncio.gather(*tasks, return_exceptions=True)
