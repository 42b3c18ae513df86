# SPDX-License-Identifier: Apache-2.0
"""The PCP client engine and the simulated carrier's server engine, joined in memory by a bad link, in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from igdpcp.model import Protocol
from igdpcp.pcp.client import Event, MappingGranted, MappingLost, MappingRefused, MappingReleased, PcpClient, Timing
from igdpcp.pcp.events import WantedMapping
from tests.lab.simulated_carrier.link import Link
from tests.lab.simulated_carrier.profiles import PROFILES, Profile
from tests.lab.simulated_carrier.server import Outgoing, SimulatedServer

SERVER = (IPv4Address("100.64.12.1"), 5351)
OWN = IPv4Address("100.64.12.34")
EXTERNAL = "62.0.0.1"
CLIENT_PORT = 40000
HALF_WAY = 0.01  # seconds that a datagram takes


@dataclass(frozen=True, slots=True)
class Request:
    """A datagram of the client; ``arrives`` False: the link lost it."""

    at: float
    internal_port: int
    lifetime: int
    arrives: bool


class TwoEngines:
    """Both ends. ``events`` and ``requests`` have their times; ``link.switches`` make the link bad."""

    def __init__(self, *, profile: Profile = PROFILES["strict"], seed: int = 1, timing: Timing | None = None) -> None:
        self.now = 1000.0
        self.link = Link(seed)
        self.server = SimulatedServer(profile, [EXTERNAL], seed=seed, now=self.now)
        self.events: list[tuple[float, Event]] = []
        self.requests: list[Request] = []
        self._seed = seed
        self._timing = timing or Timing()
        self._serial = itertools.count()
        self._underway: list[tuple[float, int, bytes, bool]] = []  # the last: to the server
        self.restart_client()

    def restart_client(self) -> None:
        """A new process: it knows nothing but the secret."""
        self.wanted: dict[str, WantedMapping] = {}
        self.granted: dict[str, MappingGranted] = {}
        self.client = PcpClient(
            server=SERVER, server_identity="wan", secret=b"secret", rng=random.Random(self._seed), timing=self._timing
        )
        self.client.address_changed(OWN, self.now)

    def want(
        self, port: int, *, lease: float | None = None, external_port: int | None = None, exact: bool = True
    ) -> None:
        """TCP ``port`` of ours, the same one outside, until ``lease`` seconds from now."""
        key = str(port)
        self.wanted[key] = wanted = WantedMapping(
            key=key, protocol=Protocol.TCP, internal_address=OWN, internal_port=port, exact=exact,
            external_port=port if external_port is None else external_port,
            until=None if lease is None else self.now + lease,
        )  # fmt: skip
        self.client.want(wanted, self.now)
        self.settle()

    def drop(self, port: int) -> None:
        self.wanted.pop(str(port), None)
        self.granted.pop(str(port), None)
        self.client.drop(str(port), self.now)
        self.settle()

    def run(self, seconds: float) -> None:
        """Let time pass, event by event."""
        end = self.now + seconds
        while (at := self._next()) is not None and at <= end:
            self.now = max(self.now, at)
            self._deliver()
            self._send(self.server.handle_timer(self.now))
            self.client.handle_timer(self.now)
            self.settle()
        self.now = end
        self.settle()

    def table(self) -> dict[int, int]:
        """The carrier's mappings: internal and external port."""
        return {row["port"]: row["external_port"] for row in self.server.listing(self.now)}

    def of(self, kind: type) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kind)]

    def settle(self) -> None:
        """Take the client's events and let its datagrams leave."""
        busy = True
        while busy:
            busy = False
            while event := self.client.next_event():
                busy = True
                self.events.append((self.now, event))
                self._account(event)
            for data in self.client.datagrams_to_send(self.now):
                busy = True
                self._post(data)

    def _account(self, event: Event) -> None:
        match event:
            case MappingGranted():
                self.granted[event.key] = event
            case MappingLost() | MappingReleased():
                self.granted.pop(event.key, None)
            case MappingRefused():
                pass

    def _next(self) -> float | None:
        times = [self.client.next_timer(), self.server.next_timer(), self._underway[0][0] if self._underway else None]
        return min((at for at in times if at is not None), default=None)

    def _post(self, data: bytes) -> None:
        arrivals = self.link.request(self.now)
        port = int.from_bytes(data[40:42], "big") if data[1] == 1 else 0
        self.requests.append(Request(self.now, port, int.from_bytes(data[4:8], "big"), bool(arrivals)))
        for at in arrivals:
            heapq.heappush(self._underway, (at + HALF_WAY, next(self._serial), data, True))

    def _deliver(self) -> None:
        while self._underway and self._underway[0][0] <= self.now:
            _, _, data, to_server = heapq.heappop(self._underway)
            if to_server:
                self._send(self.server.receive(data, (str(OWN), CLIENT_PORT), self.now))
            else:
                self.client.receive_datagram(data, (str(SERVER[0]), SERVER[1]), self.now)

    def _send(self, replies: list[Outgoing]) -> None:
        for reply in replies:
            for at in self.link.reply(self.now):
                heapq.heappush(self._underway, (at + HALF_WAY, next(self._serial), reply.data, False))
