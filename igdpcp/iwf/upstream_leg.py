# SPDX-License-Identifier: Apache-2.0
"""The upstream's half of every path: what it is asked for a mapping, and what it has to let go of."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from igdpcp.config import MainConfig
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.port_policy import PortPolicy
from igdpcp.model import Entry, Mapping, MappingState, Mode, UpstreamRequest

UNTOLD_MAX = 4096  # as many as the upstream owes; beyond it the oldest are left to their lifetime


class UpstreamLeg:
    """Asks and gives back; ``leaving`` are the mappings that are forgotten here and not answered for there."""

    def __init__(self, main: MainConfig, upstream: Fallback, journal: Journal, port_policy: PortPolicy) -> None:
        self._main = main
        self._port_policy = port_policy
        self._upstream = upstream
        self._journal = journal
        self._some_released = asyncio.Event()
        self._untold: dict[str, None] = {}  # journalled, and not answered for; the oldest first
        self.joining: dict[str, tuple[Entry, ...]] = {}  # what is asked for beyond what the table has, by id
        self.leaving: set[str] = set()

    def ask(self, mapping: Mapping, *, urgent: bool = True) -> None:
        """Want what the mapping says now; every answer comes as an event."""
        self._upstream.map(self._request(mapping), urgent=urgent)

    def give_back(self, mapping: Mapping, *, urgent: bool) -> None:
        """Let go of it, while its control point waits; Released follows."""
        self._upstream.unmap(mapping.id, urgent=urgent)

    def give_back_unseen(self, mapping: Mapping, *, urgent: bool) -> None:
        """Let go of what is not in the table any more; it stays journalled until the upstream confirms."""
        self._leave(mapping)
        self._upstream.unmap(mapping.id, urgent=urgent)

    def give_back_left(self, mapping: Mapping) -> None:
        """Let go of what an earlier process asked for."""
        self._leave(mapping)
        self._upstream.give_back(self._request(mapping))

    def released(self, id: str, result: int) -> None:
        """The upstream answered for what is leaving, or could not tell its server; then the answer may yet come."""
        if id in self.leaving or id in self._untold:
            self.settled(id, result)
            self._some_released.set()

    def settled(self, id: str, result: int | None) -> None:
        """What became of a deletion: nothing (None) or nobody (untold) keeps it journalled, also for the next start."""
        self.leaving.discard(id)
        self._untold.pop(id, None)
        if result is None:
            self.leaving.add(id)
        elif translate.untold(result):
            self._untold[id] = None
            if len(self._untold) > UNTOLD_MAX:
                oldest = next(iter(self._untold))
                del self._untold[oldest]
                self._journal.gone(oldest)
        else:
            self._journal.gone(id)

    async def answered_for(self, id: str) -> None:
        """Wait until the upstream has answered for this one, if it was told to let it go."""
        while id in self.leaving:
            self._some_released.clear()
            await self._some_released.wait()

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

        The router's own address is for the upstream to know: it is the one that its server sees.
        """
        for entry in self.joining.get(mapping.id, ()):
            mapping = mapping.with_entry(entry)
        request, grant = mapping.request, mapping.grant
        return UpstreamRequest(
            id=mapping.id,
            protocol=request.protocol,
            internal=request.client if mapping.mode is Mode.ROUTED else mapping.wan_port,
            external_port=mapping.external_port,
            exact=mapping.exact,
            until=mapping.needed_until,
            remote_hosts=mapping.remote_hosts if self._main.remote_host != "local" else (),
            description=request.description if self._main.description_option else "",
            grant=grant if grant and grant.upstream != Mode.LOCAL else None,
            aliased=self._port_policy.aliases(request),
            nonce=request.nonce,
        )
