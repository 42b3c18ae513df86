# SPDX-License-Identifier: Apache-2.0
"""Grants that no control point was told of: who may still have them, and when they are given back.

One that came after its control point was told 501 waits half a minute for the retry. One that only a query asked for
(a shadow) waits for the next AddPortMapping as long as it was granted, two minutes at most; it is not renewed, and goes
first when the server has no more slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol as Interface

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.deadlines import Deadlines
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.mapping_log import MappingLog
from igdpcp.iwf.port_policy import granted
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.iwf.waiters import Waiters
from igdpcp.model import Grant, Mapping, MappingRequest, MappingState

HIDDEN_SECONDS = 30.0  # how long a grant that came too late waits for the control point's retry
SHADOW_SECONDS = 120.0  # what servers make of a query's minute (RFC 6887 section 15); some make a day of it
UNSEEN = (MappingState.PLANNED, MappingState.HIDDEN)


class _GiveUp(Interface):
    def __call__(self, mapping: Mapping, why: Refusal | None = ..., *, urgent: bool = False) -> None: ...


class Hidden:
    """Keeps them and hands them over; ``begin`` asks upstream for a planned mapping, ``give_up`` ends one."""

    def __init__(
        self,
        *,
        main: MainConfig,
        table: MappingTable,
        waiters: Waiters,
        timers: Deadlines,
        journal: Journal,
        upstream_leg: UpstreamLeg,
        log: MappingLog,
        begin: Callable[[Mapping], None],
        give_up: _GiveUp,
    ) -> None:
        self._main = main
        self._table = table
        self._waiters = waiters
        self._timers = timers
        self._journal = journal
        self._upstream_leg = upstream_leg
        self._log = log
        self._begin = begin
        self._give_up = give_up
        self._now = asyncio.get_running_loop().time

    # -- shadows -------------------------------------------------------------------------------------------------

    async def query(self, shadow: Mapping) -> bool:
        """Ask upstream for a planned shadow; False: it was silent all the time. Raises Refusal when it refused."""
        self._begin(shadow)
        self._timers.watch(shadow)
        return await self.join(shadow.id)

    async def join(self, id: str) -> bool:
        """Wait for what another query asks already; as ``query``. The router alone never answers."""
        try:
            return await self._waiters.outcome(id, [self._main.soap_deadline], lambda _: False) is not None
        except Refusal as refusal:
            if refusal.reason is not Reason.CANCELLED:
                raise
            return True  # something that was asked for needed its place, whether or not an answer would have come
        finally:
            self.wait_for_retry(id)

    def hand_over(self, shadow: Mapping, request: MappingRequest) -> Mapping:
        """Make it what this request asks for, with its tuple and nonce; the answer may be there or yet to come."""
        lease_ends = self._now() + request.lease if request.lease else None
        taken = replace(shadow, request=request, lease_ends=lease_ends)
        self._table.update(taken)
        self._upstream_leg.ask(taken)
        return taken

    def give_back(self, shadow: Mapping) -> None:
        """Forget a shadow that is in the way here."""
        self._give_up(shadow, urgent=True)

    async def returned(self, shadow: Mapping) -> None:
        """Wait until what was given back is in nobody's way upstream."""
        await self._upstream_leg.answered_for(shadow.id)

    def makes_room_for(self, mapping: Mapping) -> bool:
        """Give all shadows back for what somebody asked for; False: there is none."""
        shadows = [] if mapping.is_shadow else self._table.shadows
        for shadow in shadows:
            self.give_back(shadow)
        return bool(shadows)

    # -- hiding --------------------------------------------------------------------------------------------------

    def keeps(self, mapping: Mapping) -> bool:
        """Whether what is granted for it is to be hidden: no control point knows of it, and none waits to."""
        return mapping.is_shadow or (mapping.state in UNSEEN and mapping.id not in self._waiters)

    def hide(self, mapping: Mapping, grant: Grant) -> None:
        """Keep this grant, without rules."""
        lease_ends = mapping.lease_ends
        if mapping.is_shadow and mapping.state is MappingState.PLANNED:
            lease_ends = min(grant.ends, self._now() + SHADOW_SECONDS)
        hidden = granted(replace(mapping, lease_ends=lease_ends), grant, MappingState.HIDDEN)
        try:
            self._table.update(hidden)
        except Refusal as refusal:
            self._give_up(mapping, refusal)
            return
        self._journal.note(hidden)
        if mapping.is_shadow:
            self._timers.watch(hidden)
            if mapping.lease_ends is not None and grant.ends < mapping.lease_ends:
                self._upstream_leg.ask(hidden)  # for no longer than that: it is not renewed
            self._waiters.tell(hidden)

    def wait_for_retry(self, id: str) -> None:
        """When the last waiter has gone unanswered, a late grant has half a minute to be asked for again."""
        mapping = self._table.get(id)
        if mapping and mapping.state in UNSEEN and not mapping.is_shadow and id not in self._waiters:
            self._timers.set(id, self._now() + HIDDEN_SECONDS, self._retry_over)

    def _retry_over(self, id: str) -> None:
        if mapping := self._table.get(id):
            self._log.tell("late_grant_given_back", mapping)
            self._give_up(mapping)
