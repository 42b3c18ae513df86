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
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.log import line
from igdpcp.model import Mapping, MappingState, Mode

LOG = logging.getLogger("igdpcp.iwf")
PACE = 25  # requests per second to the upstream when many mappings are told of at once
RELEASE_SECONDS = 10.0  # what release() waits for the upstream's last answers


class Restart:
    """Both are paced, and neither is a second path: mappings re-enter where every request enters."""

    def __init__(
        self,
        *,
        table: MappingTable,
        upstream: Fallback,
        router_leg: RouterLeg,
        upstream_leg: UpstreamLeg,
        journal: Journal,
        lifecycle: Lifecycle,
    ) -> None:
        self._table = table
        self._upstream = upstream
        self._router_leg = router_leg
        self._upstream_leg = upstream_leg
        self._journal = journal
        self._lifecycle = lifecycle
        self._loop = asyncio.get_running_loop()
        self._reentry: asyncio.Task[None] | None = None

    async def restore(self) -> None:
        """Open mappings keep their rules and are asked for again; what was on its way is given back."""
        adopted: list[str] = []
        left: list[Mapping] = []
        for mapping in self._journal.load():
            self._table.reserve(mapping.serial)
            if not self._adoptable(mapping):
                left.append(mapping)
                continue
            try:
                self._lifecycle.adopt(replace(mapping, mode=self._upstream.mode))
                adopted.append(mapping.id)
            except Refusal as refusal:
                LOG.warning(line("not_adopted", mapping=mapping.id, reason=refusal))
                left.append(mapping)
        for mapping in left:
            self._return_to_upstream(mapping)
        await self._router_leg.sync()
        LOG.info(line("restored", mappings=len(adopted), given_back=len(self._upstream_leg.leaving)))
        self._reentry = self._loop.create_task(self._ask_again(adopted))

    async def release(self) -> None:
        """Close everything: rules at once, then tell the upstream; what it does not answer stays journalled."""
        await self.stop()
        await self._router_leg.clear()
        for mapping in self._table:
            self._lifecycle.give_up(mapping)
            await asyncio.sleep(1 / PACE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._upstream_leg.all_released(), RELEASE_SECONDS)
        LOG.info(line("released", unanswered=len(self._upstream_leg.leaving)))

    async def stop(self) -> None:
        if self._reentry:
            self._reentry.cancel()
            await asyncio.gather(self._reentry, return_exceptions=True)

    async def _ask_again(self, ids: list[str]) -> None:
        for id in ids:
            self._lifecycle.ask_again(id)
            await asyncio.sleep(1 / PACE)

    def _adoptable(self, mapping: Mapping) -> bool:
        """Once granted, with the lease still running, and built the way mappings are built now."""
        if (mapping.mode is Mode.ROUTED) is not (self._upstream.mode is Mode.ROUTED):
            return False
        if mapping.grant is None or mapping.state not in (MappingState.ACTIVE, MappingState.RETRYING):
            return False
        return mapping.lease_ends is None or mapping.lease_ends > self._loop.time()

    def _return_to_upstream(self, mapping: Mapping) -> None:
        if self._table.holds_internal(mapping):
            self._journal.gone(mapping.id)
            return  # the same request came again and was granted: what it would delete is in use
        self._upstream_leg.adopted(mapping)
        self._upstream_leg.give_back_unseen(mapping)
