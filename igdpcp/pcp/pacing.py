# SPDX-License-Identifier: Apache-2.0
"""When which packet leaves: one timer per item, and the pace of all packets together."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

PACKET_RATE = 25.0  # packets per second to one server that nobody waits for: recovery, giving back

WAKE_SPACING = 0.1  # seconds between two wake-ups for renewals
_COMPACT_ABOVE = 256  # heap entries; below, stale ones cost nothing
_AHEAD = 60.0  # seconds between the first timer and the horizon


class Timed(Protocol):
    """What has a timer; the field is kept by this module."""

    timer: float | None

    def __lt__(self, other: Any, /) -> bool:
        """Which of two is first when their timers fire at the same time."""


class Queued(Protocol):
    """What has a place in the queue; the field is kept by this module."""

    queued: bool


T = TypeVar("T", bound=Timed)
Q = TypeVar("Q", bound=Queued)


class Timers(Generic[T]):
    """At most one timer per item; moving and stopping one is cheap.

    Only what is due before the horizon, soon after the first, is kept in order; what has time costs nothing here.
    """

    def __init__(self, items: Iterable[T]) -> None:
        """``items``, each time it is gone through: all that have a timer, and perhaps others."""
        self._items = items
        self._heap: list[tuple[float, T]] = []
        self._horizon = -math.inf
        self._limit = _COMPACT_ABOVE

    def set(self, item: T, at: float | None) -> None:
        """Fire at ``at`` and only then; None: not at all."""
        if item.timer == at:
            return
        item.timer = at
        if at is not None and at < self._horizon:
            heapq.heappush(self._heap, (at, item))
            if len(self._heap) > self._limit:
                self._sort()

    def next(self) -> float | None:
        """When the first timer fires."""
        self._skip_stale()
        if not self._heap:
            self._look_ahead()
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> T | None:
        """An item whose timer has fired, None if there is none (left)."""
        at = self.next()
        if at is None or at > now:
            return None
        item = heapq.heappop(self._heap)[1]
        item.timer = None
        return item

    def _skip_stale(self) -> None:
        while self._heap and self._heap[0][1].timer != self._heap[0][0]:
            heapq.heappop(self._heap)

    def _look_ahead(self) -> None:
        """Nothing is due before the horizon."""
        first = min((item.timer for item in self._items if item.timer is not None), default=None)
        if first is not None:
            self._horizon = first + _AHEAD
            self._sort()

    def _sort(self) -> None:
        timers = ((item.timer, item) for item in self._items)
        self._heap = sorted((at, item) for at, item in timers if at is not None and at < self._horizon)
        self._limit = max(_COMPACT_ABOVE, 2 * len(self._heap))


class Pacer(Generic[Q]):
    """Three queues: what somebody waits for leaves at once; renewals at their own rate; the rest at the packet rate.

    ``renewal_rate``, in packets per second, is at least the packet rate: what is late for its renewal is lost, and a
    server that grants short lifetimes to many mappings has asked for the packets.
    """

    def __init__(self) -> None:
        self._urgent: deque[Q] = deque()
        self._renewals: deque[Q] = deque()
        self._spread: deque[Q] = deque()
        self._taken_from = self._spread
        self._next_renewal = 0.0
        self._next_spread = 0.0
        self._last = float("-inf")
        self.renewal_rate = PACKET_RATE

    def push(self, item: Q, *, urgent: bool) -> None:
        """Let the item send when its turn comes; clearing ``queued`` takes it out again."""
        if item.queued and not urgent:
            return
        item.queued = True
        (self._urgent if urgent else self._spread).append(item)

    def push_renewal(self, item: Q) -> None:
        """The same for an item that renews what it has."""
        if not item.queued:
            item.queued = True
            self._renewals.append(item)

    def next_time(self, gap: float) -> float | None:
        """When to call ``take`` next; ``gap`` is the least time between two packets.

        Renewals are taken several at a time: they go on all the time, and waking up costs more than sending.
        """
        turn = self._turn()
        if turn is None:
            return None
        at, queue = turn
        return max(math.ceil(at / WAKE_SPACING) * WAKE_SPACING if queue is self._renewals else at, self._last + gap)

    def take(self, now: float, gap: float) -> Q | None:
        """The item that may send now."""
        turn = self._turn()
        if turn is None or max(turn[0], self._last + gap) > now:
            return None
        self._taken_from = turn[1]
        item = self._taken_from.popleft()
        item.queued = False
        return item

    def sent(self, now: float) -> None:
        """A packet left, of the item that was taken last; urgent ones do not hold up the others."""
        if self._taken_from is self._spread:
            self._next_spread = max(self._next_spread, now) + 1 / PACKET_RATE
        elif self._taken_from is self._renewals:
            self._next_renewal = max(self._next_renewal, now - WAKE_SPACING) + 1 / self.renewal_rate
        self._last = now

    def _turn(self) -> tuple[float, deque[Q]] | None:
        """Which queue has its turn, and when."""
        self._skip_cancelled()
        if self._urgent:
            return float("-inf"), self._urgent
        turns = [(self._next_renewal, self._renewals), (self._next_spread, self._spread)]
        return min(((at, queue) for at, queue in turns if queue), default=None, key=lambda turn: turn[0])

    def _skip_cancelled(self) -> None:
        for queue in (self._urgent, self._renewals, self._spread):
            while queue and not queue[0].queued:
                queue.popleft()
