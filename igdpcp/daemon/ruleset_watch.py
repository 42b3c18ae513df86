# SPDX-License-Identifier: Apache-2.0
"""Looking at the router's rules: when somebody else has changed them, and now and then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from igdpcp.daemon import heap
from igdpcp.daemon.ports_in_use import PortsInUse
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.log import line
from igdpcp.net.ruleset_news import RulesetNews
from igdpcp.netfilter.base import Backend
from igdpcp.netfilter.detect import fw4_has_come

LOG = logging.getLogger("igdpcp.daemon")
AUDIT_SECONDS = 30.0  # between looks when nobody is known to have changed anything


class RulesetWatch:
    """``moves`` is called when our rules have to be in a firewall that was not there when ``backend`` was chosen."""

    def __init__(
        self,
        news: RulesetNews,
        router_leg: RouterLeg,
        ports: PortsInUse,
        backend: Backend,
        nft_table: str,
        moves: Callable[[], None],
    ) -> None:
        self._news = news
        self._router_leg = router_leg
        self._ports = ports
        self._backend = backend
        self._nft_table = nft_table
        self._moves = moves

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            changed_by = await self._news.wait(AUDIT_SECONDS)
            try:
                await self._look(changed_by)
            except Exception:  # this may not end: nothing would be noticed any more
                LOG.exception(line("ruleset_look_failed"))

    async def _look(self, changed_by: str | None) -> None:
        """All who depend on rules that others change look at them; ``changed_by``: a program that did, if one did."""
        if await asyncio.to_thread(fw4_has_come, self._backend, self._nft_table):
            LOG.warning(line("firewall_has_come", changed_by=changed_by, remedy="laid anew in its table"))
            self._moves()
            return
        await self._router_leg.audit(changed_by)
        await self._ports.look()
        await asyncio.to_thread(heap.give_back)
