# SPDX-License-Identifier: Apache-2.0
"""The upstream's half of every path: what it is asked for a mapping, and what it has to let go of."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from igdpcp.config import MainConfig
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.journal import Journal
from igdpcp.model import UNKNOWN_ADDRESS, Endpoint, Grant, Mapping, MappingState, Mode, UpstreamRequest


class UpstreamLeg:
    """Asks and gives back; ``leaving`` are the mappings that are forgotten here and not answered for there."""

    def __init__(self, main: MainConfig, upstream: Fallback, router: Router, journal: Journal) -> None:
        self._main = main
        self._upstream = upstream
        self._router = router
        self._journal = journal
        self._some_released = asyncio.Event()
        self.leaving: set[str] = set()

    def ask(self, mapping: Mapping, *, urgent: bool = True) -> None:
        """Want what the mapping says now; every answer comes as an event."""
        self._upstream.map(self._request(mapping), urgent=urgent)

    def give_back(self, mapping: Mapping, *, urgent: bool) -> None:
        """Let go of it, while its control point waits; Released follows."""
        self._upstream.unmap(mapping.id, urgent=urgent)

    def give_back_unseen(self, mapping: Mapping) -> None:
        """Let go of what is not in the table any more; it stays journalled until the upstream confirms."""
        self._leave(mapping)
        self._upstream.unmap(mapping.id, urgent=False)

    def give_back_left(self, mapping: Mapping) -> None:
        """Let go of what an earlier process asked for, unless it did so from an address that we no longer have."""
        grant, address = mapping.grant, self._router.wan_address
        if mapping.mode is not Mode.ROUTED and grant and address and grant.internal.address != address:
            self._journal.gone(mapping.id)
            return
        self._leave(mapping)
        self._upstream.give_back(self._request(mapping))

    def released(self, id: str, result: int) -> None:
        """The upstream answered, or could not be told: then the journal keeps it for the next start."""
        if id in self.leaving:
            self.leaving.discard(id)
            self._some_released.set()
            if not translate.untold(result):
                self._journal.gone(id)

    async def all_released(self) -> None:
        """Wait until the upstream has answered for all that it was told to let go."""
        while self.leaving:
            self._some_released.clear()
            await self._some_released.wait()

    def _leave(self, mapping: Mapping) -> None:
        self._journal.note(replace(mapping, state=MappingState.ENDING))
        self.leaving.add(mapping.id)

    def _request(self, mapping: Mapping) -> UpstreamRequest:
        """What the upstream is asked, with what it granted before as the wish.

        A nonce belongs to an internal tuple: one that was used from another WAN address owns nothing at this one.
        """
        request, grant = mapping.request, mapping.grant
        if grant and grant.upstream == Mode.LOCAL:
            grant = None
        internal = self._internal(mapping, grant)
        return UpstreamRequest(
            id=mapping.id,
            protocol=request.protocol,
            internal=internal,
            external_port=mapping.external_port,
            exact=not request.any_port,
            until=mapping.lease_ends,
            external_address=grant.external.address if grant else None,
            remote_host=request.remote_host,
            description=request.description if self._main.description_option else "",
            nonce=grant.nonce if grant and grant.internal == internal else b"",
            server=grant.server if grant else "",
        )

    def _internal(self, mapping: Mapping, grant: Grant | None) -> Endpoint:
        if mapping.mode is Mode.ROUTED:
            return mapping.request.client
        known = self._router.wan_address or (grant.internal.address if grant else UNKNOWN_ADDRESS)
        return Endpoint(known, mapping.wan_port)
