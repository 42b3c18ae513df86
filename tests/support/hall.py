# SPDX-License-Identifier: Apache-2.0
"""The whole interworking function between a scripted carrier and a remembered ruleset, asked by SOAP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from igdpcp.config import MainConfig, PermissionConfig, StaticMappingConfig
from igdpcp.daemon.connection_service import ConnectionService
from igdpcp.daemon.firewall_service import FirewallService
from igdpcp.daemon.host_names import HostNames
from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.igd_handler import IgdHandler
from igdpcp.daemon.link_service import LinkService
from igdpcp.daemon.state_variables import StateVariables
from igdpcp.errors import RulesetError
from igdpcp.iwf.established import Established
from igdpcp.iwf.interfaces import AddressChanged, Emit, Granted, Lost, Refused, Released, StateChanged, UpstreamEvent
from igdpcp.iwf.internal_tuples import InternalTuples
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.lifecycle import Lifecycle
from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.iwf.pinholes import Pinholes
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.port_policy import PortPolicy
from igdpcp.iwf.restart import Restart
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.static_mappings import StaticMappings, static_requests
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.model import Activation, Endpoint, Grant, IPAddress, Mapping, Protocol, UpstreamRequest
from igdpcp.openings import AnyOpening, Discrepancy, Flows, Opening, PinholeOpening, Surroundings
from igdpcp.upnp.description import DeviceIdentity
from igdpcp.upnp.http import HttpRequest, HttpResponse
from igdpcp.upstreams.fallback import FallbackUpstream
from igdpcp.upstreams.local import LocalUpstream
from igdpcp.upstreams.pcp import PcpUpstream

WAN = IPv4Address("100.64.12.34")
CARRIER = IPv4Address("62.0.0.1")
A, B = "192.168.1.50", "192.168.1.60"
A6, B6 = "2600:1::50", "2600:1::60"
URN = "urn:schemas-upnp-org:service:WANIPConnection:{}"
FIREWALL_URN = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
UDNS = tuple(f"uuid:00000000-0000-0000-0000-00000000000{n}" for n in range(3))
IDENTITY = DeviceIdentity("igdpcp", "0", UDNS, 1, "", "0")  # type: ignore[arg-type]
Answer = Callable[[UpstreamRequest], None]


class FakeRouter:
    """A router with one LAN, 192.168.1.0/24 and ``lan6``."""

    wan_device = "wan0"

    def __init__(self) -> None:
        self.wan_address: IPv4Address | None = WAN
        self.lan6 = IPv6Network("2600:1::/64")
        self.used: set[tuple[Protocol, int]] = set()

    def on_lan(self, address: IPAddress) -> bool:
        if isinstance(address, IPv6Address):
            return address in self.lan6 and address != self.lan6[1]
        return address in IPv4Network("192.168.1.0/24") and address != IPv4Address("192.168.1.1")

    def in_lan(self, address: IPAddress, name: str) -> bool:
        """The upper half of the addresses is the LAN ``guest``, the lower one ``lan``."""
        upper = isinstance(address, IPv4Address) and address in IPv4Network("192.168.1.128/25")
        return self.on_lan(address) and name == ("guest" if upper else "lan")

    def port_in_use(self, protocol: Protocol, port: int) -> bool:
        return (protocol, port) in self.used


class FakeResolver:
    """Knows the addresses in ``hosts``, and answers after ``slow`` seconds; ``asked`` are the names in order."""

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}
        self.slow = 0.0
        self.asked: list[str] = []

    def look_up(self, name: str) -> asyncio.Future[IPv4Address | None]:
        self.asked.append(name)
        return asyncio.ensure_future(self._answer(name))

    async def _answer(self, name: str) -> IPv4Address | None:
        await asyncio.sleep(self.slow)
        return IPv4Address(self.hosts[name]) if name in self.hosts else None


def seconds_left(rule: AnyOpening) -> int:
    """How long it lasts from now on."""
    return round(rule.ends - asyncio.get_running_loop().time())


class FakeRuleset:
    """Remembers what stands, changes in order; ``fails`` the next that many changes, each takes ``slow`` seconds.

    ``whole`` False: somebody has taken the rules away. ``differs``: what an audit finds until the next sync.
    ``packets``: what pinholes have let in, by id.
    """

    def __init__(self) -> None:
        self.rules: dict[str, Opening] = {}
        self.puts: list[Opening] = []
        self.pinhole_rules: dict[str, PinholeOpening] = {}
        self.packets: dict[str, int] = {}
        self.fails = 0
        self.whole = True
        self.differs = Discrepancy()
        self.syncs = self.audits = 0
        self.slow = 0.0
        self._turn = asyncio.Lock()

    async def put(self, opening: AnyOpening) -> None:
        if isinstance(opening, PinholeOpening):
            await self._change(lambda: self.pinhole_rules.__setitem__(opening.id, opening))
            return
        await self._change(lambda: self.rules.__setitem__(opening.id, opening))
        self.puts.append(opening)

    async def remove(self, id: str) -> None:
        await self._change(lambda: (self.rules.pop(id, None), self.pinhole_rules.pop(id, None)))

    async def sync(self, openings: list[AnyOpening]) -> None:
        def lay_down() -> None:
            self.rules = {opening.id: opening for opening in openings if isinstance(opening, Opening)}
            self.pinhole_rules = {opening.id: opening for opening in openings if isinstance(opening, PinholeOpening)}
            self.differs = Discrepancy()

        self.syncs += 1
        await self._change(lay_down)

    async def pinhole_packets(self, id: str) -> int:
        if self.fails:
            raise RulesetError("no such table")
        return self.packets.get(id, 0)

    async def intact(self) -> bool:
        return self.whole

    async def audit(self) -> Discrepancy:
        self.audits += 1
        await asyncio.sleep(self.slow)
        if self.fails:
            raise RulesetError("no such table")
        return self.differs

    async def surroundings(self, surroundings: Surroundings) -> None:
        """Everywhere."""
        await self._change(lambda: None)

    async def _change(self, change: Callable[[], object]) -> None:
        async with self._turn:
            await asyncio.sleep(self.slow)
            if self.fails:
                self.fails -= 1
                raise RulesetError("no such table")
            change()


class FakeFlowTable:
    """Remembers what was to be cut."""

    def __init__(self) -> None:
        self.cuts: list[Flows] = []

    async def cut(self, flows: Flows) -> None:
        self.cuts.append(flows)


@dataclass
class FakeCarrier:
    """A PCP server behind its upstream: grants at once what it is asked for, unless ``answer`` says something else.

    ``asked``, ``returned`` (``urgently_returned``: some of it) and ``given_back`` are what it was told. ``releases``:
    how it answers a deletion, None: not. ``learns``: what it does when its external address is asked for.
    """

    emit: Emit
    clock: Callable[[], float]
    own: Callable[[], IPv4Address | None]
    name: str = "pcp"
    state: Activation = Activation.ACTIVE
    trusted: bool = True
    spare: int = 0
    up_since: float | None = 900.0
    external_address: IPv4Address | None = CARRIER
    longest: int = 86400
    releases: int | None = 0
    answer: Answer | None = None
    silent: bool = False
    wanted: dict[str, UpstreamRequest] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    asked: list[UpstreamRequest] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    urgently_returned: list[str] = field(default_factory=list)
    given_back: list[UpstreamRequest] = field(default_factory=list)
    announced: int = 0
    learns: Callable[[], Awaitable[None]] | None = None

    def __contains__(self, id: str) -> bool:
        return id in self.wanted

    def request(self, id: str) -> UpstreamRequest | None:
        return self.wanted.get(id)

    def grants(self, id: str) -> bool:
        return id in self.running

    def stands(self, id: str, grant: Grant) -> bool:
        wanted = self.wanted.get(id)
        return wanted is not None and _address(wanted) == grant.internal and self.state is not Activation.NO_WAN

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        request = self._settled(request)
        self.wanted[request.id] = request
        self.asked.append(request)
        if self.answer:
            self.answer(request)
        elif not self.silent:
            self.grant(request.id)

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        self.running.discard(id)
        known = self.wanted.pop(id, None)
        if known:
            self.returned.append(id)
            if urgent:
                self.urgently_returned.append(id)
        if self.releases is not None or not known:
            self.emit(Released(id, self.releases or 0))

    def give_back(self, request: UpstreamRequest) -> None:
        self.given_back.append(self._settled(request))
        if self.releases is not None:
            self.emit(Released(request.id, self.releases))

    def announce(self) -> None:
        self.announced += 1

    async def learn_address(self) -> None:
        if self.learns:
            await self.learns()

    def _settled(self, request: UpstreamRequest) -> UpstreamRequest:
        """With the router's own address, where it has one, as a server would see it."""
        if isinstance(request.internal, int) and (own := self.own()):
            return replace(request, internal=Endpoint(own, request.internal))
        return request

    def grant(
        self, id: str, port: int = 0, lifetime: int | None = None, address: IPv4Address = CARRIER, nonce: bytes = b"n"
    ) -> None:
        """Answer with this port, else the wanted one, else one of the carrier's choice."""
        request, now = self.wanted[id], self.clock()
        left = self.longest if request.until is None else round(request.until - now)
        seconds = min(left, self.longest) if lifetime is None else lifetime
        external = Endpoint(address, port or request.external_port or 40000 + len(self.asked))
        self.running.add(id)
        self.emit(
            Granted(
                id, Grant(self.name, _address(request), external, seconds, now + seconds, nonce), request.remote_hosts
            )
        )

    def refuse(self, id: str, result: int, lifetime: int = 1800) -> None:
        self.emit(Refused(id, result, lifetime))

    def lose(self, id: str) -> None:
        self.running.discard(id)
        self.emit(Lost(id))

    def become(self, state: Activation) -> None:
        self.state = state
        self.emit(StateChanged(state))

    def move(self, address: IPv4Address | None) -> None:
        self.external_address = address
        self.emit(AddressChanged(address))

    def refuses(self, result: int, lifetime: int = 1800) -> None:
        """From now on."""
        self.answer = lambda request: self.refuse(request.id, result, lifetime)


