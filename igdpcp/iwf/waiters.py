# SPDX-License-Identifier: Apache-2.0
"""Control points that wait for the outcome of a mapping: several may wait for one, and all are told the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from igdpcp.errors import Refusal
from igdpcp.model import Mapping


class Waiters:
    """``id in waiters``: somebody waits for that mapping."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outcomes: dict[str, asyncio.Future[Mapping]] = {}
        self._counts: Counter[str] = Counter()

    def __contains__(self, id: str) -> bool:
        return id in self._counts

    @contextmanager
    def waiting(self, id: str) -> Iterator[asyncio.Future[Mapping]]:
        """Wait for this mapping; gives what its outcome will be set on. The last one to leave it unset forgets it."""
        outcome = self._outcomes.setdefault(id, self._loop.create_future())
        self._counts[id] += 1
        try:
            yield outcome
        finally:
            self._counts[id] -= 1
            if not self._counts[id]:
                del self._counts[id]
                if not outcome.done():
                    self._outcomes.pop(id, None)

    def tell(self, mapping: Mapping) -> None:
        """It is open."""
        outcome = self._outcomes.pop(mapping.id, None)
        if outcome and not outcome.done():
            outcome.set_result(mapping)

    def refuse(self, id: str, refusal: Refusal) -> None:
        """It will not be opened."""
        outcome = self._outcomes.pop(id, None)
        if outcome and not outcome.done():
            outcome.set_exception(refusal)
            outcome.exception()  # retrieved here: there may be no waiter left

    def refuse_all(self, refusal: Refusal) -> None:
        """None of them will be opened."""
        for id in list(self._outcomes):
            self.refuse(id, refusal)
