# SPDX-License-Identifier: Apache-2.0
"""Refusals that may be over soon: the same request once more, while its control point can still be told the outcome.

RFC 6970 sections 5.6.1 and 5.6.2 let it be sent again after half a minute, for programs that wait that long.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from igdpcp.config import MainConfig
from igdpcp.iwf import translate
from igdpcp.iwf.background import Timers
from igdpcp.iwf.interfaces import Refused
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.iwf.waiters import Waiters
from igdpcp.model import Mapping, MappingState

ANSWER_SECONDS = 1.0  # what has to be left of the deadline for the upstream's answer


class Resends:
    """For planned mappings for which somebody waits."""

    def __init__(self, main: MainConfig, table: MappingTable, waiters: Waiters, upstream_leg: UpstreamLeg) -> None:
        self._main = main
        self._table = table
        self._waiters = waiters
        self._upstream_leg = upstream_leg
        self._now = asyncio.get_running_loop().time
        self._timers: Timers[str] = Timers(self._send)
        self._sent: Counter[str] = Counter()

    def plan(self, mapping: Mapping, refused: Refused) -> bool:
        """Whether this refusal need not be told yet, because the upstream is asked once more.

        Until then it is not wanted there: what is wanted is asked for again at the upstream's own times.
        """
        self._sent = Counter({id: count for id, count in self._sent.items() if id in self._waiters})
        id, main, until = mapping.id, self._main, self._waiters.patient_until(mapping.id)
        at = self._now() + max(main.short_error_wait, refused.lifetime)
        passes = translate.may_pass_soon(refused.result, refused.lifetime, main.short_error_wait)
        if not passes or until is None or at + ANSWER_SECONDS > until or self._sent[id] >= main.short_error_resends:
            return False
        self._sent[id] += 1
        self._upstream_leg.give_back(mapping, urgent=False)
        self._timers.set(id, at)
        return True

    def stop(self) -> None:
        """Send no more."""
        self._timers.stop_all()

    def _send(self, id: str) -> None:
        mapping = self._table.get(id)
        if mapping and mapping.state is MappingState.PLANNED:
            self._upstream_leg.ask(mapping)
