# SPDX-License-Identifier: Apache-2.0
"""What goes on while nobody waits for it: a time for each thing that ends, and work in tasks."""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from igdpcp.errors import Refusal, RulesetError
from igdpcp.log import line

LOG = logging.getLogger("igdpcp.iwf")
K = TypeVar("K", int, str)
_COMPACT_ABOVE = 256  # heap entries; below, stale ones cost nothing
_AHEAD = 600.0  # seconds that are looked ahead


class Timers(Generic[K]):
    """At most one timer for each id; the loop has one for all of them, since its own cost 400 octets each.

    ``usual``: what calls back where a timer has nothing else to call; thousands have not, and need not remember it.
    Only what is due before the horizon is kept in order: thousands of grants end in hours, and most are renewed before.
    """

    def __init__(self, usual: Callable[[K], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._usual: Callable[[K], None] = usual
        self._due: dict[K, float] = {}
        self._unusual: dict[K, Callable[[K], None]] = {}
        self._horizon = -math.inf
        self._heap: list[tuple[float, K]] = []  # what is not in ``_due`` as well is stale
        self._limit = _COMPACT_ABOVE
        self._handle: asyncio.TimerHandle | None = None
        self._ended = False

    def set(self, id: K, at: float, callback: Callable[[K], None] | None = None) -> None:
        """Call back with the id at this loop time, and not when it was set to before."""
        if self._ended:  # whoever was still waiting then is told only now
            return
        self._due[id] = at
        if callback:
            self._unusual[id] = callback
        else:
            self._unusual.pop(id, None)
        if at < self._horizon:
            heapq.heappush(self._heap, (at, id))
            if len(self._heap) > self._limit:
                self._sort()
        self._wake()

    def stop(self, id: K) -> None:
        self._due.pop(id, None)
        self._unusual.pop(id, None)

    def stop_all(self) -> None:
        """From now on nothing is called back, also what is set later."""
        self._ended = True
        self._heap.clear()
        if self._handle:
            self._handle.cancel()

    def _sort(self) -> None:
        self._heap = sorted((at, id) for id, at in self._due.items() if at < self._horizon)
        self._limit = max(_COMPACT_ABOVE, 4 * len(self._heap))

    def _wake(self) -> None:
        """At the first timer, or to look ahead: at once where nobody has looked as far as now."""
        at = self._heap[0][0] if self._heap else max(self._horizon, self._loop.time())
        if self._handle and self._handle.when() <= at:
            return
        if self._handle:
            self._handle.cancel()
        self._handle = self._loop.call_at(at, self._fire, at)

    def _fire(self, now: float) -> None:
        """Call back for what is due; should a callback raise, the others have their turn at once."""
        self._handle = None
        if now >= self._horizon:
            self._horizon = now + _AHEAD
            self._sort()
        try:
            while self._heap and self._heap[0][0] <= now:
                at, id = heapq.heappop(self._heap)
                if self._due.get(id) == at:
                    del self._due[id]
                    self._unusual.pop(id, self._usual)(id)
        finally:
            if self._due and not self._ended:
                self._wake()


class Tasks:
    """Work that goes on to its end; what it raises is logged, but for what was told where it was raised."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if self._stopped:  # whoever was still waiting then is told only now
            task.cancel()
        return task

    def cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        """Cancel what goes on, and wait until it has ended; what is started later does not begin."""
        self._stopped = True
        tasks = list(self._tasks)
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, Refusal | RulesetError):
            LOG.error(line("task_failed", error=repr(error)), exc_info=error)
