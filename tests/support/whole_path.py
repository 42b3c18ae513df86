# SPDX-License-Identifier: Apache-2.0
"""The whole path in memory, in virtual time: hall, PCP upstream and engine, a bad link, and the simulated carrier.

What outlives the process outlives the hall here: the kernel's rules, the journal, and what the carrier holds.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from igdpcp.config import UpstreamConfig
from igdpcp.daemon.pcp_servers import servers_behind
from igdpcp.errors import OurFault
from igdpcp.iwf import journal
from igdpcp.iwf.journal import Journal
from igdpcp.model import IPAddress, Mapping, Mode, Protocol
from igdpcp.net.router import Wan
from igdpcp.openings import AnyOpening, Discrepancy, Opening
from igdpcp.upstreams import server_line
from igdpcp.upstreams.pcp import PcpUpstream
from igdpcp.upstreams.pcp_sockets import Source
from tests.lab.simulated_carrier.asking import map_request
from tests.lab.simulated_carrier.link import Link
from tests.lab.simulated_carrier.profiles import Profile
from tests.lab.simulated_carrier.server import Outgoing, SimulatedServer
from tests.support.hall import CARRIER, FakeRuleset, Hall

SERVER = IPv4Address("100.64.12.1")
OWN, OTHER_OWN = IPv4Address("100.64.12.34"), IPv4Address("100.64.12.35")
STRANGER = "100.64.12.99"  # another subscriber
PCP_PORT, CLIENT_PORT = 5351, 5350
HALF_WAY = 0.01  # seconds that a datagram takes
MOMENT = 1e-6
UPSTREAM = UpstreamConfig(server=(str(SERVER),), device="wan0")
_FIRST_SOURCE_PORT = 40000


class ExpiringRuleset(FakeRuleset):
    """A kernel that lets rules expire, and of which somebody may ``flush`` the rules behind our back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self.ends: dict[str, float] = {}

    @property
    def live(self) -> dict[str, Opening]:
        """The rules that have not expired."""
        return {id: rule for id, rule in self.rules.items() if self.ends[id] > self._clock()}

    async def put(self, opening: AnyOpening) -> None:
        assert isinstance(opening, Opening)

        def lay() -> None:
            self.rules[opening.id] = opening
            self.ends[opening.id] = self._expiry(opening)

        await self._change(lay)

    async def sync(self, openings: list[AnyOpening]) -> None:
        def lay() -> None:
            rules = [opening for opening in openings if isinstance(opening, Opening)]
            self.rules = {rule.id: rule for rule in rules}
            self.ends = {rule.id: self._expiry(rule) for rule in rules}
            self.whole = True

        await self._change(lay)

    def _expiry(self, opening: Opening) -> float:
        """Timeouts are whole seconds."""
        now = self._clock()
        return now + max(1, round(opening.ends - now))

    async def audit(self) -> Discrepancy:
        return Discrepancy()

    def flush(self) -> None:
        self.rules.clear()
        self.whole = False


class MemorySockets:
    """What ``PcpSockets`` is, without a kernel; made by ``WholePath``."""

    def __init__(
        self,
        path: WholePath,
        received: Callable[[bytes, Source], None],
        woken: Callable[[], None],
    ) -> None:
        self._path = path
        self._received = received
        self._woken = woken
        self.port: int | None = None
        self.refused = 0

    def open(self, device: str, server: IPAddress) -> IPAddress:
        self.port = self._path.next_source_port()
        return self.source(device, server)

    def source(self, device: str, server: IPAddress) -> IPAddress:
        if self._path.own is None:
            raise OurFault("no route")
        return self._path.own

    def close(self) -> None:
        self.port = None

    def send(self, data: bytes) -> None:
        if self.port is not None and self._path.own is not None:
            self._path.post(data, (str(self._path.own), self.port))

    def take(self, data: bytes, to: Source) -> None:
        """What arrives for this address and port, or for all clients."""
        if self.port is not None and to in ((str(self._path.own), self.port), ("224.0.0.1", CLIENT_PORT)):
            self._received(data, (str(SERVER), PCP_PORT))
            self._woken()


@dataclass(frozen=True, slots=True, order=True)
class CarrierPath:
    """A mapping of the carrier's: protocol, internal endpoint and external port."""

    protocol: str
    address: str
    port: int
    external_port: int


