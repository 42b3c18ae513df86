# SPDX-License-Identifier: Apache-2.0
"""The interworking function as the figures of RFC 6970 draw it: one method per UPnP method, top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.lifecycle import LOCAL_SECONDS, Lifecycle
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Activation, Mapping, MappingRequest, MappingState, Mode, Protocol, Requester


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
    ) -> None:
        self._main = main
        self._table = table
        self._policy = policy
        self._upstream = upstream
        self._router = router
        self._lifecycle = lifecycle
        self._now: Callable[[], float] = asyncio.get_running_loop().time

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
        if mapping is None or mapping.request.remote_host != remote_host or mapping.state is MappingState.HIDDEN:
            raise Refusal(Reason.NO_SUCH_ENTRY, f"{protocol.name} {external_port}")
        self._policy.may_delete(requester, mapping)
        await self.close(mapping)
        return mapping

    async def close(self, mapping: Mapping) -> None:
        """Close this mapping, whoever's it is; raises Refusal when it has to stay."""
        await self._lifecycle.close(mapping)

    async def get_specific(
        self, requester: Requester, protocol: Protocol, external_port: int, remote_host: IPv4Address | None
    ) -> Mapping:
        """The requester's entry for this port (RFC 6970 section 5.7); another client's is a conflict."""
        mapping = self._table.find(protocol, external_port)
        if mapping is None or not mapping.visible or mapping.request.remote_host != remote_host:
            raise Refusal(Reason.NO_SUCH_ENTRY, f"{protocol.name} {external_port}")
        if requester.address is not None and mapping.request.client.address != requester.address:
            raise Refusal(Reason.CONFLICT, f"{mapping.request.client.address} holds it")
        return mapping

    async def get_generic(self, index: int) -> Mapping:
        """The entry at this index of the local table; never asked upstream (RFC 6970 section 5.7)."""
        return self._table.at(index)

    def external_address(self) -> tuple[IPv4Address | None, str]:
        """ExternalIPAddress and why it is this one; never a private address passed off as public."""
        if address := self._upstream.external_address:
            if self._showable(address):
                return address, "given by the carrier"
            return None, f"the carrier gives {address}, which is not public"
        if not self._upstream.may_fall_back:
            return None, "the carrier's PCP server has not told one"
        wan = self._router.wan_address
        if wan is None:
            return None, "the WAN has no IPv4 address"
        if self._showable(wan):
            return wan, "the router's own WAN address"
        return None, f"the router's own WAN address {wan} is not public, and no PCP server has told one"

    def connected(self) -> bool:
        """ConnectionStatus is Connected (RFC 6970 section 4.1; an IGD without an address to show is not)."""
        if self._upstream.state is not Activation.ACTIVE and not self._upstream.may_fall_back:
            return False
        return self.external_address()[0] is not None

    async def _add(self, request: MappingRequest) -> Mapping:
        while held := self._table.find(request.protocol, request.external_port):
            if held.request.client.address != request.client.address or held.request.remote_host != request.remote_host:
                raise Refusal(Reason.CONFLICT, f"{held.request.client.address} holds it")
            if held.state is not MappingState.ENDING:
                return await self._repeat(held, request)
            await self._lifecycle.closed(held.id)
            if self._table.get(held.id) is held:
                raise Refusal(Reason.UNREACHABLE, "its deletion is not answered")
        return await self._open(request)

    async def _add_any(self, request: MappingRequest) -> Mapping:
        for held in (self._table.find_client(request), self._table.find(request.protocol, request.external_port)):
            if held and _refreshes(held, request):
                return await self._repeat(held, request)
        return await self._open(request)

    async def _repeat(self, held: Mapping, request: MappingRequest) -> Mapping:
        """The same client asks again: refresh what is open, join what is on its way."""
        joined = held.state is MappingState.PLANNED
        if joined:
            held = await self._lifecycle.join(held.id)
        elif held.state is MappingState.HIDDEN:
            held = await self._lifecycle.reveal(held)
        current = self._table.get(held.id)
        if current is None or current.state is MappingState.ENDING:
            raise Refusal(Reason.CANCELLED)
        if held.mode is Mode.ROUTED and held.request.client != request.client:
            await self._lifecycle.close(current)
            return await self._open(request)
        asked = replace(held.request, requester=request.requester, client=request.client, lease=request.lease,
                        description=request.description)  # fmt: skip
        if joined and asked == held.request:
            return held
        lease_ends = self._now() + request.lease if request.lease else None
        refreshed = replace(current, request=asked, lease_ends=lease_ends)
        await self._lifecycle.refresh(refreshed)
        if current.state is MappingState.RETRYING:
            return await self._lifecycle.join(current.id)
        return refreshed

    async def _open(self, request: MappingRequest) -> Mapping:
        self._policy.has_room(request, self._table)
        mapping = self._table.plan(request, self._upstream.mode, self._now(), self._router.port_in_use)
        return await self._lifecycle.open(mapping)

    async def _in_time(self, work: Awaitable[Mapping]) -> Mapping:
        """What one call may take, however many answers it waits for one after the other."""
        deadline = self._main.soap_deadline
        try:
            async with asyncio.timeout(deadline + LOCAL_SECONDS):
                return await work
        except TimeoutError:
            raise Refusal(Reason.UNREACHABLE, f"not done in {deadline:g} s") from None

    def _showable(self, address: IPv4Address) -> bool:
        return address.is_global or self._main.allow_private_external


def _refreshes(held: Mapping, request: MappingRequest) -> bool:
    """Whether AddAnyPortMapping asks again for what this entry gives."""
    same = held.request.client == request.client and held.request.remote_host == request.remote_host
    return same and held.state is not MappingState.ENDING
