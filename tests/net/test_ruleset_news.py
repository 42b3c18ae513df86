# SPDX-License-Identifier: Apache-2.0
"""Which changes of the nftables ruleset are heard of, and how often at most."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from igdpcp.net.ruleset_news import PAUSE_SECONDS, PAUSES_PER_LOOK, RulesetNews
from igdpcp.netfilter.libnftables import Nft
from tests.netfilter.topology import command, inside, namespace

pytestmark = pytest.mark.lab
T = TypeVar("T")

MANY = 3000  # notifications, more than a socket's buffer holds


class Ours:
    """News in a namespace, and a thread of ours there that changes things."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.nft = self.thread.submit(Nft).result()
        self.news = RulesetNews(self.thread.submit(threading.get_native_id).result())

    async def change(self, script: str) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, self.nft.run, script)

    async def others_change(self, *scripts: str) -> None:
        for script in scripts:
            await asyncio.to_thread(command, "nft", script, namespace=self.name)

    def close(self) -> None:
        self.news.close()
        self.thread.shutdown()


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


def run(router: str, work: Callable[[Ours], Awaitable[T]]) -> T:
    async def all_of_it() -> T:
        ours = Ours(router)
        try:
            return await work(ours)
        finally:
            ours.close()

    return inside(router, lambda: asyncio.run(all_of_it()))


def test_another_programs_change_is_told_with_its_name(router: str) -> None:
    async def work(ours: Ours) -> str | None:
        waiting = asyncio.ensure_future(ours.news.wait(60))
        await ours.others_change("add table ip theirs")
        return await waiting

    assert run(router, work) == "nft"


def test_a_change_that_came_while_nobody_waited_is_told_to_the_next_who_does(router: str) -> None:
    async def work(ours: Ours) -> str | None:
        await ours.others_change("add table ip theirs")
        return await ours.news.wait(60)

    assert run(router, work) == "nft"


def test_our_own_changes_are_no_news(router: str) -> None:
    async def work(ours: Ours) -> str | None:
        waiting = asyncio.ensure_future(ours.news.wait(PAUSE_SECONDS + 0.5))
        await ours.change("add table inet mine")
        Nft().run("delete table inet mine")
        return await waiting

    assert run(router, work) is None


def test_however_often_others_change_something_it_is_told_at_a_bounded_rate(router: str) -> None:
    async def work(ours: Ours) -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        began, told = loop.time(), 0
        changing = asyncio.ensure_future(
            ours.others_change("add table ip theirs", *["add set ip theirs s { type mark; }"] * 50)
        )
        while not changing.done():
            told += await ours.news.wait(0.0) is not None
        return told, loop.time() - began

    told, took = run(router, work)
    assert 1 <= told <= took / PAUSE_SECONDS


def test_the_longer_a_look_takes_the_longer_is_the_pause_before_the_next(router: str) -> None:
    async def work(ours: Ours) -> float:
        loop = asyncio.get_running_loop()
        await ours.others_change("add table ip theirs")
        await ours.news.wait(60)
        looked = loop.time()
        await ours.others_change("add table ip more")
        await asyncio.sleep(max(0.0, looked + 0.3 - loop.time()))
        looked = loop.time() - looked
        began = loop.time()
        assert await ours.news.wait(60) == "nft"
        return (loop.time() - began) / looked

    assert run(router, work) >= PAUSES_PER_LOOK * 0.9


def test_more_changes_than_the_kernel_keeps_are_news_all_the_same(router: str) -> None:
    async def work(ours: Ours) -> list[str | None]:
        other = await asyncio.to_thread(Nft)
        for script in ("add table ip theirs", *["add set ip theirs s { type mark; }"] * MANY):
            await asyncio.to_thread(other.run, script)
        told = [await ours.news.wait(60)]
        while told[-1] is not None:
            told.append(await ours.news.wait(0.0))
        await ours.others_change("add table ip more")
        return [told[0], await ours.news.wait(60)]

    first, last = run(router, work)
    assert first is not None
    assert last == "nft"
