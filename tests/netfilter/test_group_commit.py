# SPDX-License-Identifier: Apache-2.0
"""How waiting changes are brought together, with a kernel of a few lines that can refuse."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest

from igdpcp.errors import OurFault, RulesetBusy, RulesetError
from igdpcp.model import Endpoint, Protocol
from igdpcp.netfilter import base
from igdpcp.netfilter.base import PROMPT_CHANGES, PROMPT_SECONDS, GroupCommit
from igdpcp.netfilter.desired import Change, Fact, Key, Pass, Pinhole, Redirect
from igdpcp.openings import Discrepancy, Opening, Surroundings
from tests.netfilter.topology import A, opening, pinhole

BAD_PORT = 666


class Kernel:
    """Holds facts; refuses a redirect of BAD_PORT, and everything while it is down. ``gate`` holds a commit up.

    ``threads``: those that applied something.
    """

    name = "fake"
    in_fw4 = False
    takes = 0.0  # seconds, to apply something
    locked = False  # by somebody else
    waits = 0  # for that lock
    stops_half_way = False  # once

    def __init__(self, prompt_up_to: float = -1) -> None:
        self.prompt_up_to = prompt_up_to
        self.broken = False
        self.threads: set[int] = set()
        self.facts: dict[Key, Fact] = {}
        self.commits: list[int] = []
        self.rewrites = 0
        self.asked = 0
        self.now = time.monotonic()
        self.down = False
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()

    def open(self) -> None:
        if self.down:
            raise OurFault("library is missing")

    def surroundings(self, surroundings: Surroundings) -> None:
        self.commits.append(0)

    def apply(self, changes: list[Change], now: float, *, wait: bool = True) -> None:
        if not wait and self.locked:
            self.locked = False  # when it has been waited for
            raise RulesetBusy("somebody has the lock")
        self.busy.set()
        assert self.gate.wait(10)
        self.threads.add(threading.get_ident())
        self.now += self.takes
        if self.broken:
            raise LookupError("a mistake")
        self._lock()
        ports = [change.key.wan_port for change in changes if isinstance(change.key, Redirect)]
        self._check(ports)
        for change in changes:
            if (change.key in self.facts) != (change.before is not None):
                raise RulesetError("not what was expected")
        self.commits.append(len(ports))
        for change in changes:
            self.facts.pop(change.key, None)
            if change.after:
                self.facts[change.key] = change.after
            if self.stops_half_way:
                self.stops_half_way = False
                raise RulesetError("no memory")

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        self._lock()
        self._check([key.wan_port for key in facts if isinstance(key, Redirect)])
        self.rewrites += 1
        self.facts = dict(facts)

    def release(self) -> None:
        self.facts = {}

    def close(self, keep_rules: bool) -> None:
        pass

    def intact(self, sample: Mapping[Key, Fact]) -> bool:
        return not self.down and all(self.facts.get(key) == fact for key, fact in sample.items())

    def audit(self, facts: Mapping[Key, Fact], now: float) -> Discrepancy:
        self._check([])
        return Discrepancy(len(facts.keys() - self.facts.keys()), len(self.facts.keys() - facts.keys()))

    def foreign_drop(self) -> str | None:
        self.asked += 1
        return f"answer {self.asked}"

    def packets(self, key: Pinhole) -> int:
        return 7 if key in self.facts else 0

    def _lock(self) -> None:
        if self.locked:
            self.waits += 1
            raise RulesetBusy("somebody has the lock")

    def _check(self, ports: list[int]) -> None:
        if self.down:
            raise RulesetError("no kernel")
        if BAD_PORT in ports:
            raise RulesetError("bad port")

    @property
    def ports(self) -> set[int]:
        return {key.wan_port for key in self.facts if isinstance(key, Redirect)}


def run(kernel: Kernel, work: Callable[[GroupCommit], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        ruleset = GroupCommit(kernel, clock=lambda: kernel.now)
        await ruleset.start()
        await asyncio.wait_for(work(ruleset), 10)
        kernel.down = False
        await ruleset.close()

    asyncio.run(all_of_it())


def numbered(port: int) -> Opening:
    return opening(f"m{port}", serial=port, wan_port=port)


async def while_busy(ruleset: GroupCommit, kernel: Kernel, *later: Coroutine[Any, Any, Any]) -> list[Any]:
    """Start ``later`` while the kernel is held up by a first put; the results of them all."""
    kernel.gate.clear()
    first = asyncio.ensure_future(ruleset.put(numbered(1)))
    await asyncio.to_thread(kernel.busy.wait, 10)
    waiting = [asyncio.ensure_future(each) for each in later]
    await asyncio.sleep(0)
    kernel.gate.set()
    return await asyncio.gather(first, *waiting, return_exceptions=True)


def test_changes_that_wait_go_in_one_transaction() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        assert await while_busy(ruleset, kernel, *(ruleset.put(numbered(port)) for port in range(2, 8))) == [None] * 7
        assert kernel.commits == [1, 6]
        assert kernel.ports == set(range(1, 8))

    run(kernel, work)


def test_the_thread_is_told_once_when_it_has_nothing_left_to_do_and_when_it_has_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "REST_SECONDS", 0.02)
    kernel, told = Kernel(), list[tuple[str, int, int]]()

    async def work() -> None:
        rested, loop = asyncio.Event(), asyncio.get_running_loop()

        def at_work() -> None:
            told.append(("work", threading.get_native_id(), len(kernel.facts)))

        def at_rest() -> None:
            told.append(("rest", threading.get_native_id(), len(kernel.facts)))
            loop.call_soon_threadsafe(rested.set)

        ruleset = GroupCommit(kernel, clock=lambda: kernel.now, at_work=at_work, at_rest=at_rest)
        await ruleset.start()
        await while_busy(ruleset, kernel, *(ruleset.put(numbered(port)) for port in range(2, 8)))
        await asyncio.wait_for(rested.wait(), 10)
        held = len(kernel.facts)
        assert told == [("work", ruleset.thread_id, 0), ("rest", ruleset.thread_id, held)]
        rested.clear()
        await ruleset.remove("m1")
        await asyncio.wait_for(rested.wait(), 10)
        assert told[2:] == [("work", ruleset.thread_id, held), ("rest", ruleset.thread_id, len(kernel.facts))]
        await ruleset.close()

    asyncio.run(work())


def test_a_prompt_kernel_is_changed_at_once_and_what_comes_at_one_moment_together() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def work(ruleset: GroupCommit) -> None:
        await asyncio.gather(*(ruleset.put(numbered(port)) for port in range(1, 1 + PROMPT_CHANGES)))
        await ruleset.remove("m1")
        assert kernel.commits == [PROMPT_CHANGES, 1]
        assert kernel.threads == {threading.get_ident()}

    run(kernel, work)


def test_many_changes_do_not_hold_up_the_loop() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def work(ruleset: GroupCommit) -> None:
        await asyncio.gather(*(ruleset.put(numbered(port)) for port in range(1, 2 + PROMPT_CHANGES)))
        assert kernel.commits == [PROMPT_CHANGES + 1]
        assert threading.get_ident() not in kernel.threads

    run(kernel, work)


def test_a_table_that_is_larger_than_a_prompt_one_is_the_threads() -> None:
    kernel = Kernel(prompt_up_to=1)

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        await ruleset.put(numbered(2))
        assert kernel.threads == {threading.get_ident()}
        await ruleset.put(numbered(3))
        assert len(kernel.threads) == 2

    run(kernel, work)


def test_the_loop_does_not_wait_for_somebody_elses_lock() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def work(ruleset: GroupCommit) -> None:
        kernel.locked = True
        await ruleset.put(numbered(1))
        assert kernel.ports == {1}
        assert threading.get_ident() not in kernel.threads
        assert kernel.rewrites == 0

    run(kernel, work)


def test_while_the_kernel_is_slow_it_does_not_hold_up_the_loop_again() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def made_by_the_loop(ruleset: GroupCommit, port: int) -> bool:
        """Whether the loop itself makes a change."""
        kernel.threads.clear()
        await ruleset.put(numbered(port))
        return kernel.threads == {threading.get_ident()}

    async def work(ruleset: GroupCommit) -> None:
        kernel.takes = 2 * PROMPT_SECONDS
        assert await made_by_the_loop(ruleset, 1)
        assert not await made_by_the_loop(ruleset, 2)
        kernel.takes = PROMPT_SECONDS / 2
        assert not await made_by_the_loop(ruleset, 3)
        assert await made_by_the_loop(ruleset, 4)

    run(kernel, work)


@pytest.mark.parametrize("prompt_up_to", [-1, math.inf])
def test_what_was_carried_out_in_part_is_put_right_by_writing_everything(prompt_up_to: float) -> None:
    kernel = Kernel(prompt_up_to)

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        kernel.stops_half_way = True
        await ruleset.put(numbered(2))
        assert kernel.rewrites == 1
        assert kernel.ports == {1, 2}
        await ruleset.remove("m2")
        assert kernel.ports == {1}
        assert kernel.rewrites == 1

    run(kernel, work)


@pytest.mark.parametrize("prompt_up_to", [-1, math.inf])
def test_after_a_mistake_of_ours_nothing_counts_as_written(prompt_up_to: float) -> None:
    kernel = Kernel(prompt_up_to)

    async def work(ruleset: GroupCommit) -> None:
        kernel.broken = True
        with pytest.raises(LookupError):
            await ruleset.put(numbered(1))
        kernel.broken = False
        await ruleset.put(numbered(1))
        assert kernel.ports == {1}

    run(kernel, work)


def test_after_the_end_the_loop_changes_nothing() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def work() -> None:
        ruleset = GroupCommit(kernel, clock=lambda: kernel.now)
        await ruleset.start()
        await ruleset.close()
        with pytest.raises(RuntimeError):
            await ruleset.put(numbered(1))
        assert kernel.ports == set()

    asyncio.run(work())


def test_what_a_prompt_kernel_refuses_is_put_right_by_the_thread() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        kernel.facts.clear()
        bad = ruleset.put(numbered(BAD_PORT))
        removed, refused = await asyncio.gather(ruleset.remove("m1"), bad, return_exceptions=True)
        assert removed is None
        assert str(refused) == f"rules of m{BAD_PORT}: bad port"
        assert kernel.facts == {}
        assert len(kernel.threads) == 2

    run(kernel, work)


def test_a_mistake_in_a_prompt_back_end_is_told_and_does_not_stop_what_follows() -> None:
    kernel = Kernel(prompt_up_to=math.inf)

    async def work(ruleset: GroupCommit) -> None:
        kernel.broken = True
        with pytest.raises(LookupError):
            await ruleset.put(numbered(1))
        kernel.broken = False
        await ruleset.put(numbered(2))
        assert 2 in kernel.ports

    run(kernel, work)


def test_a_put_and_a_remove_that_wait_together_leave_nothing() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await while_busy(ruleset, kernel, ruleset.put(numbered(2)), ruleset.remove("m2"))
        assert kernel.ports == {1}

    run(kernel, work)


def test_a_bad_mapping_hurts_none_that_waited_with_it() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        results = await while_busy(
            ruleset, kernel, ruleset.put(numbered(2)), ruleset.put(numbered(BAD_PORT)), ruleset.put(numbered(3))
        )
        assert [str(result) for result in results] == ["None", "None", f"rules of m{BAD_PORT}: bad port", "None"]
        assert kernel.ports == {1, 2, 3}

    run(kernel, work)


def test_a_kernel_that_holds_something_else_is_rewritten() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        kernel.facts.clear()
        await ruleset.remove("m1")
        await ruleset.put(numbered(2))
        assert kernel.rewrites == 1
        assert kernel.ports == {2}

    run(kernel, work)


def test_a_kernel_that_holds_something_else_is_rewritten_for_the_neighbours_of_a_bad_mapping_too() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        await ruleset.put(numbered(2))
        kernel.facts.clear()
        bad = ruleset.put(numbered(BAD_PORT))
        removed, refused = await asyncio.gather(ruleset.remove("m2"), bad, return_exceptions=True)
        assert removed is None
        assert isinstance(refused, RulesetError)
        assert kernel.ports == {1}

    run(kernel, work)


def test_who_waited_for_a_lock_in_vain_does_not_wait_once_more_for_the_same_changes() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        kernel.locked = True
        refused = await while_busy(ruleset, kernel, ruleset.put(numbered(2)), ruleset.put(numbered(3)))
        assert [str(each) for each in refused] == [f"rules of m{n}: somebody has the lock" for n in (1, 2, 3)]
        assert kernel.waits == 2  # of the first, and of the two that came together
        kernel.locked = False
        await ruleset.put(numbered(2))
        assert kernel.ports == {2}

    run(kernel, work)


def test_a_refused_change_can_be_made_later() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        kernel.down = True
        with pytest.raises(RulesetError, match="rules of m1: no kernel"):
            await ruleset.remove("m1")
        with pytest.raises(RulesetError, match="rules of m2: no kernel"):
            await ruleset.put(numbered(2))
        kernel.down = False
        await ruleset.remove("m1")
        assert kernel.facts == {}

    run(kernel, work)


def test_a_caller_that_stops_waiting_does_not_stop_the_others() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        kernel.gate.clear()
        gone = asyncio.ensure_future(ruleset.put(numbered(1)))
        await asyncio.to_thread(kernel.busy.wait, 10)
        stays = asyncio.ensure_future(ruleset.put(numbered(2)))
        await asyncio.sleep(0)
        gone.cancel()
        kernel.gate.set()
        await stays
        assert kernel.ports == {1, 2}

    run(kernel, work)


def test_sync_waits_for_what_was_asked_before_it_and_replaces_it() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await while_busy(
            ruleset, kernel, ruleset.put(numbered(2)), ruleset.sync([numbered(3)]), ruleset.put(numbered(4))
        )
        assert kernel.ports == {3, 4}
        await ruleset.remove("m3")
        assert kernel.ports == {4}

    run(kernel, work)


def test_removing_what_is_not_there_asks_nothing_of_the_kernel() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        kernel.down = True
        await ruleset.remove("nobody")

    run(kernel, work)


def test_nothing_is_left_wanted_after_release() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        await ruleset.release()
        await ruleset.put(numbered(2))
        assert kernel.ports == {2}

    run(kernel, work)


def test_who_drops_is_asked_again_after_a_minute_or_a_sync_only() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        assert [await ruleset.foreign_drop(), await ruleset.foreign_drop()] == ["answer 1"] * 2
        kernel.now += 59.9
        assert await ruleset.foreign_drop() == "answer 1"
        kernel.now += 0.1
        assert await ruleset.foreign_drop() == "answer 2"
        await ruleset.sync([])
        assert await ruleset.foreign_drop() == "answer 3"

    run(kernel, work)


def test_a_ruleset_that_is_not_intact_is_known() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        assert await ruleset.intact()
        kernel.down = True
        assert not await ruleset.intact()

    run(kernel, work)


@pytest.mark.parametrize("lost", [Redirect, Pass, Pinhole])
def test_a_ruleset_without_what_stands_for_all_of_its_kind_is_not_intact(lost: type[Key]) -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        for port in range(10):
            await ruleset.put(numbered(port))
        await ruleset.put(pinhole())
        assert await ruleset.intact()
        kernel.facts = {key: fact for key, fact in kernel.facts.items() if not isinstance(key, lost)}
        assert not await ruleset.intact()

    run(kernel, work)


def test_what_ends_soon_is_not_asked_for_when_the_ruleset_is_looked_at() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(opening(lifetime=10))
        kernel.now += 6
        kernel.facts.clear()
        assert await ruleset.intact()

    run(kernel, work)


def test_an_audit_tells_what_is_missing_and_what_nobody_asked_for_and_when_it_was() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        await ruleset.put(numbered(1))
        assert ruleset.audited is None
        (key, fact), *_ = kernel.facts.items()
        del kernel.facts[key]
        kernel.facts |= dict.fromkeys((Pass(Protocol.TCP, port, Endpoint(A, 9)) for port in (7, 8)), fact)
        assert await ruleset.audit() == Discrepancy(missing=1, surplus=2)
        assert ruleset.audited == (kernel.now, Discrepancy(missing=1, surplus=2))
        await ruleset.sync([numbered(1)])
        assert ruleset.audited is None
        assert await ruleset.audit() == Discrepancy()

    run(kernel, work)


def test_pinholes_and_mappings_go_in_one_transaction_and_only_pinholes_count() -> None:
    kernel = Kernel()

    async def work(ruleset: GroupCommit) -> None:
        assert await while_busy(ruleset, kernel, ruleset.put(numbered(2)), ruleset.put(pinhole())) == [None] * 3
        assert kernel.commits == [1, 1]
        assert [await ruleset.pinhole_packets(id) for id in ("pinhole-1", "m2", "nobody")] == [7, 0, 0]
        await ruleset.remove("pinhole-1")
        assert await ruleset.pinhole_packets("pinhole-1") == 0

    run(kernel, work)


def test_a_back_end_that_cannot_start_says_why() -> None:
    kernel = Kernel()
    kernel.down = True

    async def start() -> None:
        await GroupCommit(kernel, clock=lambda: 0.0).start()

    with pytest.raises(OurFault, match="library is missing"):
        asyncio.run(start())
