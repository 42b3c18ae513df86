# SPDX-License-Identifier: Apache-2.0
"""What the control socket tells: the whole state in one dictionary, mappings and pinholes as rows."""

from __future__ import annotations

import asyncio
from typing import Any

from igdpcp import __version__
from igdpcp.config import Config, UpstreamConfig
from igdpcp.daemon.event_publisher import EventPublisher
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.igd_handler import IgdHandler
from igdpcp.daemon.pcp_server import PcpServer
from igdpcp.daemon.ports_in_use import PortsInUse
from igdpcp.daemon.ssdp_server import SsdpServer
from igdpcp.iwf import translate
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.port_policy import PortPolicy
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.static_mappings import StaticMappings
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.log import RecentTroubles
from igdpcp.model import Mapping, MappingState, Mode, Pinhole
from igdpcp.net.router import RouterView
from igdpcp.netfilter.base import GroupCommit
from igdpcp.openings import Discrepancy
from igdpcp.upnp.description import ROOT_PATH, VERSIONS
from igdpcp.upnp.ssdp import host_port
from igdpcp.upstreams.fallback import FallbackUpstream
from igdpcp.upstreams.pcp import PcpUpstream

_PENDING = (MappingState.PLANNED, MappingState.HIDDEN, MappingState.RETRYING)


