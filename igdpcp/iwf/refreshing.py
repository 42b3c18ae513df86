# SPDX-License-Identifier: Apache-2.0
"""Repeated requests for what is open: new lease, description or client port, on a path that stays open meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.commits import Commits
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.model import Entry, Grant, Mapping, MappingRequest, MappingState


class Refreshing:
    """The table changes at once, since more requests may follow in the same turn.

    ``keep`` stores a version; ``join`` waits for what has been asked for.
    """

    def __init__(
        self,
        *,
        table: MappingTable,
        upstream: Fallback,
        router_leg: RouterLeg,
        upstream_leg: UpstreamLeg,
        commits: Commits,
        keep: Callable[[Mapping], None],
        join: Callable[[str], Awaitable[Mapping]],
    ) -> None:
        self._table = table
        self._upstream = upstream
        self._router_leg = router_leg
        self._upstream_leg = upstream_leg
        self._commits = commits
        self._keep = keep
        self._join = join
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._leading: Counter[str] = Counter()  # redirections on their way, by id
        self._led: dict[str, Mapping] = {}  # the version that the rules of these lead to so far

    async def confirmed(self, entry: Mapping) -> Mapping:
        """Its latest version, when that is nothing that is being asked for anew; raises Refusal as the upstream does.

        What the router has lost its address for, or the server its state, is asked for at once: somebody waits.
        """
        while (latest := self._table.get(entry.id)) and latest.state is MappingState.ACTIVE:
            if latest.id not in self._commits:  # else the table does not have the latest grant yet
                if latest.grant and self._upstream.stands(latest.id, latest.grant):
                    break
                self._upstream_leg.ask(latest)
            await self._join(latest.id)
        return (latest and latest.entry(entry.request.remote_host)) or entry

    async def refresh(self, mapping: Mapping, asked: MappingRequest) -> Mapping:
        """What was asked for now instead; ``mapping`` is the latest version. Returns the refreshed one.

        Raises RulesetError when the rules cannot be led to another client port: then nothing has changed. Goes on when
        its caller is cancelled, so that table, kernel and journal agree.
        """
        lease_ends = self._loop.time() + asked.lease if asked.lease else None
        refreshed = mapping.with_entry(Entry(asked, lease_ends))
        if refreshed == self._table.get(mapping.id) and self._needs_nothing(refreshed):
            return refreshed
        self._want(refreshed)
        grant = self._commits.grant_of(refreshed)
        if refreshed.visible and grant and (mapping.id in self._leading or mapping.request.client != asked.client):
            self._leading[mapping.id] += 1
            self._led.setdefault(mapping.id, mapping)
            await asyncio.shield(self._tasks.start(self._redirect(refreshed, grant)))
        return refreshed

    async def stop(self) -> None:
        """End the work in flight."""
        await self._tasks.stop()

    async def _redirect(self, mapping: Mapping, grant: Grant) -> None:
        """Lead the rules to this version's client port; what the kernel refuses is undone, unless a later one came."""
        try:
            await self._router_leg.put(mapping, grant)
        except RulesetError:
            current, before = self._table.get(mapping.id), self._led[mapping.id]
            if current and current.request is mapping.request:
                others = tuple(replace(each, request=replace(each.request, client=before.request.client))
                               for each in current.others)  # fmt: skip
                self._want(replace(current, request=before.request, lease_ends=before.lease_ends, others=others))
            raise
        else:
            self._led[mapping.id] = mapping
        finally:
            self._leading[mapping.id] -= 1
            if not self._leading[mapping.id]:
                del self._leading[mapping.id], self._led[mapping.id]
        current = self._table.get(mapping.id)
        if current is None or current.state is MappingState.ENDING:
            raise Refusal(Reason.CANCELLED)

    def _needs_nothing(self, mapping: Mapping) -> bool:
        """Whether its path is open end to end: what the router serves alone is asked of the carrier once more."""
        return mapping.at_carrier and mapping.state is MappingState.ACTIVE and mapping.id not in self._leading

    def _want(self, mapping: Mapping) -> None:
        self._keep(mapping)
        if mapping.state is not MappingState.ENDING:
            self._upstream_leg.ask(mapping)
