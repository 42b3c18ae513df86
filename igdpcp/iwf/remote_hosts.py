# SPDX-License-Identifier: Apache-2.0
"""Several RemoteHosts for one port of one client: one mapping upstream, of which control points see an entry for each.

Who joins is asked for upstream together with those who are there, and comes into table and ruleset when the upstream
has granted that and the kernel has it; till then, and when it is refused, nothing has changed for the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.hidden import UNSEEN, Hidden
from igdpcp.iwf.interfaces import Fallback, Granted
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.iwf.waiters import Waiters
from igdpcp.model import REMOTE_HOSTS_MAX, Activation, Entry, Grant, Mapping, MappingRequest, MappingState, Mode


class RemoteHosts:
    """Adds entries to mappings, and takes some of them away.

    ``opening`` are those who wait for mappings to open; ``keep`` stores a version; ``grant_of`` says which grant a
    mapping has, or will have in a moment; ``commit_again`` brings that into force for the latest version and for those
    that join.
    """

    def __init__(
        self,
        *,
        main: MainConfig,
        tasks: Tasks,
        table: MappingTable,
        policy: Policy,
        upstream: Fallback,
        router_leg: RouterLeg,
        upstream_leg: UpstreamLeg,
        hidden: Hidden,
        opening: Waiters,
        keep: Callable[[Mapping], None],
        grant_of: Callable[[Mapping], Grant | None],
        commit_again: Callable[[Mapping], None],
    ) -> None:
        self._main = main
        self._tasks = tasks
        self._table = table
        self._upstream = upstream
        self._router_leg = router_leg
        self._upstream_leg = upstream_leg
        self._policy = policy
        self._hidden = hidden
        self._opening = opening
        self._keep = keep
        self._grant_of = grant_of
        self._commit_again = commit_again
        self._now = asyncio.get_running_loop().time
        self._waiters = Waiters()
        self._granted: set[str] = set()  # by the names that they are waited for

    async def join(self, held: Mapping, request: MappingRequest) -> Mapping | None:
        """The entry of one more remote host of the same client; None: ``held`` is not what it was, look again."""
        if held.request.client != request.client:
            raise Refusal(Reason.CONFLICT, f"its other remote hosts are led to port {held.request.client.port}")
        if held.state in UNSEEN and held.id in self._opening:
            await self._opening.beside(held.id)
        elif held.state in UNSEEN:  # who asked for it was told that it is not open
            self._hidden.give_back(held)
            await self._hidden.returned(held)
        else:
            joining = self._joins(held.id, request.remote_host)
            added = await self.add(held, request)
            return None if joining else added  # what was on its way is another's request
        return None

    async def add(self, mapping: Mapping, request: MappingRequest) -> Mapping:
        """Let this remote host in as well; returns its entry, or raises Refusal with everything as it was before.

        ``mapping`` is the latest version, and has no entry for that host; the host may be on its way already.
        """
        id, host = mapping.id, request.remote_host
        if asks := not self._joins(id, host):
            self._policy.has_room(request, joins=True)
            joining = self._upstream_leg.joining.get(id, ())
            self._admit(mapping, len(joining))
            entry = Entry(request, self._now() + request.lease if request.lease else None)
            self._upstream_leg.joining[id] = (*joining, entry)
            self._table.expect(request)
        try:
            if asks:
                self._ask(mapping, host)
            joined = await self._waiters.outcome(_name(id, host), [self._main.soap_deadline], lambda _: False)
        finally:
            if _name(id, host) not in self._waiters:
                self._leave(id, host)
        if joined is None:
            raise Refusal(Reason.UNREACHABLE, f"no answer in {self._main.soap_deadline:g} s")
        return joined

    def joining(self, id: str) -> tuple[Entry, ...]:
        """Those to whom this mapping's grant is open by now, and whose rules are still to come."""
        joining, mapping = self._upstream_leg.joining.get(id, ()), self._table.get(id)
        fitting = [each for each in joining if mapping and each.request.client == mapping.request.client]
        return tuple(each for each in fitting if _name(id, each.request.remote_host) in self._granted)

    def heard(self, event: Granted) -> bool:
        """Who joins by this grant; whether anybody does."""
        for each in self._upstream_leg.joining.get(event.id, ()):
            host = each.request.remote_host
            if not event.remote_hosts or host in event.remote_hosts:
                self._granted.add(_name(event.id, host))
        return bool(self.joining(event.id))

    def joined(self, mapping: Mapping) -> None:
        """The table has this version, and the kernel its rules."""
        for each in self._upstream_leg.joining.get(mapping.id, ()):
            if entry := mapping.entry(each.request.remote_host):
                self._forget(mapping.id, each)
                self._waiters.tell(entry, _name(mapping.id, each.request.remote_host))

    def refuse(self, id: str, refusal: Refusal) -> bool:
        """Nobody joins it; whether anybody wanted to."""
        joining = self._upstream_leg.joining.get(id, ())
        for each in joining:
            self._waiters.refuse(_name(id, each.request.remote_host), refusal)
        return bool(joining)

    def refuse_all(self, refusal: Refusal) -> None:
        """Nobody joins any more."""
        self._waiters.refuse_all(refusal)

    def narrow(self, mapping: Mapping, left: Mapping) -> asyncio.Task[None]:
        """Only what is ``left`` of this latest version stays, unless it is ending; done when the kernel has it so."""
        if mapping.state is not MappingState.ENDING:
            self._keep(left)
            self._upstream_leg.ask(left)
        return self._tasks.start(self._keep_out(mapping))

    async def _keep_out(self, before: Mapping) -> None:
        left = self._table.get(before.id)
        if left and left.state is MappingState.ACTIVE and (grant := self._grant_of(left)):
            gone = [each for each in before.entries if left.entry(each.request.remote_host) is None]
            for each in self.joining(left.id):
                left = left.with_entry(each)  # whose rules may be ahead of this in the queue
            await self._router_leg.keep_out(gone, left, grant)

    def _joins(self, id: str, host: IPv4Address | None) -> bool:
        """Whether it is on its way."""
        return any(each.request.remote_host == host for each in self._upstream_leg.joining.get(id, ()))

    def _admit(self, mapping: Mapping, joining: int) -> None:
        """A server that is away cannot let anybody else in, and what it granted goes on meanwhile."""
        if len(mapping.entries) + joining >= REMOTE_HOSTS_MAX:
            raise Refusal(Reason.CONFLICT, f"it is open for {REMOTE_HOSTS_MAX} remote hosts")
        away = self._upstream.state not in (Activation.ACTIVE, Activation.PROBING)
        if mapping.grant and mapping.grant.upstream != Mode.LOCAL and away and self._is_to_be_told(mapping):
            raise Refusal(Reason.UNREACHABLE, "the carrier cannot be told of another remote host")

    def _ask(self, mapping: Mapping, host: IPv4Address | None) -> None:
        told, grant = self._is_to_be_told(mapping), self._grant_of(mapping)
        stands = mapping.state is MappingState.ACTIVE and grant and self._upstream.stands(mapping.id, grant)
        if stands and not told:  # else what is granted anew is open to it
            self._granted.add(_name(mapping.id, host))
            self._commit_again(mapping)
        self._upstream_leg.ask(mapping)

    def _is_to_be_told(self, mapping: Mapping) -> bool:
        """Whether one more remote host is news for the upstream."""
        return bool(mapping.remote_hosts) and self._main.remote_host != "local"

    def _leave(self, id: str, host: IPv4Address | None) -> None:
        """Nobody waits for this any more: if it has not joined, the others are asked for without it again."""
        entry = next((e for e in self._upstream_leg.joining.get(id, ()) if e.request.remote_host == host), None)
        if entry is None:
            return
        had_rules = _name(id, host) in self._granted
        self._forget(id, entry)
        mapping = self._table.get(id)
        if mapping is None or mapping.state is MappingState.ENDING:
            return
        self._upstream_leg.ask(mapping)
        if had_rules:
            self._commit_again(mapping)

    def _forget(self, id: str, entry: Entry) -> None:
        self._table.expect(entry.request, -1)
        self._granted.discard(_name(id, entry.request.remote_host))
        rest = tuple(each for each in self._upstream_leg.joining[id] if each is not entry)
        self._upstream_leg.joining[id] = rest
        if not rest:
            del self._upstream_leg.joining[id]


def _name(id: str, host: IPv4Address | None) -> str:
    """What is waited for, of a mapping, for this remote host."""
    return f"{id} {host}"
