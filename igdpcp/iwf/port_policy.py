# SPDX-License-Identifier: Apache-2.0
"""What becomes of an external port that the carrier does not give: option ``port_policy``.

``strict``: the request is refused (RFC 6970 section 5.6.2). ``alias``: what the carrier gives instead is taken, and
control points are shown the port that they asked for. ``learn-block``: strict, and a carrier that was seen to keep a
host to blocks of ports, as carriers do which give each subscriber a contiguous range, is not asked for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import AddressChanged, Fallback, Granted, PortSeen, Refused, Reset, UpstreamEvent
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Activation, Grant, Mapping, MappingRequest, MappingState, Mode

BLOCK_PORTS = 4096  # carriers give no larger ones, so what is farther than this from a granted port is not of its block
BLOCKS_MAX = 4  # of one host; whoever is granted ports from more places is not kept to blocks
HOSTS_MAX = 64  # of which blocks are remembered; where the router does NAT there is but one
BELIEVED_SECONDS = 1800.0  # as a long-lifetime error of PCP; then one more request finds out whether it is still so
SUGGESTION_TRIES = 64  # ports that are looked at for a free one


def shown_port(request: MappingRequest, grant: Grant) -> int:
    """The external port that control points are shown of a mapping with this grant."""
    return grant.external.port if request.any_port else request.external_port


def granted(mapping: Mapping, grant: Grant, state: MappingState) -> Mapping:
    """The mapping with this grant."""
    return replace(mapping, grant=grant, external_port=shown_port(mapping.request, grant), state=state)


class PortPolicy:
    """Hears the upstream's events before anybody else; what it learns is for one server and one external address."""

    def __init__(self, main: MainConfig, table: MappingTable, upstream: Fallback) -> None:
        self._policy = main.port_policy
        self._table = table
        self._upstream = upstream
        self._now = asyncio.get_running_loop().time
        self._blocks: dict[IPv4Address | None, _Blocks] = {}  # by internal address, None: the router's; newest last
        self._address: IPv4Address | None = None

    def aliases(self, request: MappingRequest) -> bool:
        """Whether the carrier may grant another port than the one that the request names.

        PCP and NAT-PMP tell a host which port it has.
        """
        return self._policy == "alias" and not request.any_port and not request.requester.owner.maps_tuple

    def only_shows(self, mapping: Mapping) -> bool:
        """Whether its external port is, or may become, none at which it can be reached, so that another could be had.

        Without NAT in the router a client's port has one mapping; a router that grants alone gives what it shows.
        """
        given = mapping.grant is not None and mapping.grant.external.port == mapping.external_port
        return self.aliases(mapping.request) and mapping.mode is Mode.CASCADED and not given

    def admit(self, request: MappingRequest) -> None:
        """Raises Refusal for an AddPortMapping whose port the carrier is known not to give."""
        blocks = self._blocks_of(request, self._upstream.mode)
        if blocks and self._upstream.state is Activation.ACTIVE and blocks.exclude(request.external_port, self._now()):
            raise Refusal(Reason.NOT_GIVEN, f"{request.protocol.name} {request.external_port}")

    def suggestion(self, planned: Mapping, permitted: Callable[[int], bool]) -> int:
        """The external port to ask the carrier for: the wanted one, one that it may give instead, or 0 (any).

        AddAnyPortMapping asks for none that is not ``permitted``: what it was granted would be given back.
        """
        request, wanted = planned.request, planned.external_port
        if not request.any_port or not wanted:
            return wanted
        blocks = self._blocks_of(request, planned.mode)
        if blocks and blocks.exclude(wanted, self._now()):
            return blocks.free_port(
                wanted, lambda port: permitted(port) and self._table.find(request.protocol, port) is None
            )
        return wanted if permitted(wanted) else 0

    def hear(self, event: UpstreamEvent) -> None:
        """Learn from what the carrier grants and refuses."""
        if self._policy != "learn-block":
            return
        match event:
            case Granted(grant=grant) if grant.upstream != Mode.LOCAL and (mapping := self._table.get(event.id)):
                wanted = 0 if mapping.grant else mapping.external_port
                self._learn(_host(mapping.request, mapping.mode), grant.external.port, wanted)
            case PortSeen():
                self._learn(None, event.port, 0)
            case Refused() if translate.external_port_is_taken(event.result):
                if mapping := self._table.get(event.id):
                    self._learn_refused(mapping)
            case Reset():
                self._blocks.clear()
            case AddressChanged() if event.address != self._address:  # another server's is unknown at first
                self._address = event.address
                self._blocks.clear()

    def learnt(self) -> dict[str, list[str]]:
        """The ports between which was granted, by internal address ("": the router's own), for people."""
        return {
            str(host or ""): [f"{block.start}-{block.stop - 1}" for block in blocks.ranges]
            for host, blocks in self._blocks.items()
        }

    def _learn(self, host: IPv4Address | None, port: int, wanted: int) -> None:
        blocks = self._blocks[host] = self._blocks.pop(host, _Blocks())
        blocks.granted(port, wanted, self._now())
        if len(self._blocks) > HOSTS_MAX:
            del self._blocks[next(iter(self._blocks))]

    def _learn_refused(self, mapping: Mapping) -> None:
        """Nothing, where the reason may be that another mapping of ours has the port."""
        blocks = self._blocks_of(mapping.request, mapping.mode)
        holder = self._table.find(mapping.request.protocol, mapping.external_port)
        if blocks and (holder is None or holder.id == mapping.id):
            blocks.refused(mapping.external_port, self._now())

    def _blocks_of(self, request: MappingRequest, mode: Mode) -> _Blocks | None:
        return self._blocks.get(_host(request, mode)) if mode is not Mode.LOCAL else None