def _address(request: UpstreamRequest) -> IPv4Address:
    return request.internal.address if isinstance(request.internal, Endpoint) else IPv4Address(0)


@dataclass(frozen=True)
class Reply:
    """What a control point got: the UPnP error code, 0 for none, and the output arguments.

    ``reply["Uptime"]`` is NewUptime where there is no Uptime.
    """

    code: int
    outputs: dict[str, str]

    def __getitem__(self, name: str) -> str:
        return self.outputs[name if name in self.outputs else f"New{name}"]


class Hall:
    """Made by ``open``; ``stop`` it as the service does, or ``kill`` it as the kernel does."""

    def __init__(
        self,
        directory: Path,
        *,
        routed: bool = False,
        carrier: bool = True,
        permissions: Iterable[PermissionConfig] = (),
        static: Iterable[StaticMappingConfig] = (),
        agent: str = "",
        **options: Any,
    ) -> None:
        self.agent = agent
        self.main = MainConfig(**options)
        self.loop = asyncio.get_running_loop()
        self.changes = 0  # how often control points are to be shown something else
        self.shown_changed: Callable[[], None] = lambda: None
        self.router, self.ruleset, self.table = FakeRouter(), FakeRuleset(), MappingTable(self._changed)
        self.events: asyncio.Queue[UpstreamEvent] = asyncio.Queue()
        self.journal = Journal(
            directory / "run", directory / "state", self.loop.time, lambda: self.table.system_update_id,
            persists=self.main.persist == "all",
        )  # fmt: skip
        self.local = LocalUpstream(self.router, self.events.put_nowait)
        fall_back = self.main.unreachable_policy == "local"
        self.fallback = FallbackUpstream(self.local, routed=routed, fall_back=fall_back, emit=self.events.put_nowait)
        self.carrier = FakeCarrier(self.fallback.receive, self.loop.time, lambda: self.router.wan_address)
        if carrier:
            self.fallback.attach(cast(PcpUpstream, self.carrier))
        self.pinhole_table = PinholeTable()
        self.flows = FakeFlowTable()
        established = Established(self.flows, self.router, cut_ended=self.main.cut_flows)
        self.leg = RouterLeg(self.main, self.ruleset, self.router, self.table, self.pinhole_table, established)
        self.port_policy = PortPolicy(self.main, self.table, self.fallback)
        self.upstream_leg = UpstreamLeg(self.main, self.fallback, self.journal, self.port_policy)
        wanted = static_requests(static)
        self.policy = policy = Policy(
            self.main, tuple(permissions), self.router, self.table, static=wanted, clock=self.loop.time
        )
        self.lifecycle = Lifecycle(
            main=self.main, table=self.table, policy=policy, upstream=self.fallback, router_leg=self.leg,
            upstream_leg=self.upstream_leg, journal=self.journal, port_policy=self.port_policy,
            changed=self._changed,
        )  # fmt: skip
        self.pinholes = Pinholes(
            main=self.main, table=self.pinhole_table, policy=policy, router_leg=self.leg, journal=self.journal
        )
        self.interworking = Interworking(
            main=self.main, table=self.table, policy=policy, upstream=self.fallback, router=self.router,
            lifecycle=self.lifecycle, in_use=self.router.port_in_use, port_policy=self.port_policy,
        )  # fmt: skip
        self.tuples = InternalTuples(
            table=self.table, policy=policy, upstream=self.fallback, interworking=self.interworking,
            lifecycle=self.lifecycle,
        )  # fmt: skip
        self.static = StaticMappings(wanted, self.interworking, self.table)
        self.restart = Restart(
            table=self.table, upstream=self.fallback, router_leg=self.leg, upstream_leg=self.upstream_leg,
            journal=self.journal, lifecycle=self.lifecycle, pinholes=self.pinholes,
            static=self.static,
        )  # fmt: skip
        self.variables = StateVariables(
            identity=IDENTITY, interworking=self.interworking, upstream=self.fallback, router=self.router,
            pinholes=self.pinholes,
        )  # fmt: skip
        self.resolver = FakeResolver()
        self.names = HostNames(self.resolver.look_up, self.main.soap_deadline)
        self.igd_handler = IgdHandler(
            identity=IDENTITY, igd_version=self.main.igd_version, variables=self.variables,
            services=(
                ConnectionService(self.interworking, self.names), LinkService(self.variables),
                FirewallService(self.pinholes),
            ),
            subscriptions=lambda request, peer, service, tree: HttpResponse(503),
        )  # fmt: skip
        self._consumer = self.loop.create_task(self.lifecycle.run(self.events))

    def _changed(self) -> None:
        self.changes += 1
        self.shown_changed()

    @property
    def only(self) -> Mapping:
        """The only mapping that there is, shown or not."""
        (mapping,) = self.table
        return mapping

    @property
    def only_rule(self) -> Opening:
        (rule,) = self.ruleset.rules.values()
        return rule

    async def stop(self) -> None:
        await self.static.stop()
        await self.lifecycle.stop()
        await self.pinholes.stop()
        self.kill()
        self.journal.save()

    def kill(self) -> None:
        """Nothing of it runs on; what the carrier and the kernel hold is left to the next one."""
        self._consumer.cancel()
        self.static._tasks.cancel()
        for owner in (self.lifecycle, self.pinholes):
            owner._timers.stop_all()
            owner._tasks.cancel()
        self.lifecycle.departures.stop()
        self.pinholes._absences.stop()
        self.lifecycle._resends.stop()
        for deletion in self.lifecycle._deletions._tasks.values():
            deletion.cancel()
        self.loop.create_task(self.leg.stop())
        self.local.close()
        self.journal.close()

    async def soap(self, action: str, host: str = A, version: int = 1, **arguments: object) -> Reply:
        """Call an action of WANIPConnection; names of arguments are without their ``New``."""
        return await self._post(URN.format(version), "/ctl/IPConn", action, host, "New", arguments)

    async def firewall(self, action: str, host: str = A6, **arguments: object) -> Reply:
        """Call an action of WANIPv6FirewallControl."""
        return await self._post(FIREWALL_URN, "/v2/ctl/IP6FCtl", action, host, "", arguments)

    async def _post(
        self, urn: str, path: str, action: str, host: str, prefix: str, arguments: dict[str, object]
    ) -> Reply:
        values = "".join(f"<{prefix}{name}>{value}</{prefix}{name}>" for name, value in arguments.items())
        body = (
            '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
            f'<u:{action} xmlns:u="{urn}">{values}</u:{action}></s:Body></s:Envelope>'
        )
        headers = {"soapaction": f'"{urn}#{action}"', "user-agent": self.agent}
        request = HttpRequest("POST", path, headers, body.encode(), "1.1")
        peer = Peer(ip_address(host), IPv4Address("192.168.1.1"), "br-lan")
        response = await self.igd_handler.handle(request, peer)
        [[outcome]] = ElementTree.fromstring(response.body)
        leaves = {element.tag.rpartition("}")[2]: element.text or "" for element in outcome.iter()}
        if "errorCode" in leaves:
            return Reply(int(leaves["errorCode"]), {})
        return Reply(0, {element.tag: element.text or "" for element in outcome})

    async def add(
        self, port: int = 8080, host: str = A, *, version: int = 1, any_port: bool = False, **changes: object
    ) -> Reply:
        """AddPortMapping of tcp ``port`` to the host's port 8000 for an hour, with changed arguments."""
        arguments = {
            "RemoteHost": "", "ExternalPort": port, "Protocol": "TCP", "InternalPort": 8000, "InternalClient": host,
            "Enabled": 1, "PortMappingDescription": "test", "LeaseDuration": 3600,
        }  # fmt: skip
        action = "AddAnyPortMapping" if any_port else "AddPortMapping"
        return await self.soap(action, host, 2 if any_port else version, **(arguments | changes))

    async def delete(self, port: int = 8080, host: str = A, *, version: int = 1) -> Reply:
        return await self.soap("DeletePortMapping", host, version, RemoteHost="", ExternalPort=port, Protocol="TCP")

    async def specific(self, port: int = 8080, host: str = A) -> Reply:
        return await self.soap("GetSpecificPortMappingEntry", host, RemoteHost="", ExternalPort=port, Protocol="TCP")

    async def listed(self) -> list[Reply]:
        """GetGenericPortMappingEntry until it says that there are no more."""
        rows: list[Reply] = []
        while not (row := await self.soap("GetGenericPortMappingEntry", PortMappingIndex=len(rows))).code:
            rows.append(row)
        assert row.code == 713
        return rows

    async def ports(self) -> list[int]:
        return [int(row["ExternalPort"]) for row in await self.listed()]


async def settle() -> None:
    """Let everything happen that can happen now."""
    await asyncio.sleep(0.001)
