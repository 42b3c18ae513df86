# SPDX-License-Identifier: Apache-2.0
"""The interworking function as the figures of RFC 6970 draw it: one method per UPnP method, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import islice

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.lifecycle import LOCAL_SECONDS, Lifecycle
from igdpcp.iwf.outside import Outside
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.port_policy import PortPolicy
from igdpcp.iwf.queries import Queries
from igdpcp.iwf.table import MappingTable, PortInUse
from igdpcp.model import Activation, Mapping, MappingRequest, MappingState, Mode, Owner, Protocol, Requester


class Interworking:
    """Answers control points; every method returns, or raises Refusal, within the SOAP deadline."""

    def __init__(
        self,
        *,
        main: MainConfig,
        table: MappingTable,
        policy: Policy,
        upstream: Fallback,
        router: Router,
        lifecycle: Lifecycle,
        in_use: PortInUse,
        port_policy: PortPolicy,
    ) -> None:
        """``in_use``: whether somebody else on this router has that port of the WAN address."""
        self._main = main
        self._table = table
        self._policy = policy
        self._upstream = upstream
        self._lifecycle = lifecycle
        self._in_use = in_use
        self._port_policy = port_policy
        self.outside = Outside(main, table, upstream, router)
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._queries = Queries(
            main=main, table=table, policy=policy, upstream=upstream, lifecycle=lifecycle, port_policy=port_policy,
            plan=self._plan,
        )  # fmt: skip

    async def add_port_mapping(self, request: MappingRequest) -> Mapping:
        """Open exactly the external port that is asked for (RFC 6970 section 5.6.2)."""
        self._policy.admit(request)
        return await self._in_time(self._add(request))

    async def add_any_port_mapping(self, request: MappingRequest) -> Mapping:
        """Open some external port, the wanted one if it can be had (RFC 6970 section 5.6.1)."""
        self._policy.admit(request)
        return await self._in_time(self._add_any(request))

    async def delete_port_mapping(
        self, requester: Requester, protocol: Protocol, external_port: int, remote_host: IPv4Address | None
    ) -> Mapping:
        """Close a mapping of the requester, upstream first (RFC 6970 section 5.8); returns what it was."""
        mapping = self._table.find(protocol, external_port)
        entry = mapping.entry(remote_host) if mapping else None
        if mapping is None or entry is None or _is_hidden(mapping):
            raise Refusal(Reason.NO_SUCH_ENTRY, f"{protocol.name} {external_port}")
        self._policy.may_delete(requester, entry)
        left = mapping.without(lambda each: each.request.remote_host == remote_host)
        if left and mapping.state is not MappingState.ENDING:
            await asyncio.shield(self._lifecycle.remote_hosts.narrow(mapping, left))
        else:
            await self._close(mapping)
        return entry

    async def delete(self, requester: Requester, mapping: Mapping) -> None:
        """Close this mapping, listed or not, for who may; raises Refusal when it has to stay."""
        for entry in mapping.entries:
            self._policy.may_delete(requester, entry)
        await self._close(mapping)

    async def _close(self, mapping: Mapping) -> None:
        for refusal in (await self._lifecycle.close([mapping])).values():
            raise refusal

    async def delete_port_mapping_range(
        self, requester: Requester, protocol: Protocol, ports: range, *, manage: bool
    ) -> list[Mapping]:
        """Close what the requester may close of these external ports, as one change; returns what is closed.

        With ``manage`` that is more than its own entries, where the policy says so (RFC 6970 section 5.8).
        """
        held = [each for each in self._table.in_ports(protocol, ports) if not _is_hidden(each)]
        remains = {each.id: each.without(lambda entry: self._closable(requester, entry, manage)) for each in held}
        closable = [each for each in held if remains[each.id] is not each]
        if not closable:
            foreign = manage and any(each.visible for each in held)
            raise Refusal(Reason.FOREIGN_ENTRY if foreign else Reason.NOTHING_IN_RANGE, _range_text(protocol, ports))
        remains |= {each.id: None for each in closable if each.state is MappingState.ENDING}  # or it stays as a whole
        partly = [(each, left) for each in closable if (left := remains[each.id])]
        narrowed = [self._lifecycle.remote_hosts.narrow(each, left) for each, left in partly]
        refusals = await self._lifecycle.close([each for each in closable if not remains[each.id]])
        if narrowed:
            await asyncio.wait(narrowed)
        closed = [each for each in closable if each.id not in refusals]
        if not closed:
            raise next(iter(refusals.values()))
        return closed

    async def get_specific(
        self, requester: Requester, protocol: Protocol, external_port: int, remote_host: IPv4Address | None
    ) -> Mapping:
        """The requester's entry for this port (RFC 6970 section 5.7); another client's is a conflict.

        Where nobody holds the port, the carrier is asked whether it can be had. A control point that asks over IPv6 has
        no entries of its own, and is shown all that it may see.
        """
        mapping = self._table.find(protocol, external_port)
        if mapping is None or mapping.is_shadow:
            await self._ask_for(requester, protocol, external_port)
            mapping = self._table.find(protocol, external_port)  # somebody may have opened it meanwhile
        mapping = mapping.entry(remote_host) if mapping else None
        if mapping is None or not mapping.visible:
            raise Refusal(Reason.NO_SUCH_ENTRY, f"{protocol.name} {external_port}")
        if not self._policy.may_see(requester, mapping):
            raise Refusal(Reason.FOREIGN_ENTRY, f"{mapping.request.client.address}'s")
        shown = self._main.specific_other_cp == "show" or not isinstance(requester.address, IPv4Address)
        if not shown and not self._policy.owns(requester, mapping):
            if self._main.specific_other_cp == "relay":
                await self._ask_for(requester, protocol, external_port)
            raise self._held_elsewhere(f"{mapping.request.client.address} holds it")
        return mapping

    async def get_generic(self, requester: Requester, index: int) -> Mapping:
        """The entry at this index of the local table; never asked upstream (RFC 6970 section 5.7).

        Control points ask until the index is past the end. Version 1 has no other fault than that for an entry which
        the requester may not see, so those have no index there.
        """
        if self._main.private_list and requester.owner is Owner.UPNP1:
            seen = (each for each in self._table.listing() if self._policy.may_see(requester, each))
            mapping = next(islice(seen, index, None), None)
            if mapping is None:
                raise Refusal(Reason.NO_SUCH_INDEX, str(index))
            return mapping
        mapping = self._table.at(index)
        if not self._policy.may_see(requester, mapping):
            raise Refusal(Reason.FOREIGN_ENTRY, f"{mapping.request.client.address}'s")
        return mapping

    def list_port_mappings(
        self, requester: Requester, protocol: Protocol, ports: range, *, manage: bool, limit: int
    ) -> list[Mapping]:
        """The entries of these external ports by port, the first ``limit`` of them (0: all); never asked upstream.

        Without ``manage`` the requester's own ones, with it all that it may see.
        """
        wanted = self._policy.may_see if manage else self._policy.owns
        visible = (each for each in self._table.in_ports(protocol, ports) if each.visible)
        shown = [entry for each in visible for entry in each.entries if wanted(requester, entry)]
        if not shown:
            raise Refusal(Reason.NOTHING_IN_RANGE, _range_text(protocol, ports))
        return shown[: limit or None]

    @property
    def number_of_entries(self) -> int:
        """PortMappingNumberOfEntries."""
        return self._table.listed

    @property
    def system_update_id(self) -> int:
        """SystemUpdateID."""
        return self._table.system_update_id

    async def _add(self, request: MappingRequest) -> Mapping:
        while coming := self._coming(request):
            with suppress(Refusal):
                await self._lifecycle.join(coming.id)
        while held := await self._queries.holder(request):
            if held.is_shadow:
                return await self._take_over(held, request)
            entry = held.entry(request.remote_host)
            if self._policy.is_kept_from(request.requester, entry or held):
                raise Refusal(Reason.OPERATORS_ENTRY)
            if held.request.client.address != request.client.address:
                return await self._contend(request, held)
            if held.state is not MappingState.ENDING:
                if entry:
                    return await self._repeat(entry, request)
                if joined := await self._lifecycle.remote_hosts.join(held, request):
                    return joined
                continue
            await self._lifecycle.closed(held.id)
            if self._table.get(held.id) is held:
                raise Refusal(Reason.UNREACHABLE, "its deletion is not answered")
        self._port_policy.admit(request)
        return await self._open(request)

    def _coming(self, request: MappingRequest) -> Mapping | None:
        """What the client itself asks for in PCP or NAT-PMP just now, as programs do that try everything at once.

        It may get the port that this request is for, and then is shared.
        """
        coming = self._table.find_client(request)
        if coming is None or coming.state is not MappingState.PLANNED or not coming.request.any_port:
            return None
        same = coming.tuple_owner and coming.request.external_port == request.external_port
        return coming if same else None

    async def _contend(self, request: MappingRequest, held: Mapping) -> Mapping:
        """A port that another client has here: refused, unless the carrier is to decide (RFC 6970 section 5.6.2).

        One at a time does so: what is refused costs the carrier a request each. A port that is only shown is not the
        carrier's to decide about.
        """
        carrier_answers = self._upstream.mode is not Mode.LOCAL and self._upstream.state is Activation.ACTIVE
        carrier_decides = carrier_answers and not self._port_policy.aliases(request)
        if self._main.local_conflict_check or not carrier_decides:
            raise Refusal(Reason.CONFLICT, f"{held.request.client.address} holds it")
        other = self._table.find_contender(request.protocol, request.external_port)
        same_client = other and other.request.client.address == request.client.address and not other.is_shadow
        if other and same_client and _same_host(other, request):
            return await self._repeat(other, request)
        self._port_policy.admit(request)
        return await self._open(request, contends=True)

    async def _add_any(self, request: MappingRequest) -> Mapping:
        while True:
            if (held := await self._queries.holder(request)) and held.is_shadow:
                return await self._take_over(held, request)
            for held in (self._table.find_client(request), self._table.find(request.protocol, request.external_port)):
                if held is None or not self._refreshes(held, request):
                    continue
                entry = held.entry(request.remote_host)
                if self._policy.is_kept_from(request.requester, entry or held):
                    continue
                if entry:
                    return await self._repeat(entry, request)
                if held.mode is Mode.ROUTED:  # there is one mapping of its tuple upstream
                    if joined := await self._lifecycle.remote_hosts.join(held, request):
                        return joined
                    break
            else:
                return await self._open(request)

    async def _repeat(self, held: Mapping, request: MappingRequest) -> Mapping:
        """The same client asks again: refresh what is open, join what is on its way."""
        joined, unheard = held.state is MappingState.PLANNED, self._lifecycle.hidden.keeps(held)
        if joined:
            held = await self._lifecycle.join(held.id)
        elif held.state is MappingState.HIDDEN:
            held = await self._lifecycle.reveal(held)
        else:
            held = await self._lifecycle.refreshing.confirmed(held)
        current = self._table.get(held.id)
        entry = current.entry(request.remote_host) if current else None
        if current is None or entry is None or current.state is MappingState.ENDING:
            raise Refusal(Reason.CANCELLED)
        if self._policy.is_kept_from(request.requester, entry):
            raise Refusal(Reason.OPERATORS_ENTRY)
        held = entry
        by_tuple = request.requester.owner.maps_tuple
        if by_tuple and current.is_of_another_nonce(request.nonce):
            raise Refusal(Reason.FOREIGN_ENTRY, "it was asked for with another nonce")
        if (current.others or current.tuple_owner or by_tuple) and held.request.client != request.client:
            raise Refusal(Reason.CONFLICT, f"others are led to port {held.request.client.port}")
        if held.mode is Mode.ROUTED and held.request.client != request.client:
            await self._close(current)
            return await self._open(request)
        asked = replace(held.request, requester=request.requester, client=request.client, lease=request.lease,
                        description=request.description, nonce=request.nonce)  # fmt: skip
        if joined and asked == held.request:
            return held
        if unheard and not current.others and held.request.requester.owner.maps_tuple is not by_tuple:
            # who asked for it was told that it is not open, so there is nobody to share it with
            current = replace(current, request=asked)
        refreshed = await self._lifecycle.refreshing.refresh(current, asked)
        if current.state is MappingState.RETRYING:
            refreshed = await self._lifecycle.join(current.id)
        return refreshed.entry(request.remote_host) or refreshed

    async def _take_over(self, shadow: Mapping, request: MappingRequest) -> Mapping:
        """What a query asked for, and the carrier has granted or is about to, is what is wanted now."""
        self._policy.has_room(request)
        return await self._lifecycle.take_over(shadow, request)

    async def _open(self, request: MappingRequest, *, contends: bool = False) -> Mapping:
        mapping = self._plan(request, contends)
        try:
            return await self._lifecycle.open(mapping)
        except Refusal as refusal:
            if mapping.mode is Mode.ROUTED or not _may_open_elsewhere(refusal):
                raise
        return await self._lifecycle.open(self._plan(request, contends, avoided=mapping.wan_port))

    def _plan(self, request: MappingRequest, contends: bool = False, *, avoided: int = 0) -> Mapping:
        """Claim the ports for it, at no WAN port that is ``avoided``: the upstream has had something against that.

        Where the router grants alone, the WAN port is the external one, and so has to be permitted.
        """
        mode = self._upstream.mode

        def in_use(protocol: Protocol, port: int) -> bool:
            if port == avoided or (mode is Mode.LOCAL and not self._policy.permits(request, port)):
                return True
            return self._in_use(protocol, port)

        self._policy.has_room(request)
        mapping = self._table.plan(request, mode, self._now(), in_use, contends=contends)
        suggestion = self._port_policy.suggestion(mapping, lambda port: self._policy.permits(request, port))
        self._table.update(planned := replace(mapping, external_port=suggestion))
        return planned

    def _refreshes(self, held: Mapping, request: MappingRequest) -> bool:
        """Whether AddAnyPortMapping asks again for what this entry gives; an alias does not give what it shows."""
        same = held.request.client == request.client
        return same and held.state is not MappingState.ENDING and not self._port_policy.only_shows(held)

    def _closable(self, requester: Requester, mapping: Mapping, manage: bool) -> bool:
        if not manage and not self._policy.owns(requester, mapping):
            return False
        with suppress(Refusal):
            self._policy.may_delete(requester, mapping)
            return True
        return False

    async def _in_time(self, work: Awaitable[Mapping]) -> Mapping:
        """What one call may take, however many answers it waits for one after the other.

        Whatever happened on the way, a success is one at the moment at which it leaves.
        """
        deadline = self._main.soap_deadline
        try:
            async with asyncio.timeout(deadline + LOCAL_SECONDS):
                return await self._lifecycle.refreshing.confirmed(await work)
        except TimeoutError:
            raise Refusal(Reason.UNREACHABLE, f"not done in {deadline:g} s") from None

    async def _ask_for(self, requester: Requester, protocol: Protocol, external_port: int) -> None:
        """Have the carrier say whether it would open this port for a query; raises Refusal when it would not."""
        try:
            await self._queries.ask(requester, protocol, external_port)
        except Refusal as refusal:
            if refusal.reason is Reason.CONFLICT or translate.external_port_is_taken(refusal.result):
                raise self._held_elsewhere(refusal.detail) from None
            raise

    def _held_elsewhere(self, detail: str) -> Refusal:
        """What GetSpecificPortMappingEntry says of somebody else's port."""
        reason = Reason.CONFLICT if self._main.specific_inuse_error == 718 else Reason.NO_SUCH_ENTRY
        return Refusal(reason, detail)


def _may_open_elsewhere(refusal: Refusal) -> bool:
    """Whether the refusal is about the WAN port: the upstream's mapping of it has another nonce, or a port of ours."""
    if refusal.reason is Reason.UPSTREAM:
        return translate.belongs_to_another_nonce(refusal.result)
    return refusal.reason is Reason.NO_PORT


def _is_hidden(mapping: Mapping) -> bool:
    """Whether this is nobody's to delete: no control point was told of it."""
    return mapping.state is MappingState.HIDDEN or mapping.is_shadow


def _range_text(protocol: Protocol, ports: range) -> str:
    return f"{protocol.name} {ports.start}-{ports.stop - 1}"


def _same_host(held: Mapping, request: MappingRequest) -> bool:
    return held.request.remote_host == request.remote_host