class Status:
    """Looks at every part and changes none."""

    def __init__(
        self,
        *,
        config: Config,
        upstreams: tuple[UpstreamConfig, ...],
        router: RouterView,
        table: MappingTable,
        interworking: Interworking,
        upstream_leg: UpstreamLeg,
        router_leg: RouterLeg,
        ruleset: GroupCommit,
        fallback: FallbackUpstream,
        pcp: PcpUpstream | None,
        igd_handler: IgdHandler,
        http: HttpServer,
        events: EventPublisher,
        troubles: RecentTroubles,
        started: float,
        pinholes: PinholeTable,
        ports: PortsInUse,
        policy: Policy,
        static: StaticMappings,
        port_policy: PortPolicy,
        pcp_server: PcpServer,
    ) -> None:
        self._config = config
        self._upstreams = upstreams
        self._router = router
        self._table = table
        self._interworking = interworking
        self._upstream_leg = upstream_leg
        self._router_leg = router_leg
        self._ruleset = ruleset
        self._fallback = fallback
        self._pcp = pcp
        self._igd_handler = igd_handler
        self._http = http
        self._events = events
        self._troubles = troubles
        self._started = started
        self._pinholes = pinholes
        self._ports = ports
        self._policy = policy
        self._static = static
        self._port_policy = port_policy
        self._pcp_server = pcp_server
        self._loop = asyncio.get_running_loop()
        self.ssdp: SsdpServer | None = None  # another one whenever the LANs change

    async def status(self) -> dict[str, Any]:
        """Everything that ``igdpcp-cli status`` shows."""
        address, reason = self._interworking.outside.address()
        now = self._loop.time()
        return {
            "version": __version__,
            "mode": self._fallback.mode.value,
            "backend": self._ruleset.name,
            "activation": self._activation(now),
            "upstream": self._upstream(),
            "external_address": str(address) if address else None,
            "external_address_reason": reason,
            "wan": {"device": self._router.wan_device, "address": _text(self._router.wan_address)},
            "lans": self._lans(),
            "igd": self._igd(),
            "pcp_server": self._lan_pcp(),
            "mappings": self._counts(),
            "pinholes": {"open": len(self._pinholes), "limit": self._config.main.max_pinholes},
            "firewall": await self._firewall(),
            "static": self._static_mappings(),
            "port_conflicts": self._ports.conflicts,
            "port_blocks": self._port_policy.learnt(),
            "errors": [{"seconds_ago": round(now - at), "text": text} for at, text in self._troubles.lines],
            "uptime_seconds": round(now - self._started),
            "warnings": list(self._config.warnings),
            "counters": {
                "answers": dict(self._igd_handler.outcomes),
                "refusals": dict(self._policy.refusals),
                "http": _fields(self._http.counters),
                "ssdp": _fields(self.ssdp.counters) if self.ssdp else {},
                "pcp_server": _fields(self._pcp_server.counters),
                "events": {"subscriptions": self._events.subscriptions, **_fields(self._events.counters)},
            },
        }

    async def mappings(self) -> list[dict[str, Any]]:
        """Every mapping, also those that control points are not shown, and every pinhole."""
        return [
            *(self.row(entry) for mapping in self._table for entry in mapping.entries),
            *map(self.pinhole_row, self._pinholes),
        ]

    def row(self, mapping: Mapping) -> dict[str, Any]:
        """One mapping for people and programs; times are seconds from now."""
        request, grant, now = mapping.request, mapping.grant, self._loop.time()
        return {
            "kind": "mapping",
            "id": mapping.id,
            "protocol": request.protocol.name.lower(),
            "external_address": str(grant.external.address) if grant else None,
            "external_port": mapping.external_port,
            "public_port": grant.external.port if grant else None,
            "client": str(request.client.address),
            "client_port": request.client.port,
            "wan_port": mapping.wan_port,
            "remote_host": _text(request.remote_host) or "",
            "description": request.description,
            "requester": _text(request.requester.address) or "",
            "owner": request.requester.owner.value,
            "shared_with": mapping.sharer.request.requester.owner.value if mapping.sharer else "",
            "agent": request.requester.agent,
            "state": mapping.state.value,
            "local_only": self._local_only(mapping),
            "lease_left": translate.lease_left(mapping, now) or None,
            "grant_left": max(0, round(grant.ends - now)) if grant else None,
            "upstream": grant.upstream if grant else None,
        }

    def pinhole_row(self, pinhole: Pinhole) -> dict[str, Any]:
        """One pinhole, with what a mapping's row has: from outside it is reached at the client's own address."""
        request = pinhole.request
        return {
            "kind": "pinhole",
            "id": pinhole.name,
            "protocol": request.protocol.name.lower(),
            "external_address": str(request.client),
            "external_port": request.client_port,
            "public_port": request.client_port,
            "client": str(request.client),
            "client_port": request.client_port,
            "wan_port": None,
            "remote_host": _text(request.remote_host) or "",
            "remote_port": request.remote_port,
            "description": "",
            "requester": _text(request.requester.address) or "",
            "owner": request.requester.owner.value,
            "shared_with": "",
            "agent": request.requester.agent,
            "state": MappingState.ACTIVE.value,
            "local_only": False,
            "lease_left": max(0, round(pinhole.lease_ends - self._loop.time())),
            "grant_left": None,
            "upstream": None,
        }

    def _lans(self) -> list[dict[str, Any]]:
        """Each device with the router's addresses on it, IPv4 first."""
        addresses: dict[str, list[str]] = {}
        for lan in sorted(self._router.lans, key=lambda lan: lan.is_ipv6):
            addresses.setdefault(lan.device, []).append(str(lan.interface))
        return [{"device": device, "addresses": of_device} for device, of_device in addresses.items()]

    def _activation(self, now: float) -> dict[str, Any]:
        if self._pcp is None:
            return {"state": self._fallback.state.value, "reason": "no PCP server is asked for", "since_seconds": 0,
                    "usable": True}  # fmt: skip
        reason = self._pcp.reason
        if self._fallback.untrusted:
            named = self._config.main.third_party != "never"
            reason = ("without NAT it has to be named: option server in section upstream" if named
                      else "without NAT it has to be asked on behalf of others: option third_party")  # fmt: skip
        since = round(now - self._pcp.state_since)
        return {"state": self._pcp.state.value, "reason": reason, "since_seconds": since, "usable": self._pcp.usable}

    def _upstream(self) -> dict[str, Any]:
        config, pcp = self._upstreams[0], self._pcp
        if pcp is None:
            return {"name": config.name, "type": config.type, "server": None, "addresses": [], "origin": None,
                    "identity": None, "epoch": None, "counters": {}}  # fmt: skip
        return {
            "name": config.name,
            "type": config.type,
            "server": _text(pcp.address),
            "addresses": [str(address) for address in pcp.addresses],
            "origin": pcp.origin,
            "identity": pcp.identity,
            "epoch": pcp.epoch,
            "counters": dict(pcp.counters),
        }

    def _igd(self) -> dict[str, Any]:
        main = self._config.main
        lan = min(self._router.lans, key=lambda lan: (lan.is_ipv6, lan.is_link_local), default=None)
        path = ROOT_PATH[VERSIONS[0] if main.igd_version == "auto" else int(main.igd_version)]
        return {
            "advertising": bool(self.ssdp and self.ssdp.advertising),
            "conflict": self.ssdp.conflict if self.ssdp else None,
            "http_port": main.http_port,
            "location": f"http://{host_port(lan.address, main.http_port)}{path}" if lan else None,
            "version": main.igd_version,
        }

    def _lan_pcp(self) -> dict[str, Any]:
        """Where hosts of the LANs can ask in PCP and NAT-PMP."""
        server = self._pcp_server
        return {
            "languages": server.languages,
            "addresses": [str(address) for address in server.addresses],
            "epoch": server.epoch,
            "waiting": server.waiting,
        }

    def _counts(self) -> dict[str, Any]:
        mappings = [entry for mapping in self._table for entry in mapping.entries]
        return {
            "active": self._table.listed,
            "local_only": sum(self._local_only(mapping) for mapping in mappings),
            "aliased": sum(mapping.visible and _is_aliased(mapping) for mapping in mappings),
            "pending": sum(mapping.state in _PENDING for mapping in mappings),
            "leaving": len(self._upstream_leg.leaving),
            "limit": self._config.main.max_mappings,
        }

    def _static_mappings(self) -> dict[str, Any]:
        """How many of those in the configuration are open, and what is in the way of the others."""
        static = self._static
        return {"wanted": static.wanted, "open": static.open, "problems": static.problems}

    async def _firewall(self) -> dict[str, Any]:
        problem = self._router_leg.problem or await self._ruleset.foreign_drop()
        return {"active": self._router_leg.problem is None, "problem": problem, "compared": self._compared()}

    def _compared(self) -> dict[str, int] | None:
        """What the last comparison of all rules found; it is not made for a status, for it takes too long."""
        if self._ruleset.audited is None:
            return None
        at, found = self._ruleset.audited
        return {**discrepancy(found), "seconds_ago": round(self._loop.time() - at)}

    def _local_only(self, mapping: Mapping) -> bool:
        """Open in the router while the carrier, which there is, was not told."""
        return self._pcp is not None and mapping.grant is not None and mapping.grant.upstream == Mode.LOCAL


def _is_aliased(mapping: Mapping) -> bool:
    """Whether the internet comes in at another port than the one that control points are shown."""
    return mapping.grant is not None and mapping.grant.external.port != mapping.external_port


def discrepancy(found: Discrepancy) -> dict[str, int]:
    """It, for people and programs."""
    return {"missing": found.missing, "surplus": found.surplus}


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _fields(counters: object) -> dict[str, int]:
    return {name: getattr(counters, name) for name in counters.__slots__}  # type: ignore[attr-defined]
