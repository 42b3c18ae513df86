# SPDX-License-Identifier: Apache-2.0
"""The upstream's half of every path: what it is asked for a mapping, and what it has to let go of."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from igdpcp.config import MainConfig
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.journal import Journal
from igdpcp.model import Endpoint, Mapping, MappingState, Mode, UpstreamRequest


class UpstreamLeg:
    """Asks and gives back; ``leaving`` are the mappings that are forgotten here and not confirmed there."""

    def __init__(self, main: MainConfig, upstream: Fallback, router: Router, journal: Journal) -> None:
        self._main = main
        self._upstream = upstream
        self._router = router
        self._journal = journal
        self._not_asked: set[str] = set()
        self._some_released = asyncio.Event()
        self.leaving: set[str] = set()

    def adopted(self, mapping: Mapping) -> None:
        """An earlier process asked for this mapping; the upstream does not know it by our words yet."""
        self._not_asked.add(mapping.id)

    def was_asked(self, mapping: Mapping) -> bool:
        return mapping.id not in self._not_asked

    def ask(self, mapping: Mapping) -> None:
        """Want what the mapping says now; every answer comes as an event."""
        self._not_asked.discard(mapping.id)
        self._upstream.map(self._request(mapping))

    def give_back(self, mapping: Mapping) -> None:
        """Let go of it; Released follows."""
        if self.was_asked(mapping):
            self._upstream.unmap(mapping.id)
        else:
            self._not_asked.discard(mapping.id)
            self._upstream.give_back(self._request(mapping))

    def give_back_unseen(self, mapping: Mapping) -> None:
        """Let go of what is not in the table any more; it stays journalled until the upstream confirms."""
        self._journal.note(replace(mapping, state=MappingState.ENDING))
        self.leaving.add(mapping.id)
        self.give_back(mapping)

    def released(self, id: str) -> None:
        """The upstream confirmed."""
        if id in self.leaving:
            self.leaving.discard(id)
            self._some_released.set()
            self._journal.gone(id)

    async def all_released(self) -> None:
        """Wait until the upstream has confirmed all that it was told to let go."""
        while self.leaving:
            self._some_released.clear()
            await self._some_released.wait()

    def _request(self, mapping: Mapping) -> UpstreamRequest:
        """What the upstream is asked, with what it granted before as the wish.

        A nonce belongs to an internal tuple: one that was used from another WAN address owns nothing at this one.
        """
        request, grant = mapping.request, mapping.grant
        internal = self._internal(mapping)
        if grant and grant.upstream == Mode.LOCAL:
            grant = None
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
        )

    def _internal(self, mapping: Mapping) -> Endpoint:
        client = mapping.request.client
        if mapping.mode is Mode.ROUTED:
            return client
        return Endpoint(self._router.wan_address or client.address, mapping.wan_port)
