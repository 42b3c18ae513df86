# SPDX-License-Identifier: Apache-2.0
"""What LAN hosts ask for in PCP and NAT-PMP: a path to one of their ports, known by that and not by the external port.

They share the table with control points (RFC 6887 section 11, RFC 6886, and the proxy of RFC 7648): a port of a host
that is mapped already gets no second mapping upstream, and the one there is ends when the last who asked for it leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.lifecycle import Lifecycle
from igdpcp.iwf.policy import Policy
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
        self,
        *,
        table: MappingTable,
        policy: Policy,
        upstream: Fallback,
        interworking: Interworking,
        lifecycle: Lifecycle,
    ) -> None:
        self._table = table
        self._policy = policy
        self._upstream = upstream
        self._interworking = interworking
        self._lifecycle = lifecycle
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._promised: dict[tuple[Protocol, Endpoint], tuple[Endpoint, float]] = {}  # where, and until when

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
        self._policy.take_turn(request.requester)
        try:
            opened = await self._map(request)
        except RulesetError as error:
            raise Refusal(Reason.RULESET, str(error)) from None
        self._promised[request.protocol, request.client] = opened.external, self._now() + opened.lifetime
        return opened

    @property
    def promises(self) -> bool:
        """Whether any host was told of a mapping."""
        return bool(self._promised)

    def broken_promises(self) -> int:
        """How many hosts' ports are no longer where they were told, each counted once; looks at all there are."""
        open_at: dict[tuple[Protocol, Endpoint], set[Endpoint]] = {}
        for mapping in self._table:
            key = mapping.request.protocol, mapping.request.client
            if key in self._promised and mapping.visible and mapping.grant:
                open_at.setdefault(key, set()).add(mapping.grant.external)
        now = self._now()
        ended = {key for key, (_, until) in self._promised.items() if until <= now}
        broken = {
            key for key, (external, _) in self._promised.items() if external not in open_at.get(key, ())
        } - ended  # fmt: skip
        for key in ended | broken:
            del self._promised[key]
        return len(broken)

    async def unmap(self, requester: Requester, protocol: Protocol, port: int, nonce: bytes) -> None:
        """The requester leaves (RFC 6887 section 15.1); if it never asked for this port, that is no fault.

        ``port`` 0: all of its ports (RFC 6886 section 3.4); those that can go, go, whatever is raised for the others.
        """
        self._policy.take_turn(requester)
        assert isinstance(requester.address, IPv4Address)
        await self._unmap(protocol, Endpoint(requester.address, port), nonce)

    async def _unmap(self, protocol: Protocol, client: Endpoint, nonce: bytes) -> None:
        refusals: list[Refusal] = []
        whole: list[Mapping] = []
        narrowed: list[asyncio.Task[None]] = []
        for mapping in self._table.leading_to(protocol, client.address, client.port):
            if mapping.request.requester.owner.is_operators:
                refusals.append(Refusal(Reason.FOREIGN_ENTRY, "the operator's"))
            elif mapping.is_of_another_nonce(nonce):
                refusals.append(self._another_nonce(mapping))
            elif mapping.tuple_owner:
                self._promised.pop((protocol, mapping.request.client), None)
                left = mapping.keeping(lambda entry: not entry.request.requester.owner.maps_tuple)
                if left and mapping.state is not MappingState.ENDING:
                    narrowed.append(self._lifecycle.remote_hosts.narrow(mapping, left))
                else:
                    whole.append(mapping)
        if whole:
            refusals += (await self._lifecycle.close(whole)).values()
        if narrowed:
            await asyncio.wait(narrowed)
        if refusals:
            raise refusals[0]

    async def _map(self, request: MappingRequest) -> Opened:
        while held := self._holder(request):
            if held.state is MappingState.ENDING:
                await self._lifecycle.closed(held.id)
                if self._table.get(held.id) is held:
                    raise Refusal(Reason.UNREACHABLE, "its deletion is not answered")
            elif held.grant is None:  # and so has no external port yet
                await self._join(held, request)
            else:
                return await self._go_on(held, request)
        if self._upstream.may_fall_back and self._upstream.state not in (Activation.ACTIVE, Activation.PROBING):
            self._must_have_address(request.client.address)
        if request.any_port and not self._policy.permits(request, request.external_port):
            request = replace(request, external_port=0)  # a wish that cannot be met is one for any other
        if request.any_port:
            opened = await self._interworking.add_any_port_mapping(request)
        else:
            opened = await self._interworking.add_port_mapping(request)
        try:
            return self._told(opened, request)
        except Refusal:
            await self._unmap(request.protocol, request.client, request.nonce)
            raise

    async def _join(self, held: Mapping, request: MappingRequest) -> None:
        """Wait for what is asked for already; it is this host's where nobody else waits: who did was told otherwise."""
        hidden = self._lifecycle.hidden
        if hidden.keeps(held) and not request.any_port and request.external_port != held.external_port:
            hidden.give_back(held)
            await hidden.returned(held)
            return
        if hidden.keeps(held):
            hidden.hand_over(held, request)
        await self._lifecycle.join(held.id)

    async def _go_on(self, held: Mapping, request: MappingRequest) -> Opened:
        """Stay, or become one of those for whom this mapping is open."""
        if held.is_of_another_nonce(request.nonce):
            raise self._another_nonce(held)
        given = held.grant.external.port if held.grant else held.external_port
        if not request.any_port and request.external_port != given:
            raise Refusal(Reason.CONFLICT, f"{request.client} has port {given}")
        if held.request.requester.owner.is_operators:
            return self._operators(held)
        if held.grant and held.grant.upstream == Mode.LOCAL:
            self._must_have_address(request.client.address)
        same = replace(request, external_port=held.external_port, any_port=False)
        return self._told(await self._interworking.add_port_mapping(same), request)

    def _operators(self, held: Mapping) -> Opened:
        """It is there without being asked for; nothing is stored of who does (RFC 6887 section 11.3)."""
        if held.grant is None or held.state is not MappingState.ACTIVE:
            raise Refusal(Reason.UNREACHABLE, "the operator's mapping of this port is not open")
        if held.remote_hosts:
            raise Refusal(Reason.FOREIGN_ENTRY, "the operator's, for some remote hosts")
        left = FOR_EVER if held.lease_ends is None else max(1, round(held.lease_ends - self._now()))
        return Opened(held.grant.external, left)

    def _told(self, opened: Mapping, request: MappingRequest) -> Opened:
        """While the carrier answers, the grant is renewed without the host: else that hears soon of its end."""
        mapping = self._table.get(opened.id)
        owner = mapping.tuple_owner if mapping else None
        if mapping is None or mapping.grant is None or owner is None or owner.lease_ends is None:
            raise Refusal(Reason.CANCELLED)
        if mapping.grant.upstream == Mode.LOCAL:
            self._must_have_address(request.client.address)
        left = owner.lease_ends - self._now()
        if self._upstream.state is not Activation.ACTIVE:
            left = min(left, max(mapping.grant.ends - self._now(), LIFETIMES.start))
        return Opened(mapping.grant.external, max(1, round(left)))

    def _must_have_address(self, asker: IPv4Address) -> None:
        """A host is told where it can be reached: an address of this router alone is none, when it is not public."""
        if self.address(asker) is None:
            raise Refusal(Reason.UNREACHABLE, "there is no public address")

    def _holder(self, request: MappingRequest) -> Mapping | None:
        """What leads to the port already: what was asked for in these languages, else what has the wanted port."""
        held = self._table.leading_to(request.protocol, request.client.address, request.client.port)
        return max(
            held,
            key=lambda each: (each.tuple_owner is not None, each.external_port == request.external_port, -each.serial),
            default=None,
        )

    def _another_nonce(self, mapping: Mapping) -> Refusal:
        """It holds as long as that mapping (RFC 6887 section 11.3)."""
        owner = mapping.tuple_owner
        left = owner.lease_ends - self._now() if owner and owner.lease_ends else 0.0
        return Refusal(Reason.FOREIGN_ENTRY, "it was asked for with another nonce", lifetime=max(1, round(left)))