class WholePath:
    """``start`` it; then ``hall`` is asked. ``stop``, ``kill`` and ``start`` again as the process ends and begins."""

    def __init__(
        self, directory: Path, profile: Profile, patch: pytest.MonkeyPatch, *, seed: int = 1, **options: Any
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.profile = profile
        self.link = Link(seed)
        self.server = SimulatedServer(profile, [str(CARRIER)], seed=seed, now=self.loop.time(), epoch=86400)
        self.own: IPv4Address | None = OWN
        self.ruleset = ExpiringRuleset(self.loop.time)
        self.directory = directory
        self.disturbed = False  # the carrier lost something, and the hall need not know
        self._options = options
        self._seed = seed
        self._last_arrival = 0.0
        self._source_port = _FIRST_SOURCE_PORT
        self._sockets: list[MemorySockets] = []
        self._server_timer: asyncio.TimerHandle | None = None
        patch.setattr(journal, "boottime", self.loop.time)
        patch.setattr(server_line, "PcpSockets", self._make_sockets)

    def _make_sockets(
        self, received: Callable[[bytes, Source], None], woken: Callable[[], None], *_: object
    ) -> MemorySockets:
        self._sockets = [MemorySockets(self, received, woken)]
        return self._sockets[0]

    # -- our process ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """As the service does, in its order."""
        self.hall = hall = Hall(self.directory, carrier=False, **self._options)
        hall.ruleset = hall.leg._ruleset = self.ruleset
        hall.router.wan_address = self.own
        self._source_port += 1
        self.pcp = PcpUpstream(
            hall.main, UPSTREAM, secret=b"secret", rng=random.Random(self._seed), emit=hall.fallback.receive,
            is_local=lambda address: False, peer_changed=lambda: None,
        )  # fmt: skip
        hall.fallback.attach(self.pcp)
        self._tell_network()
        await hall.restart.restore()

    async def stop(self) -> None:
        await self.hall.stop()
        self.pcp.close()
        await _cancelled()

    async def kill(self) -> None:
        """Nothing runs on, and nothing more is written."""
        self.hall.kill()
        self.pcp.close()
        self.hall.lifecycle.refreshing._tasks.cancel()
        await _cancelled()

    def journalled(self) -> list[Mapping]:
        """What the next process would find."""
        return list(Journal(self.directory / "run", self.directory / "state", self.loop.time).load().mappings)

    # -- what happens around it ----------------------------------------------------------------------------------

    def use_address(self, own: IPv4Address | None) -> None:
        """The WAN has this address now, None: it is down."""
        if own == self.own:
            return
        self.own = self.hall.router.wan_address = own
        self._tell_network()
        if own is not None:
            self.hall.lifecycle.wan_changed()

    def _tell_network(self) -> None:
        wan = Wan("wan0", self.own, SERVER)
        self.hall.local.network_changed()
        self.pcp.network_changed(wan.device, wan.address, servers_behind([UPSTREAM], wan, frozenset(), []))

    async def flush_rules(self) -> None:
        """Somebody takes the rules away, and the service hears of it."""
        self.ruleset.flush()
        await self.hall.leg.audit("nft")

    def carrier_restarts(self, announce: bool) -> None:
        self.disturbed = True
        self.server.restart(self.loop.time(), announce=announce)
        self._arm()

    def carrier_loses_state(self) -> None:
        self.disturbed = True
        self.server.lose_state()

    def stranger_takes(self, port: int) -> None:
        """Another subscriber gets this TCP port, if it is free."""
        raw = map_request(STRANGER, port, port, lifetime=self.profile.longest)
        self.server.receive(raw, (STRANGER, CLIENT_PORT), self.loop.time())

    def next_source_port(self) -> int:
        self._source_port += 1
        return self._source_port

    # -- the line ------------------------------------------------------------------------------------------------

    def post(self, data: bytes, source: Source) -> None:
        for at in self.link.request(self.loop.time()):
            self.loop.call_at(self._in_order(at + HALF_WAY), self._at_server, data, source)

    def _in_order(self, at: float) -> float:
        """Behind what was sent before it and arrives at this moment: the loop runs what is due at once in any order."""
        if at <= self._last_arrival < at + MOMENT:
            at = math.nextafter(self._last_arrival, math.inf)
        self._last_arrival = at
        return at

    def _at_server(self, data: bytes, source: Source) -> None:
        self._reply(self.server.receive(data, source, self.loop.time()))
        self._arm()

    def _reply(self, outgoing: Iterable[Outgoing]) -> None:
        for each in outgoing:
            for at in self.link.reply(self.loop.time()):
                self.loop.call_at(at + HALF_WAY, self._at_client, each)

    def _at_client(self, outgoing: Outgoing) -> None:
        for sockets in self._sockets:
            sockets.take(outgoing.data, outgoing.to)

    def _arm(self) -> None:
        if self._server_timer:
            self._server_timer.cancel()
        due = self.server.next_timer()
        self._server_timer = None if due is None else self.loop.call_at(due, self._server_due)

    def _server_due(self) -> None:
        self._server_timer = None
        self._reply(self.server.handle_timer(self.loop.time()))
        self._arm()

    # -- what is so ----------------------------------------------------------------------------------------------

    def carrier_holds(self) -> set[CarrierPath]:
        """All that the carrier holds for us, but for what it holds for an address that we no longer have."""
        return set(self.carrier_filters())

    def carrier_filters(self) -> dict[CarrierPath, set[IPv4Address]]:
        """The same, and whom it lets in by each (none: everybody)."""
        routed = self.hall.fallback.mode is Mode.ROUTED
        rows = [row for row in self.server.listing(self.loop.time()) if row["address"] != STRANGER]
        return {
            CarrierPath(row["protocol"], row["address"], row["port"], row["external_port"]): set(
                map(IPv4Address, row["filters"])
            )
            for row in rows
            if routed or row["address"] == str(self.own)
        }

    def strangers_ports(self) -> set[int]:
        rows = self.server.listing(self.loop.time())
        return {row["external_port"] for row in rows if row["address"] == STRANGER}

    def promised(self) -> set[CarrierPath]:
        """All that the table says the carrier holds."""
        granted = [(each, each.grant) for each in self.hall.table if each.visible and each.grant]
        return {path_of(each) for each, grant in granted if grant.upstream != Mode.LOCAL}

    def close(self) -> None:
        """Nothing of the carrier is left running."""
        if self._server_timer:
            self._server_timer.cancel()


async def _cancelled() -> None:
    """What was cancelled has ended."""
    for _ in range(5):
        await asyncio.sleep(0)


def path_of(mapping: Mapping) -> CarrierPath:
    """What the carrier must hold for a mapping that it granted."""
    assert mapping.grant is not None
    protocol = "tcp" if mapping.request.protocol is Protocol.TCP else "udp"
    return CarrierPath(protocol, str(mapping.grant.internal), mapping.wan_port, mapping.grant.external.port)
