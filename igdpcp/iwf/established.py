# SPDX-License-Identifier: Apache-2.0
"""What becomes of established flows when rules change, which are about the first packet of a flow only.

They go on when their mapping ends, unless the operator wants them cut. They may not go on where another client gets
the port: UDP has no end, and what a peer sends there would reach the old client for as long as it sends.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from igdpcp.iwf.interfaces import FlowTable, Router
from igdpcp.model import Endpoint, IPAddress, Mapping, Mode, Pinhole, Protocol
from igdpcp.openings import Flows, Opening

LED_LIMIT = 8192  # UDP ports of which it is remembered where they led


class Established:
    """To be told of each change when the kernel has it. ``cut_ended``: what came by a mapping ends with it."""

    def __init__(self, flow_table: FlowTable, router: Router, *, cut_ended: bool) -> None:
        self._flow_table = flow_table
        self._router = router
        self._cut_ended = cut_ended
        self._led: dict[int, Endpoint] = {}  # by UDP WAN port; the longest unchanged first

    async def opened(self, opening: Opening) -> None:
        """The rules of this opening are in force."""
        if opening.mode is Mode.ROUTED or opening.protocol is not Protocol.UDP:
            return
        before = self._led.get(opening.wan_port, opening.client)
        self._remember(opening.wan_port, opening.client)
        if before != opening.client:
            wan = (opening.wan_address, opening.wan_port)
            ports = {opening.external.port, opening.shown_port or opening.external.port}
            external = {(opening.external.address, port) for port in ports}
            await self._cut(opening.protocol, before, {wan, *external}, outgoing=True)

    async def narrowed(self, gone: Mapping, left: Mapping) -> None:
        """The rules of this entry are gone, those of the others that its mapping has are not."""
        if left.remote_hosts:
            await self.closed(gone, frozenset(left.remote_hosts))

    async def closed(self, mapping: Mapping, spared: frozenset[IPAddress] = frozenset()) -> None:
        """The rules of this mapping are gone; flows of ``spared`` remote hosts go on in any case."""
        request, grant = mapping.request, mapping.grant
        routed = mapping.mode is Mode.ROUTED
        if request.protocol is Protocol.UDP and not routed and grant:
            self._remember(mapping.wan_port, request.client)
        wan = self._router.wan_address
        if not (self._cut_ended and grant and wan):
            return
        destinations = {(grant.external.address, port) for port in (grant.external.port, mapping.external_port)}
        destinations.add((request.client.address, request.client.port) if routed else (wan, mapping.wan_port))
        for host in mapping.remote_hosts or (None,):
            await self._cut(request.protocol, request.client, destinations, remote_host=host, spared=spared)

    async def pinhole_closed(self, pinhole: Pinhole) -> None:
        """The rules of this pinhole are gone."""
        if self._cut_ended:
            request = pinhole.request
            end = frozenset([(request.client, request.client_port)])
            await self._flow_table.cut(
                Flows(request.protocol, request.client, request.client_port, end, request.remote_host,
                      request.remote_port)
            )  # fmt: skip

    async def _cut(
        self,
        protocol: Protocol,
        client: Endpoint,
        destinations: Iterable[tuple[IPAddress, int]],
        *,
        remote_host: IPv4Address | None = None,
        outgoing: bool = False,
        spared: frozenset[IPAddress] = frozenset(),
    ) -> None:
        flows = Flows(protocol, client.address, client.port, frozenset(destinations), remote_host, 0, outgoing, spared)
        await self._flow_table.cut(flows)

    def _remember(self, port: int, client: Endpoint) -> None:
        self._led.pop(port, None)
        self._led[port] = client
        if len(self._led) > LED_LIMIT:
            del self._led[next(iter(self._led))]
