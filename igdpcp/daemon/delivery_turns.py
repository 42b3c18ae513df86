# SPDX-License-Identifier: Apache-2.0
"""Whose event is delivered next: hosts take turns, and those that take their time cannot hold every connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

from igdpcp.values import dataclass

DELIVERIES_AT_ONCE = 16  # connections to subscribers
DELIVERIES_PER_HOST = 2  # of them to one host: who never answers holds up nobody else
UNPROVEN_AT_ONCE = 8  # of them to hosts whose last event was not taken quickly, or that were sent none yet
QUICK = 3.0  # seconds


@dataclass(frozen=True, slots=True)
class Delivery:
    """One that was begun."""

    host: Hashable
    began: float
    is_unproven: bool


class DeliveryTurns:
    """Counts the deliveries, and remembers of each host when it had its turn and whether it was quick."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: Counter[Hashable] = Counter()  # deliveries
        self._unproven = 0  # deliveries
        self._turns: dict[Hashable, int] = {}  # a number that grows with every delivery
        self._quick: set[Hashable] = set()
        self._last_turn = 0

    def may_begin(self, host: Hashable) -> bool:
        """Whether the ceilings allow another delivery to this host now."""
        return (
            self._open.total() < DELIVERIES_AT_ONCE
            and self._open[host] < DELIVERIES_PER_HOST
            and (host in self._quick or self._unproven < UNPROVEN_AT_ONCE)
        )

    def last_turn(self, host: Hashable) -> int:
        """The host with the least number has waited longest for its turn."""
        return self._turns.get(host, 0)

    def begin(self, host: Hashable) -> Delivery:
        """Count a delivery, which has to be handed to ``end`` afterwards."""
        self._last_turn += 1
        self._turns[host] = self._last_turn
        self._open[host] += 1
        delivery = Delivery(host, self._clock(), host not in self._quick)
        self._unproven += delivery.is_unproven
        return delivery

    def end(self, delivery: Delivery, *, taken: bool) -> None:
        """The delivery is over; whether the event was taken."""
        host = delivery.host
        self._unproven -= delivery.is_unproven
        self._open[host] -= 1
        if not self._open[host]:
            del self._open[host]
        if not taken or self._clock() - delivery.began > QUICK:
            self._quick.discard(host)
        elif host in self._turns:
            self._quick.add(host)

    def forget(self, host: Hashable) -> None:
        """The host has no subscription any more."""
        self._turns.pop(host, None)
        self._quick.discard(host)
