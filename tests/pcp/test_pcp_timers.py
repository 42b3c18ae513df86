# SPDX-License-Identifier: Apache-2.0
"""Thousands of mappings have a timer each, of which only the next few are looked at."""

from __future__ import annotations

import random
from dataclasses import dataclass

from igdpcp.pcp.pacing import Timers

ITEMS, STEPS = 600, 3000


@dataclass(eq=False)
class Item:
    number: int
    timer: float | None = None

    def __lt__(self, other: Item) -> bool:
        return self.number < other.number


def test_whatever_is_set_moved_and_stopped_the_first_timer_is_the_next_one() -> None:
    chance, now = random.Random(6887), 0.0
    items = [Item(number) for number in range(ITEMS)]
    timers = Timers(items)
    for _ in range(STEPS):
        item = chance.choice(items)
        timers.set(item, chance.choice([None, now, now + 3, now + chance.uniform(0, 86400)]))
        first = min((each.timer for each in items if each.timer is not None), default=None)
        assert timers.next() == first
        if first is not None and chance.random() < 0.2:
            now = first
            due = {each for each in items if each.timer == now}
            assert {timers.pop(now) for _ in due} == due
            assert {each.timer for each in due} == {None}
    assert len(timers._heap) < ITEMS / 2


def test_nothing_fires_that_is_not_due() -> None:
    item = Item(1)
    timers = Timers([item])
    assert (timers.next(), timers.pop(5.0)) == (None, None)
    timers.set(item, 10.0)
    assert (timers.pop(9.0), timers.pop(10.0), timers.pop(10.0)) == (None, item, None)


def test_a_timer_that_is_moved_very_often_is_held_once() -> None:
    items = [Item(1), Item(2)]
    timers = Timers(items)
    timers.set(items[1], 1.0)
    for step in range(5000):
        assert timers.next() == 1.0
        timers.set(items[0], 2.0 + step / 1000)
    assert len(timers._heap) < 300
