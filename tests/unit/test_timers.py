# SPDX-License-Identifier: Apache-2.0
"""One time for each thing that ends, whatever becomes of the others."""

from __future__ import annotations

import asyncio

from igdpcp.iwf.background import Timers
from tests.support.virtual_time import START, VirtualTimeLoop, virtual


def ringing() -> tuple[Timers[str], list[tuple[str, float]]]:
    """Timers, and what they called back with and when."""
    told = list[tuple[str, float]]()
    now = asyncio.get_running_loop().time
    return Timers[str](lambda id: told.append((id, now() - START))), told


def left_on_the_loop() -> list[asyncio.TimerHandle]:
    """What keeps the timers, and whatever they call, in memory."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [handle for handle in scheduled if not handle.cancelled()]


@virtual
async def test_each_fires_at_its_own_time_whichever_was_set_first() -> None:
    timers, told = ringing()
    for id, after in (("late", 30), ("early", 10), ("middle", 20)):
        timers.set(id, START + after)
    await asyncio.sleep(60)
    assert told == [("early", 10), ("middle", 20), ("late", 30)]


@virtual
async def test_only_the_last_time_that_was_set_counts() -> None:
    timers, told = ringing()
    timers.set("put off", START + 10)
    timers.set("put off", START + 30)
    timers.set("brought forward", START + 40)
    timers.set("brought forward", START + 20)
    timers.set("there and back", START + 15)
    timers.set("there and back", START + 50)
    timers.set("there and back", START + 15)
    await asyncio.sleep(60)
    assert told == [("there and back", 15), ("brought forward", 20), ("put off", 30)]


@virtual
async def test_what_is_stopped_stays_silent_and_can_be_set_again() -> None:
    timers, told = ringing()
    timers.set("stopped", START + 10)
    timers.set("again", START + 10)
    timers.stop("stopped")
    timers.stop("again")
    timers.stop("never set")
    timers.set("again", START + 20)
    await asyncio.sleep(60)
    assert told == [("again", 20)]


@virtual
async def test_who_is_called_back_is_what_was_set_last() -> None:
    timers, told = ringing()
    others = list[str]()
    timers.set("other", START + 10)
    timers.set("other", START + 20, others.append)
    timers.set("as usual", START + 10, others.append)
    timers.set("as usual", START + 20)
    timers.set("stopped", START + 10, others.append)
    timers.stop("stopped")
    timers.set("stopped", START + 20)
    timers.set("again", START + 10, others.append)
    await asyncio.sleep(15)
    timers.set("again", START + 20)
    await asyncio.sleep(60)
    assert told == [("again", 20), ("as usual", 20), ("stopped", 20)]
    assert others == ["again", "other"]


@virtual
async def test_a_callback_may_set_and_stop_what_is_due_at_the_same_time() -> None:
    timers, told = ringing()

    def first(id: str) -> None:
        told.append((id, 10))
        timers.stop("b")
        timers.set("c", START + 20)

    timers.set("a", START + 10, first)
    timers.set("b", START + 10)
    timers.set("c", START + 10)
    await asyncio.sleep(60)
    assert told == [("a", 10), ("c", 20)]


@virtual
async def test_one_that_fails_does_not_keep_the_others_from_their_turn() -> None:
    timers, told = ringing()

    def fail(_: str) -> None:
        raise LookupError("a mistake")

    timers.set("a", START + 10, fail)
    timers.set("b", START + 10)
    timers.set("c", START + 20)
    await asyncio.sleep(60)
    assert told == [("b", 10), ("c", 20)]
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    [trouble] = loop.troubles
    assert isinstance(trouble["exception"], LookupError)
    loop.troubles.clear()


@virtual
async def test_what_was_put_off_a_thousand_times_is_held_once() -> None:
    timers, told = ringing()
    for number in range(1000):
        timers.set("refreshed", START + 100 + number)
    timers.set("other", START + 50)
    assert len(timers._heap) < 300
    await asyncio.sleep(2000)
    assert told == [("other", 50), ("refreshed", 1099)]


class Compared(float):
    """A time that counts its comparisons."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return float(self) == other

    __hash__ = float.__hash__


@virtual
async def test_one_of_thousands_costs_little_more_than_one_of_a_few() -> None:
    timers, _ = ringing()
    many = range(2000)
    for again in range(3):
        Compared.times = 0
        for number in many:
            timers.set(str(number), Compared(START + 5000 * again + number))
        assert Compared.times < 20 * len(many)


@virtual
async def test_what_is_due_much_later_fires_in_time_and_is_not_kept_in_order_until_then() -> None:
    timers, told = ringing()
    times = {f"{number}": 40 + 37.5 * (number * 7919 % 1000) for number in range(1000)}
    for id, after in times.items():
        timers.set(id, START + after)
    timers.stop("7")
    timers.set("8", START + 20000.25)
    await asyncio.sleep(30)
    assert len(timers._heap) < 30
    timers.set("soon", START + 50)
    del times["7"]
    await asyncio.sleep(40000)
    assert told == sorted([*(times | {"8": 20000.25, "soon": 50}).items()], key=lambda each: each[1])


@virtual
async def test_an_hour_without_timers_puts_nothing_off() -> None:
    timers, told = ringing()
    timers.set("first", START + 10)
    await asyncio.sleep(3600)
    timers.set("past", START + 20)
    await asyncio.sleep(1)
    timers.set("second", START + 3700)
    await asyncio.sleep(3600)
    assert told == [("first", 10), ("past", 3600), ("second", 3700)]


@virtual
async def test_nothing_fires_after_all_were_stopped() -> None:
    timers, told = ringing()
    timers.set("a", START + 10)
    timers.stop_all()
    assert left_on_the_loop() == []
    for after in (5, 20):
        timers.set("late", START + after)
    await asyncio.sleep(60)
    assert told == []


@virtual
async def test_a_callback_that_stops_all_leaves_no_timer_behind() -> None:
    timers, told = ringing()
    timers.set("last", START + 10, lambda _: timers.stop_all())
    timers.set("never, at the same time", START + 10)
    timers.set("never", START + 20)
    await asyncio.sleep(15)
    assert left_on_the_loop() == []
    assert told == []
