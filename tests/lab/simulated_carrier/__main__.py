# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier as a process in the carrier's namespace.

Its only argument is a JSON object, see Settings. The control socket takes one JSON line per connection, ``{"do": NAME,
"with": {ARGUMENTS}}`` with the names and arguments of Orders, and answers ``{"result": ...}`` or ``{"error": TEXT}``.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.lab.simulated_carrier.link import Link
from tests.lab.simulated_carrier.nat import Nat
from tests.lab.simulated_carrier.profiles import profile_from
from tests.lab.simulated_carrier.server import ALL_HOSTS, Outgoing, SimulatedServer, Source
from tests.support.pcp_octets import PCP_PORT

LARGEST_DATAGRAM = 65536
AT_ONCE = 64  # datagrams taken before the NAT is changed for all of them
CONTROL_PATIENCE = 5.0
ALL_HOSTS_6 = "ff02::1"  # RFC 6887 section 14.1.1
INSIDE = "inside"

T = TypeVar("T")
Waiting = list[tuple[float, int, T]]  # a heap: when it arrives, a serial number, what it is


@dataclass(frozen=True, slots=True)
class Settings:
    """Where it serves, the addresses it gives, the device they are on, how it behaves, its age, its control socket."""

    address: str
    external: list[str]
    outside: str
    profile: str
    overrides: dict[str, Any]
    seed: int
    epoch: int
    control: str


class CarrierProcess:
    """The server with its sockets, its link and its NAT."""

    def __init__(self, settings: Settings) -> None:
        profile = profile_from(settings.profile, settings.overrides)
        self.server = SimulatedServer(
            profile, settings.external, seed=settings.seed, now=time.monotonic(), epoch=settings.epoch
        )
        self.link = Link(settings.seed)
        self.nat = Nat(settings.outside)
        self.nat.use_addresses(settings.external)
        self._socket = _pcp_socket(settings.address)
        self._control = socket.socket(socket.AF_UNIX)
        self._control.bind(settings.control)
        self._control.listen()
        self._serial = itertools.count()
        self._requests: Waiting[tuple[bytes, Source]] = []
        self._replies: Waiting[Outgoing] = []

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            ready, _, _ = select.select([self._socket, self._control], [], [], self._patience())
            if self._socket in ready:
                self._take_datagrams()
            if self._control in ready:
                self._take_order()
            self._work()

    def _patience(self) -> float | None:
        times = [heap[0][0] for heap in (self._requests, self._replies) if heap]
        timer = self.server.next_timer()
        times += [] if timer is None else [timer]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take_datagrams(self) -> None:
        for _ in range(AT_ONCE):
            try:
                raw, source = self._socket.recvfrom(LARGEST_DATAGRAM, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            now = time.monotonic()
            times = self.link.request(now)
            if not times:
                self.server.counters["lost_requests"] += 1
                self.server.note(raw, source[:2], now, None)
            for at in times:
                heapq.heappush(self._requests, (at, next(self._serial), (raw, source[:2])))

    def _work(self) -> None:
        """Whatever is due: first the server, then the NAT, then the answers that tell of it."""
        now = time.monotonic()
        outgoing = self.server.handle_timer(now)
        for raw, source in _arrived(self._requests, now):
            outgoing += self.server.receive(raw, source, now)
        if changes := self.server.take_nat_changes():
            self.nat.apply(changes)
        for datagram in outgoing:
            times = self.link.reply(time.monotonic())
            self.server.counters["lost_replies"] += not times
            for at in times:
                heapq.heappush(self._replies, (at, next(self._serial), datagram))
        for datagram in _arrived(self._replies, time.monotonic()):
            with contextlib.suppress(OSError):  # the client is gone, or its network is
                self._socket.sendto(datagram.data, self._destination(datagram.to))
                self.server.counters["sent"] += 1

    def _destination(self, to: Source) -> Source:
        """All hosts, where a datagram is for them, in the socket's address family."""
        return (ALL_HOSTS_6, to[1]) if to[0] == ALL_HOSTS and self._socket.family == socket.AF_INET6 else to

    def _take_order(self) -> None:
        connection, _ = self._control.accept()
        with connection:
            connection.settimeout(CONTROL_PATIENCE)
            order = json.loads(connection.makefile("rb").readline())
            try:
                answer = {"result": getattr(Orders(self), order["do"])(**order["with"])}
            except (AttributeError, KeyError, TypeError) as error:
                answer = {"error": repr(error)}
            self._work()
            connection.sendall(json.dumps(answer).encode() + b"\n")


class Orders:
    """What the control socket can be asked; see SimulatedCarrier for what each means."""

    def __init__(self, process: CarrierProcess) -> None:
        self._process = process
        self._server = process.server
        self._now = time.monotonic()

    def table(self) -> list[dict[str, Any]]:
        return self._server.listing(self._now)

    def blocks(self) -> dict[str, tuple[int, int]]:
        return self._server.blocks

    def counters(self) -> dict[str, int]:
        return self._server.counters

    def requests(self, last: int) -> list[dict[str, Any]]:
        return list(self._server.requests)[-last:]

    def switch(self, **switches: Any) -> None:
        self._process.link.switches.set(**switches)

    def restart(self, announce: bool | None) -> None:
        self._server.restart(self._now, announce=announce)

    def lose_state(self) -> None:
        self._server.lose_state()

    def announce(self) -> None:
        self._server.announce(self._now)

    def use_addresses(self, addresses: list[str]) -> None:
        self._process.nat.use_addresses(addresses)
        self._server.use_addresses(addresses, self._now)

    def use_profile(self, name: str, overrides: dict[str, Any]) -> None:
        self._server.use_profile(profile_from(name, overrides))


def _arrived(waiting: Waiting[T], now: float) -> Iterator[T]:
    while waiting and waiting[0][0] <= now:
        yield heapq.heappop(waiting)[2]


def _pcp_socket(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(INSIDE))
    sock.bind((address, PCP_PORT))
    return sock


if __name__ == "__main__":
    process = CarrierProcess(Settings(**json.loads(sys.argv[1])))
    print("ready", flush=True)
    process.run()
