# SPDX-License-Identifier: Apache-2.0
"""What LAN hosts ask for in PCP and NAT-PMP: a path to one of their ports, known by that and not by the external port.

They share the table with control points (RFC 6887 section 11, RFC 6886, and the proxy of RFC 7648): a port of a host
that is mapped already gets no second mapping upstream, and the one there is ends when the last who asked for it leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.lifecycle import Lifecycle
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Activation, Endpoint, Mapping, MappingRequest, MappingState, Mode, Owner, Protocol, Requester
from igdpcp.values import dataclass

LIFETIMES = range(120, 86401)  # seconds that are given (RFC 6887 section 15)
FOR_EVER = 0xFFFFFFFF  # the lifetime of what the configuration holds open (RFC 6887 section 11.3)


@dataclass(frozen=True, slots=True)
class Opened:
    """What a host is told: where it can be reached, and for how many seconds."""

    external: Endpoint
    lifetime: int


class InternalTuples:
    """Methods raise Refusal; what the carrier is asked takes as long as for a control point."""

    def __init__(
        self, *, table: MappingTable, upstream: Fallback, interworking: Interworking, lifecycle: Lifecycle
    ) -> None:
        self._table = table
        self._upstream = upstream
        self._interworking = interworking
        self._lifecycle = lifecycle
        self._now: Callable[[], float] = asyncio.get_running_loop().time

    @property
    def does_nat(self) -> bool:
        """Whether NAT-PMP may be spoken: a router that only forwards must not (RFC 6886 section 3)."""
        return self._upstream.mode is not Mode.ROUTED

    def address(self, asker: IPv4Address) -> IPv4Address | None:
        """The external address, None: there is none to tell."""
        return self._interworking.outside.address(asker)[0]

    async def map(self, request: MappingRequest) -> Opened:
        """Open a path to ``request.client`` or go on with the one there is (RFC 6887 section 11.3).

        The external port is a wish, or the only one that will do where ``any_port`` is not set. ``lease`` is not 0, and
        is cut to what is given.
        """
        longest = min(request.lease, LIFETIMES.stop - 1)
        shortest = LIFETIMES.start if request.requester.owner is Owner.PCP else 1
        request = replace(request, lease=max(longest, shortest))
        try:
            return await self._map(request)
        except RulesetError as error:
            raise Refusal(Reason.RULESET, str(error)) from None

    async def unmap(self, requester: Requester, protocol: Protocol, port: int, nonce: bytes) -> None:
        """The requester leaves (RFC 6887 section 15.1); if it never asked for this port, that is no fault.

        ``port`` 0: all of its ports (RFC 6886 section 3.4); those that can go, go, whatever is raised for the others.
        """
        refusals = []
        for mapping in self._held_by(requester, protocol, port):
            try:
                await self._leave(mapping, nonce)
            except Refusal as refusal:
                refusals.append(refusal)
        if refusals:
            raise refusals[0]

    async def _map(self, request: MappingRequest) -> Opened:
        while held := self._holder(request):
            if held.state is MappingState.ENDING:
                await self._lifecycle.closed(held.id)
                if self._table.get(held.id) is held:
                    raise Refusal(Reason.UNREACHABLE, "its deletion is not answered")
            elif held.grant is None:  # and so has no external port yet
                await self._lifecycle.join(held.id)
            else:
                return await self._go_on(held, request)
        if self._upstream.may_fall_back and self._upstream.state not in (Activation.ACTIVE, Activation.PROBING):
            self._must_have_address(request.client.address)
        if request.any_port:
            opened = await self._interworking.add_any_port_mapping(request)
        else:
            opened = await self._interworking.add_port_mapping(request)
        try:
            return self._told(opened, request)
        except Refusal:
            if mapping := self._table.get(opened.id):
                await self._leave(mapping, request.nonce)
            raise

    async def _go_on(self, held: Mapping, request: MappingRequest) -> Opened:
        """Stay, or become one of those for whom this mapping is open."""
        _must_be_its_owner(held, request.nonce)
        given = held.grant.external.port if held.grant else held.external_port
        if not request.any_port and request.external_port != given:
            raise Refusal(Reason.CONFLICT, f"{request.client} has port {given}")
        if held.request.requester.owner.is_operators:
            return self._operators(held)
        same = replace(request, external_port=held.external_port, any_port=False)
        return self._told(await self._interworking.add_port_mapping(same), request)

    def _operators(self, held: Mapping) -> Opened:
        """It is there without being asked for; nothing is stored of who does (RFC 6887 section 11.3)."""
        if held.grant is None or held.state is not MappingState.ACTIVE:
            raise Refusal(Reason.UNREACHABLE, "the operator's mapping of this port is not open")
        left = FOR_EVER if held.lease_ends is None else max(1, round(held.lease_ends - self._now()))
        return Opened(held.grant.external, left)

    def _told(self, opened: Mapping, request: MappingRequest) -> Opened:
        """While the carrier answers, the grant is renewed without the host: else that hears soon of its end."""
        mapping = self._table.get(opened.id)
        if mapping is None or mapping.grant is None:
            raise Refusal(Reason.CANCELLED)
        if mapping.grant.upstream == Mode.LOCAL:
            self._must_have_address(request.client.address)
        if self._upstream.state is Activation.ACTIVE:
            return Opened(mapping.grant.external, request.lease)
        left = max(mapping.grant.ends - self._now(), LIFETIMES.start)
        return Opened(mapping.grant.external, round(min(left, request.lease)))

    def _must_have_address(self, asker: IPv4Address) -> None:
        """A host is told where it can be reached: an address of this router alone is none, when it is not public."""
        if self.address(asker) is None:
            raise Refusal(Reason.UNREACHABLE, "there is no public address")

    def _holder(self, request: MappingRequest) -> Mapping | None:
        """What leads to the port already: what was asked for in these languages, else what has the wanted port."""
        held = self._table.leading_to(request.protocol, request.client)
        return max(
            held,
            key=lambda each: (each.tuple_owner is not None, each.external_port == request.external_port, -each.serial),
            default=None,
        )

    def _held_by(self, requester: Requester, protocol: Protocol, port: int) -> Iterator[Mapping]:
        """What leads to its port, as it is when it is looked at."""
        for mapping in self._table:
            request = mapping.request
            if request.client.address != requester.address or request.protocol is not protocol:
                continue
            if port in (0, request.client.port) and (latest := self._table.get(mapping.id)):
                yield latest

    async def _leave(self, mapping: Mapping, nonce: bytes) -> None:
        if mapping.state is MappingState.ENDING:
            await self._lifecycle.closed(mapping.id)
            return
        if mapping.request.requester.owner.is_operators:
            raise Refusal(Reason.FOREIGN_ENTRY, "the operator's")
        if mapping.tuple_owner is None:
            return
        _must_be_its_owner(mapping, nonce)
        left = mapping.keeping(lambda entry: not entry.request.requester.owner.maps_tuple)
        if left:
            await asyncio.shield(self._lifecycle.remote_hosts.narrow(mapping, left))
        else:
            for refusal in (await self._lifecycle.close([mapping])).values():
                raise refusal


def _must_be_its_owner(mapping: Mapping, nonce: bytes) -> None:
    """The nonce says who may change what was asked for in PCP (RFC 6887 section 11.3).

    NAT-PMP has none: what was asked for in that is whose address it is, and what has a nonce is not for NAT-PMP.
    """
    owner = mapping.tuple_owner
    if owner and owner.request.nonce not in (b"", nonce):
        raise Refusal(Reason.FOREIGN_ENTRY, "it was asked for with another nonce")
