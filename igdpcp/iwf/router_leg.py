# SPDX-License-Identifier: Apache-2.0
"""The router's half of every path: what a mapping needs of the ruleset, and what happens when the kernel refuses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from igdpcp.config import MainConfig
from igdpcp.errors import RulesetError
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.established import Established
from igdpcp.iwf.interfaces import Router, Ruleset
from igdpcp.iwf.mapping_log import WARNINGS_BURST, WARNINGS_PER_SECOND
from igdpcp.iwf.port_policy import shown_port
from igdpcp.iwf.table import MappingTable
from igdpcp.log import RateLimit, line
from igdpcp.model import Grant, Mapping, Mode, Pinhole
from igdpcp.openings import AnyOpening, Discrepancy, Opening, PinholeOpening, Surroundings

LOG = logging.getLogger("igdpcp.iwf")
EXTEND_SECONDS = 2.0  # renewals wait so long for others to share a change with
LEAST_SECONDS = 1.0  # that rules last, whatever they are for
RESYNC_SECONDS = 10.0  # after a change failed, the whole ruleset is laid down anew
# Comparing every rule takes long where there are thousands, and changes wait for it: so it is done when somebody has
# changed something and a first look finds nothing, not oftener than this, and for no larger share of the time.
COMPARE_SECONDS = 60.0
PAUSES_PER_COMPARISON = 49.0


class RouterLeg:
    """Puts mappings and pinholes into the ruleset and takes them out.

    What is shown of ``mappings`` must be there, and all ``pinholes``.
    """

    def __init__(
        self,
        main: MainConfig,
        ruleset: Ruleset,
        router: Router,
        mappings: MappingTable,
        pinholes: Iterable[Pinhole],
        established: Established,
    ) -> None:
        self._ruleset = ruleset
        self._router = router
        self._mappings = mappings
        self._pinholes = pinholes
        self._established = established
        self._carrier_filters = main.remote_host == "filter"
        self._loop = asyncio.get_running_loop()
        self._repairing = False  # a sync is to come
        self._underway: dict[str, Opening] = {}
        self._surroundings: Surroundings | None = None
        self._extensions: set[str] = set()
        self._extending: asyncio.TimerHandle | None = None
        self._tasks = Tasks()
        self._looking = asyncio.Lock()
        self._failures = 0
        self._lines = RateLimit(WARNINGS_BURST, WARNINGS_PER_SECOND, self._loop.time)
        self._changed_by: str | None = None
        self._compare_after = self._loop.time()
        self.problem: str | None = None

    async def put(self, mapping: Mapping, grant: Grant) -> None:
        """Returns when the kernel has this mapping's rules; raises RulesetError when it has none of them."""
        opening = None
        try:
            opening = self._underway[mapping.id] = self._opening(mapping, grant)
            await self._ruleset.put(opening)
        except RulesetError as error:
            self.failed(error)
            raise
        finally:
            if opening and self._underway.get(mapping.id) is opening:
                del self._underway[mapping.id]
        await self._established.opened(opening)

    def extend(self, id: str, ends: float) -> None:
        """Let the rules of an open mapping, which end at ``ends``, last as long as its grant does by now.

        That has time: what is renewed within a second or two goes into the kernel in one change.
        """
        self._extensions.add(id)
        now = self._loop.time()
        due = now + min(EXTEND_SECONDS, max(0.0, (ends - now) / 2))
        if self._extending is None or due < self._extending.when():
            self._stop_extending()
            self._extending = self._loop.call_at(due, self._extend)

    def _extend(self) -> None:
        self._extending = None
        ids, self._extensions = self._extensions, set()
        for id in ids:
            self._tasks.start(self._put_again(id))

    async def _put_again(self, id: str) -> None:
        """What the table says now; and again should that change meanwhile, by what was ahead of this in the queue."""
        laid: Mapping | None = None
        while (mapping := self._mappings.get(id)) is not laid and mapping and mapping.visible and mapping.grant:
            laid = mapping
            await self.put(mapping, mapping.grant)

    def _stop_extending(self) -> None:
        if self._extending:
            self._extending.cancel()
            self._extending = None

    async def remove(self, mapping: Mapping) -> None:
        """Takes the rules away; a failure is repaired later, and meanwhile they lead to a port that nobody opens."""
        await self._remove(mapping.id)
        await self._established.closed(mapping)

    async def keep_out(self, gone: Iterable[Mapping], left: Mapping, grant: Grant) -> None:
        """Takes the rules of these entries of a mapping away, those of what is ``left`` of it stay; as ``remove``."""
        with contextlib.suppress(RulesetError):
            await self.put(left, grant)
        for each in gone:
            await self._established.narrowed(each, left)

    async def put_pinhole(self, pinhole: Pinhole) -> None:
        """As ``put``."""
        try:
            await self._ruleset.put(self._pinhole_opening(pinhole))
        except RulesetError as error:
            self.failed(error)
            raise

    async def remove_pinhole(self, pinhole: Pinhole) -> None:
        """Takes the rules away; a failure is repaired later."""
        await self._remove(pinhole.name)
        await self._established.pinhole_closed(pinhole)

    async def pinhole_packets(self, pinhole: Pinhole) -> int:
        """What has come in by it; raises RulesetError."""
        return await self._ruleset.pinhole_packets(pinhole.name)

    async def _remove(self, id: str) -> None:
        self._underway.pop(id, None)  # the removal is behind it, and no sync may be behind that
        try:
            await self._ruleset.remove(id)
        except RulesetError as error:
            self.failed(error)

    async def surround(self, surroundings: Surroundings) -> None:
        """The ruleset is for these devices and servers from now on."""
        if surroundings == self._surroundings and not self.problem:
            return
        self._surroundings = surroundings
        try:
            await self._ruleset.surroundings(surroundings)
        except RulesetError as error:
            self.failed(error)

    async def sync(self) -> None:
        """Makes the kernel hold the rules of all that is open, what is on its way included, and none else."""
        failures = self._failures
        try:
            if self.problem and self._surroundings:
                await self._ruleset.surroundings(self._surroundings)
            openings = self._openings()
            await self._ruleset.sync(openings)
            if self.problem:
                LOG.info(line("ruleset_repaired", openings=len(openings)))
            if failures == self._failures:
                self.problem = None
        except RulesetError as error:
            self.failed(error)

    async def audit(self, changed_by: str | None = None) -> None:
        """Look whether somebody, a firewall's restart for example, has taken the rules away; if so lay them anew.

        ``changed_by``: the program that has changed somebody's rules since the last look, if any has.
        """
        self._changed_by = changed_by or self._changed_by
        async with self._looking:
            try:
                if self.problem or not await self._ruleset.intact():
                    await self._lay_anew("ruleset_gone", "the rules were gone")
                elif self._changed_by is not None and self._loop.time() >= self._compare_after:
                    await self._compare()
            except RulesetError as error:
                self.failed(error)

    async def compare(self) -> Discrepancy:
        """How the kernel's rules differ from all that is open; raises RulesetError when that cannot be told."""
        async with self._looking:
            return await self._ruleset.audit()

    async def repair(self) -> tuple[Discrepancy | None, Discrepancy]:
        """Compare, lay all rules anew where they differ, and compare again: what was found, and what is left.

        What was found is None where the rules could not even be read. Raises RulesetError when they cannot be mended.
        """
        async with self._looking:
            found: Discrepancy | None = None
            with contextlib.suppress(RulesetError):
                found = await self._ruleset.audit()
            if found != Discrepancy() or self.problem:
                await self._lay_anew("ruleset_differs", "the rules differed", found)
            if self.problem:
                raise RulesetError(self.problem)
            return found, await self._ruleset.audit()

    async def _compare(self) -> None:
        """Lay the rules anew where they differ; what cannot be compared is left as it is."""
        started, changed_by, self._changed_by = self._loop.time(), self._changed_by, None
        try:
            found = await self._ruleset.audit()
        except RulesetError as error:
            LOG.warning(line("ruleset_not_compared", error=error))
            return
        finally:
            ended = self._loop.time()
            self._compare_after = ended + max(COMPARE_SECONDS, PAUSES_PER_COMPARISON * (ended - started))
        if found != Discrepancy():
            self._changed_by = changed_by
            await self._lay_anew("ruleset_differs", "the rules differed", found)

    async def _lay_anew(self, event: str, problem: str, found: Discrepancy | None = None) -> None:
        if self.problem is None:
            counts = {"missing": found.missing, "surplus": found.surplus} if found else {}
            LOG.warning(line(event, **counts, changed_by=self._changed_by, remedy="laid anew"))
            self.problem = problem
        self._changed_by = None
        await self.sync()

    async def clear(self) -> None:
        """Takes all rules away."""
        try:
            await self._ruleset.sync([])
        except RulesetError as error:
            self.failed(error)

    async def stop(self) -> None:
        """End the work in flight; the rules stay as they are."""
        self._stop_extending()
        await self._tasks.stop()

    def _openings(self) -> list[AnyOpening]:
        """What is open at this moment."""
        openings: dict[str, AnyOpening] = {each.name: self._pinhole_opening(each) for each in self._pinholes}
        if self._router.wan_address is not None:
            shown = ((mapping, mapping.grant) for mapping in self._mappings if mapping.visible)
            openings |= {mapping.id: self._opening(mapping, grant) for mapping, grant in shown if grant}
            openings |= self._underway
        return list(openings.values())

    def failed(self, error: RulesetError) -> None:
        """The kernel is not as it should be: it is put right soon."""
        self._failures += 1
        # each request of a LAN host may fail for a reason that names another mapping
        if self.problem != str(error) and self._lines.take("failed") is not None:
            LOG.error(line("ruleset_failed", error=error, tried_again_in=f"{RESYNC_SECONDS:g}s"))
        self.problem = str(error)
        if not self._repairing:
            self._repairing = True
            self._tasks.start(self._sync_later())

    async def _sync_later(self) -> None:
        await asyncio.sleep(RESYNC_SECONDS)
        self._repairing = False
        if self.problem:
            await self.sync()

    def _opening(self, mapping: Mapping, grant: Grant) -> Opening:
        address = self._router.wan_address
        if address is None:
            raise RulesetError("the WAN has no IPv4 address")
        request = mapping.request
        shown = shown_port(request, grant)
        checked_there = self._carrier_filters and grant.upstream != Mode.LOCAL
        return Opening(
            id=mapping.id,
            serial=mapping.serial,
            mode=mapping.mode,
            protocol=request.protocol,
            wan_device=self._router.wan_device,
            wan_address=address,
            wan_port=mapping.wan_port,
            client=request.client,
            external=grant.external,
            remote_hosts=() if checked_there else mapping.remote_hosts,
            ends=self._end_of(grant.ends),
            shown_port=0 if shown == grant.external.port else shown,
            hairpins=not mapping.remote_hosts,
        )

    def _end_of(self, ends: float) -> float:
        """What is just over is laid all the same: that it ends is for others to say, who remove it or renew it."""
        return max(ends, self._loop.time() + LEAST_SECONDS)

    def _pinhole_opening(self, pinhole: Pinhole) -> PinholeOpening:
        request = pinhole.request
        return PinholeOpening(
            id=pinhole.name,
            serial=pinhole.id,
            protocol=request.protocol,
            client=request.client,
            client_port=request.client_port,
            remote_host=request.remote_host,
            remote_port=request.remote_port,
            ends=self._end_of(pinhole.lease_ends),
        )