def _host(request: MappingRequest, mode: Mode) -> IPv4Address | None:
    return request.client.address if mode is Mode.ROUTED else None


class _Blocks:
    """Where one host's external ports are; ``ranges`` reach from the lowest to the highest that was granted in each.

    A block can be larger than what was seen of it, so nothing that may belong to it counts as outside. And nothing does
    before the carrier has shown that it keeps the host to blocks: by refusing what is outside, or giving another port.
    """

    def __init__(self) -> None:
        self.ranges: list[range] = []
        self._kept_until = float("-inf")

    def granted(self, port: int, wanted: int, now: float) -> None:
        """``wanted``: which port the request was for, 0: any."""
        if port == wanted and not self._may_have(port):
            self._kept_until = now
        self._take(port)
        if wanted != port:
            self.refused(wanted, now)

    def refused(self, port: int, now: float) -> None:
        if port and self.ranges and not self._may_have(port):
            self._kept_until = now + BELIEVED_SECONDS

    def exclude(self, port: int, now: float) -> bool:
        """Whether the carrier would not give this port."""
        return now < self._kept_until and not self._may_have(port)

    def free_port(self, wanted: int, is_free: Callable[[int], bool]) -> int:
        """One between those that were granted, the same for the same wish; 0: any."""
        block = self.ranges[-1]
        ports = (block[(wanted + step) % len(block)] for step in range(min(len(block), SUGGESTION_TRIES)))
        return next(filter(is_free, ports), 0)

    def _may_have(self, port: int) -> bool:
        return any(len(_hull(block, port)) <= BLOCK_PORTS for block in self.ranges)

    def _take(self, port: int) -> None:
        for at, block in enumerate(self.ranges):
            if len(hull := _hull(block, port)) <= BLOCK_PORTS:
                self.ranges[at] = hull
                return
        if len(self.ranges) == BLOCKS_MAX:
            self.ranges, self._kept_until = [], float("-inf")
        self.ranges.append(range(port, port + 1))


def _hull(block: range, port: int) -> range:
    return range(min(block.start, port), max(block.stop, port + 1))
