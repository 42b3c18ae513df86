# SPDX-License-Identifier: Apache-2.0
"""Control points that wait for the outcome of a mapping: several may wait for one, and all are told the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from igdpcp.errors import Refusal
from igdpcp.model import Mapping


class Waiters:
    """``id in waiters``: somebody waits for that mapping."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outcomes: dict[str, asyncio.Future[Mapping]] = {}
        self._counts: Counter[str] = Counter()
        self._until: dict[str, float] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._counts

    async def outcome(self, id: str, patience: Sequence[float], go_on: Callable[[str], bool]) -> Mapping | None:
        """The mapping when it is open; raises Refusal when it will not be. None: neither, in all this time.

        ``patience`` are seconds, of which each after the first is waited only where ``go_on`` says so.
        """
        with self._waiting(id) as outcome:
            self._until[id] = self._loop.time() + patience[0]
            for seconds in patience:
                done, _ = await asyncio.wait([outcome], timeout=seconds)
                if done:
                    return outcome.result()
                if not go_on(id):
                    break
        return None

    async def beside(self, id: str) -> None:
        """Wait while others wait for that mapping, without being one of them: till they know, or none is left."""
        if id in self:
            await asyncio.wait([self._outcomes.setdefault(id, self._loop.create_future())])

    def patient_until(self, id: str) -> float | None:
        """When the one that came last has waited its first turn; None: nobody waits."""
        return self._until.get(id)

    @contextmanager
    def _waiting(self, id: str) -> Iterator[asyncio.Future[Mapping]]:
        """What the outcome will be set on. The last one to leave it unset forgets it."""
        outcome = self._outcomes.setdefault(id, self._loop.create_future())
        self._counts[id] += 1
        try:
            yield outcome
        finally:
            self._counts[id] -= 1
            if not self._counts[id]:
                del self._counts[id]
                self._until.pop(id, None)
                if unset := self._outcomes.pop(id, None):
                    unset.cancel()

    def tell(self, mapping: Mapping, id: str = "") -> None:
        """It is open; ``id``: what it was waited for by, where that is not its own."""
        outcome = self._outcomes.pop(id or mapping.id, None)
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
