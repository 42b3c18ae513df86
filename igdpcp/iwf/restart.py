# SPDX-License-Identifier: Apache-2.0
"""What happens at the ends of the process: adopting what an earlier one left, and giving everything back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

from igdpcp.errors import Refusal
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.lifecycle import Lifecycle
from igdpcp.iwf.mapping_log import MappingLog
from igdpcp.iwf.pinholes import Pinholes
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.static_mappings import StaticMappings
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.log import line
from igdpcp.model import Mapping, MappingState, Mode

LOG = logging.getLogger("igdpcp.iwf")
RELEASE_SECONDS = 10.0  # what release() waits for the upstream's last answers, beside their turns
RELEASE_RATE = 25  # deletions per second that the upstream is told


class Restart:
    """Neither is a second path: mappings re-enter where every request enters, and end as every mapping ends."""

    def __init__(
        self,
        *,
        table: MappingTable,
        upstream: Fallback,
        router_leg: RouterLeg,
        upstream_leg: UpstreamLeg,
        journal: Journal,
        lifecycle: Lifecycle,
        pinholes: Pinholes,
        static: StaticMappings,
    ) -> None:
        self._table = table
        self._upstream = upstream
        self._router_leg = router_leg
        self._upstream_leg = upstream_leg
        self._journal = journal
        self._lifecycle = lifecycle
        self._pinholes = pinholes
        self._static = static
        self._log = MappingLog()
        self._now = asyncio.get_running_loop().time

    async def restore(self, *, hold_static: bool = True) -> None:
        """Open mappings keep their rules and are asked for again; what was on its way is given back.

        ``hold_static``: the static mappings of the configuration are held open from now on.
        """
        found, left = self._journal.load(), list[Mapping]()
        if found.update_id is not None:
            self._table.resume(found.update_id)
        self._pinholes.restore(found.pinholes)
        for mapping in found.mappings:
            self._table.reserve(mapping.serial)
            running = mapping.keeping(lambda entry: entry.lease_ends is None or entry.lease_ends > self._now())
            if running is None or not self._adoptable(mapping):
                left.append(mapping)
                continue
            try:
                self._lifecycle.adopt(replace(running, mode=self._upstream.mode))
            except Refusal as refusal:
                self._log.warn("not_adopted", mapping, reason=refusal)
                left.append(mapping)
        if hold_static:
            self._static.start()
            await asyncio.sleep(0)  # they have their ports before what is left there is given back
        for mapping in left:
            self._return_to_upstream(mapping)
        self._lifecycle.departures.lans_changed()
        self._pinholes.lans_changed()
        await self._router_leg.sync()
        LOG.info(line("restored", mappings=len(self._table), given_back=len(self._upstream_leg.leaving)))

    async def release(self) -> None:
        """Close everything: entries and rules at once, then tell the upstream; what stays untold stays journalled."""
        self._lifecycle.open_no_more()
        await self._static.stop()
        self._pinholes.close_all()
        for mapping in self._table:
            self._lifecycle.give_up(mapping)
        await self._router_leg.clear()
        patience = RELEASE_SECONDS + len(self._upstream_leg.leaving) / RELEASE_RATE
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._upstream_leg.all_released(), patience)
        LOG.info(line("released", unanswered=len(self._upstream_leg.leaving)))

    def _adoptable(self, mapping: Mapping) -> bool:
        """Once granted, and built the way mappings are built now."""
        if (mapping.mode is Mode.ROUTED) is not (self._upstream.mode is Mode.ROUTED):
            return False
        return mapping.state in (MappingState.ACTIVE, MappingState.RETRYING)

    def _return_to_upstream(self, mapping: Mapping) -> None:
        if self._table.holds_internal(mapping):
            self._journal.gone(mapping.id)  # the same request came again and was granted: the tuple is in use
        else:
            self._upstream_leg.give_back_left(mapping)
