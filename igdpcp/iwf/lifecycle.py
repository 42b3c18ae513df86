# SPDX-License-Identifier: Apache-2.0
"""The life of a mapping between its request and its end: the only consumer of grants.

    PLANNED --Granted--> ACTIVE --delete--> ENDING --Released--> forgotten
       |                  |  ^
       | nobody waits     |  | Granted
       v                  v  |
     HIDDEN            RETRYING  (an infinite lease whose grant was lost)

    (a query's, a shadow, is HIDDEN in any case, until somebody asks for it)

Both legs or nothing: a mapping becomes ACTIVE when it has its grant *and* the kernel has its rules. Whatever happens
later (renewal, recovery, another external address) arrives as another Granted and takes the same path. The upstream
does not know two things, and they are decided here: when the lease ends, and what a refusal means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf import translate
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.commits import Commits
from igdpcp.iwf.deadlines import Deadlines
from igdpcp.iwf.deletion import Deletions
from igdpcp.iwf.departures import Departures
from igdpcp.iwf.hidden import UNSEEN, Hidden
from igdpcp.iwf.interfaces import Fallback, Granted, Lost, Refused, Released, UpstreamEvent
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.mapping_log import MappingLog
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.port_policy import PortPolicy, granted
from igdpcp.iwf.refreshing import Refreshing
from igdpcp.iwf.remote_hosts import RemoteHosts
from igdpcp.iwf.resends import Resends
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.iwf.upstream_news import UpstreamNews
from igdpcp.iwf.waiters import Waiters
from igdpcp.log import line
from igdpcp.model import Grant, Mapping, MappingRequest, MappingState, Mode

LOG = logging.getLogger("igdpcp.iwf")
LOCAL_SECONDS = 1.0  # what the router alone may take when the upstream has used up the deadline


class Lifecycle:
    """Owns every mapping from claim to end; methods are called on the event loop.

    ``changed`` is called when what control points are shown of the upstream may be another.
    """

    def __init__(
        self,
        *,
        main: MainConfig,
        table: MappingTable,
        policy: Policy,
        upstream: Fallback,
        router_leg: RouterLeg,
        upstream_leg: UpstreamLeg,
        journal: Journal,
        port_policy: PortPolicy,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._main = main
        self._table = table
        self._policy = policy
        self._upstream = upstream
        self._router_leg = router_leg
        self._upstream_leg = upstream_leg
        self._journal = journal
        self._port_policy = port_policy
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._waiters = Waiters()
        self._resends = Resends(main, table, self._waiters, upstream_leg)
        self._timers = Deadlines(lease_ended=self._lease_ended, unrenewed=self._unrenewed)
        self._tasks = Tasks()
        self.departures = Departures(table, policy, self._end)
        self._log = MappingLog()
        self._news = UpstreamNews(lambda: upstream.name, changed)
        self._opens = True
        self.hidden = Hidden(
            main=main, table=table, waiters=self._waiters, timers=self._timers, journal=journal,
            upstream_leg=upstream_leg, log=self._log, begin=self._begin, give_up=self.give_up,
        )  # fmt: skip
        self._deletions = Deletions(
            main=main, table=table, upstream=upstream, router_leg=router_leg, upstream_leg=upstream_leg,
            journal=journal, reopen=self._reopen,
        )  # fmt: skip
        self._commits = Commits(
            tasks=self._tasks, table=table, router_leg=router_leg, joining=lambda id: self.remote_hosts.joining(id),
            in_force=self._in_force, refused=self._not_in_force,
        )  # fmt: skip
        self.refreshing = Refreshing(
            table=table, upstream=upstream, router_leg=router_leg, upstream_leg=upstream_leg, commits=self._commits,
            keep=self._keep, join=self.join,
        )  # fmt: skip
        self.remote_hosts = RemoteHosts(
            main=main, tasks=self._tasks, table=table, policy=policy, upstream=upstream, router_leg=router_leg,
            upstream_leg=upstream_leg, hidden=self.hidden, opening=self._waiters,
            keep=self._keep, grant_of=self._commits.grant_of, commit_again=self._commit_again,
        )  # fmt: skip
        self._handlers: dict[type, Callable[[Any], None]] = {
            Granted: self._granted,
            Refused: self._refused,
            Lost: self._lost,
            Released: self._released,
        }

    async def run(self, events: asyncio.Queue[UpstreamEvent]) -> None:
        """Consume the upstream's events until cancelled."""
        while True:
            event = await events.get()
            try:
                self._port_policy.hear(event)
                self._policy.hear(event)
                self._handlers.get(type(event), self._news.hear)(event)
            except Exception:  # the only consumer may not end: nothing would be granted or renewed any more
                LOG.exception(line("event_failed", upstream_event=event))

    # -- opening -------------------------------------------------------------------------------------------------

    async def open(self, mapping: Mapping) -> Mapping:
        """Ask upstream for a planned mapping; returns it ACTIVE, or raises Refusal with nothing left behind."""
        self._begin(mapping)
        return await self.join(mapping.id)

    def _begin(self, mapping: Mapping) -> None:
        try:
            if not self._opens:
                raise Refusal(Reason.CANCELLED, "everything is being given back")
            self._journal.record(mapping)
            self._upstream_leg.ask(mapping)
        except Exception:
            self._table.forget([mapping.id], self._loop.time())
            self._journal.gone(mapping.id)
            raise

    async def join(self, id: str) -> Mapping:
        """Wait for a mapping whose request is on its way already; as ``open``."""
        if (mapping := self._table.get(id)) and mapping.state in UNSEEN:
            self._timers.stop(id)
        patience = self._main.soap_deadline, LOCAL_SECONDS
        try:
            if opened := await self._waiters.outcome(id, patience, self._upstream.overdue):
                return opened
            raise Refusal(Reason.UNREACHABLE, f"no answer in {self._main.soap_deadline:g} s")
        finally:
            self.hidden.wait_for_retry(id)

    async def reveal(self, mapping: Mapping) -> Mapping:
        """The retry for a grant that came too late: put its rules in place; as ``open``."""
        self._commit_again(mapping)
        return await self.join(mapping.id)

    async def take_over(self, shadow: Mapping, request: MappingRequest) -> Mapping:
        """Open what a query asked for; as ``open``."""
        taken = self.hidden.hand_over(shadow, request)
        return await (self.reveal(taken) if taken.grant else self.join(taken.id))

    def open_no_more(self) -> None:
        """From now on every new mapping is refused."""
        self._opens = False

    # -- changing ------------------------------------------------------------------------------------------------

    def wan_changed(self) -> None:
        """The router's WAN device or address is another one: rewrite the rules of what is open, and ask from there."""
        for mapping in self._table:
            if mapping.visible or mapping.id in self._commits:
                self._commit_again(mapping)
            if mapping.is_shadow:
                self.give_up(mapping)
            elif mapping.state is not MappingState.ENDING:
                self._upstream_leg.ask(mapping, urgent=False)

    def adopt(self, mapping: Mapping) -> None:
        """Take over a mapping of an earlier process and ask for it again; it is shown while its grant runs.

        Raises Refusal when its ports are held, or when it may not be any more.
        """
        mapping = self._policy.permitted(mapping)
        if mapping.grant is None or mapping.grant.ends <= self._loop.time():
            mapping = replace(mapping, state=MappingState.RETRYING)
        self._table.restore(mapping)
        self._kept(mapping)
        self._upstream_leg.ask(mapping, urgent=False)

    # -- ending --------------------------------------------------------------------------------------------------

    async def close(self, mappings: Sequence[Mapping]) -> dict[str, Refusal]:
        """Delete mappings as one change, upstream first where they are shown; why some have to stay, by id."""
        shown = [mapping for mapping in mappings if mapping.visible]
        for mapping in mappings:
            if mapping.visible:
                self._timers.stop(mapping.id)
                self._refuse(mapping.id, Refusal(Reason.CANCELLED))
            else:
                self.give_up(mapping)
        return await self._deletions.delete(shown) if shown else {}

    async def closed(self, id: str) -> None:
        """Wait until a deletion on its way is decided."""
        await self._deletions.decided(id)

    def give_up(self, mapping: Mapping, why: Refusal | None = None, *, urgent: bool = False) -> None:
        """Forget a mapping at once, and tell who waits for it why; rules and grant follow in the background."""
        self._refuse(mapping.id, why or Refusal(Reason.CANCELLED))
        self._timers.stop(mapping.id)
        self._table.forget([mapping.id], self._loop.time())
        self._upstream_leg.give_back_unseen(mapping, urgent=urgent)
        self._tasks.start(self._router_leg.remove(mapping))

    def _refuse(self, id: str, why: Refusal) -> None:
        self._waiters.refuse(id, why)
        self.remote_hosts.refuse(id, why)

    def _end(self, mapping: Mapping, left: Mapping | None) -> None:
        """As ``give_up``, but for what is to be left of it."""
        if left is None:
            self.give_up(mapping)
        else:
            self.remote_hosts.narrow(mapping, left)

    def _reopen(self, mapping: Mapping) -> None:
        """The deletion failed: the entry is as it was, and wanted upstream again."""
        self._keep(active := replace(mapping, state=MappingState.ACTIVE))
        self._upstream_leg.ask(active)

    # -- the upstream's events -----------------------------------------------------------------------------------

    def _granted(self, event: Granted) -> None:
        if (mapping := self._table.get(event.id)) is None or mapping.state is MappingState.ENDING:
            return
        port, somebody_joins = event.grant.external.port, self.remote_hosts.heard(event)
        if not self._policy.permits(mapping.request, port):
            self._log.tell("grant_not_permitted", mapping, granted_port=port)
            self.give_up(mapping, Refusal(Reason.NO_PORT, f"port {port} was granted, which is not permitted"))
        elif self.hidden.keeps(mapping):
            self.hidden.hide(mapping, event.grant)
        elif not somebody_joins and self._only_for_longer(mapping, event.grant):
            self._renewed(mapping, event.grant)
        else:
            self._commits.start(event.id, event.grant)

    def _only_for_longer(self, mapping: Mapping, grant: Grant) -> bool:
        """Whether the rules are right as they stand; behind a grant that is on its way none is."""
        if mapping.state is not MappingState.ACTIVE or mapping.id in self._commits:
            return False
        return mapping.grant is not None and mapping.grant.leads_as(grant)

    def _renewed(self, mapping: Mapping, grant: Grant) -> None:
        """The same path for longer."""
        assert mapping.grant is not None
        renewed = replace(mapping, grant=grant)
        self._table.update(renewed)
        self._journal.renewed(renewed)
        self._timers.watch(renewed)
        self._router_leg.extend(mapping.id, mapping.grant.ends)
        self._waiters.tell(renewed)

    def _commit_again(self, mapping: Mapping) -> None:
        if grant := self._commits.grant_of(mapping):
            self._commits.start(mapping.id, grant)

    def _in_force(self, mapping: Mapping, grant: Grant) -> None:
        """The kernel has the rules: now the table, then the answer."""
        if self.hidden.keeps(mapping):
            self.hidden.hide(mapping, grant)
            self._tasks.start(self._router_leg.remove(mapping))
            return
        self._activate(mapping, grant)

    def _not_in_force(self, mapping: Mapping, grant: Grant, error: RulesetError) -> None:
        """A failure on the first grant gives it back."""
        if mapping.state is MappingState.ACTIVE:
            self._refuse(mapping.id, Refusal(Reason.RULESET, str(error)))
            self._activate(mapping, grant)  # what is granted is so; the router's leg is repaired by itself
        else:
            self.give_up(mapping, Refusal(Reason.RULESET, str(error)))

    def _activate(self, mapping: Mapping, grant: Grant) -> None:
        active = granted(mapping, grant, MappingState.ACTIVE)
        try:
            self._keep(active)
        except Refusal as refusal:
            self.give_up(mapping, refusal)
            return
        if mapping.state is not MappingState.ACTIVE or not mapping.grant or mapping.grant.external != grant.external:
            self._log.tell("mapping_open", active, external=grant.external, wan_port=active.wan_port,
                           upstream=grant.upstream, lifetime=grant.lifetime)  # fmt: skip
        if mapping.grant and mapping.grant.external.address != grant.external.address:
            self._changed()  # where it comes out is what its client is shown as the external address
        self._waiters.tell(active)
        self.remote_hosts.joined(active)

    def _refused(self, event: Refused) -> None:
        if (mapping := self._table.get(event.id)) is None or mapping.state is MappingState.ENDING:
            return
        result = translate.result_name(event.result)
        refusal = Refusal(Reason.UPSTREAM, result, event.result)
        if translate.quota_is_met(event.result) and self.hidden.makes_room_for(mapping):
            self._upstream_leg.ask(mapping)
            return
        if not mapping.is_shadow:
            self._policy.refused_by_carrier(mapping.request, event.result, self._commits.coming)
        if mapping.state is MappingState.PLANNED:
            if mapping.is_shadow or not self._resends.plan(mapping, event):
                self.give_up(mapping, refusal)
            return
        if mapping.state is MappingState.HIDDEN and event.id in self._waiters:
            self.give_up(mapping, refusal)  # whoever is told so finds nothing open
            return
        if self.remote_hosts.refuse(event.id, refusal) and mapping.state is MappingState.ACTIVE:
            return  # it is what was asked for beyond what is open
        self._waiters.refuse(event.id, refusal)
        local = mapping.grant is not None and mapping.grant.upstream == Mode.LOCAL
        self._log.warn("grant_refused", mapping, result=result, local_only=int(local))
        if mapping.state is MappingState.ACTIVE and mapping.grant and mapping.grant.ends <= self._loop.time():
            self._unserved(mapping)
        elif translate.external_port_is_taken(event.result) and not local:
            if not mapping.exact and mapping.external_port:
                self._retry(mapping, replace(mapping, external_port=0, grant=None))
            else:
                self.give_up(mapping)

    def _lost(self, event: Lost) -> None:
        """Unrenewed: the router alone serves where it may."""
        if (mapping := self._table.get(event.id)) is None:
            return
        if mapping.state is MappingState.HIDDEN:
            self.give_up(mapping)
        elif mapping.state is MappingState.ACTIVE and not self._upstream.overdue(event.id):
            self._log.warn("grant_lost", mapping)
            self._unserved(mapping)

    def _unserved(self, mapping: Mapping) -> None:
        """Nobody grants it now: a finite lease ends, an infinite one retries."""
        if left := mapping.keeping(lambda entry: entry.lease_ends is None):
            self._retry(mapping, left)
        else:
            self.give_up(mapping)

    def _retry(self, mapping: Mapping, wanted: Mapping) -> None:
        """What is still ``wanted`` of it is shown to nobody until it is granted again."""
        self._commits.void(mapping.id)
        self._keep(retrying := replace(wanted, state=MappingState.RETRYING))
        self._upstream_leg.ask(retrying)
        self._tasks.start(self._router_leg.remove(mapping))

    def _released(self, event: Released) -> None:
        self._deletions.released(event.id, event.result)
        self._upstream_leg.released(event.id, event.result)

    # -- small things --------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End the work in flight; rules, grants and journal stay as they are."""
        self._timers.stop_all()
        self._resends.stop()
        self.departures.stop()
        for waiters in (self._waiters, self.remote_hosts):
            waiters.refuse_all(Refusal(Reason.CANCELLED, "the service stops"))
        await self._deletions.stop()
        await self.refreshing.stop()
        await self._tasks.stop()

    def _keep(self, mapping: Mapping) -> None:
        self._table.update(mapping)
        self._kept(mapping)

    def _kept(self, mapping: Mapping) -> None:
        """The table has this version."""
        self._journal.note(mapping)
        self._timers.watch(mapping)

    def _unrenewed(self, id: str) -> None:
        if id not in self._commits:  # else what comes into force has the next deadline
            self._lost(Lost(id))

    def _lease_ended(self, id: str) -> None:
        if (mapping := self._table.get(id)) and mapping.state is not MappingState.ENDING:
            ended = max(self._loop.time(), mapping.first_end or 0.0)
            self._log.tell("lease_ended", mapping)
            self._end(mapping, mapping.keeping(lambda entry: entry.lease_ends is None or entry.lease_ends > ended))
