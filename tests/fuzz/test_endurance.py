# SPDX-License-Identifier: Apache-2.0
"""One gateway that is told nonsense by the whole LAN, thousands of times: it grows no fatter, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import tracemalloc
from pathlib import Path

import pytest

from igdpcp.log import KEYS_LIMIT, RateLimit
from tests.fuzz.gateway import Gateway, open_gateway
from tests.fuzz.inputs import STREAMS, stream
from tests.support.hall import A6, A
from tests.support.virtual_time import virtual

LAN_HOSTS = [f"192.168.1.{number}" for number in range(100, 200)]
LAN6_HOSTS = [f"2600:1::{number}" for number in range(2, 40)]
HOSTS = (*LAN_HOSTS, *LAN6_HOSTS)
QUICK_WARM_UP, QUICK = 400, 800  # inputs
LONG_WARM_UP, LONG = 2_000, 8_000
GROWTH = 64_000  # bytes that are allowed after the warm-up: the tables of the log's limits get full later
NOT_THE_GATEWAY = ("*/tests/*", "*/xml/etree/*", "*/tracemalloc.py")
JOURNAL_LIMIT = 200_000  # bytes
JUDGED_EVERY = 50  # inputs


async def endure(gateway: Gateway, chance: random.Random, number: int) -> None:
    """Take that many inputs, half of them from two hosts, the others from all."""
    for done in range(1, number + 1):
        data = stream(chance, chance.choice(list(STREAMS)))
        cuts = [chance.randrange(len(data) + 1) for _ in range(chance.choice((0, 0, 3)))]
        host = chance.choice((A, A6, chance.choice(HOSTS), chance.choice(HOSTS)))
        await gateway.say(data, host, cuts=cuts, end=chance.random() < 0.5)
        if done % JUDGED_EVERY == 0:
            await gateway.judge()
            gateway.forget_what_it_did()


def memory_after(warm_up: int, number: int, chance: random.Random, directory: Path) -> int:
    """By how many bytes the gateway is larger after the inputs than it was after the warm-up."""
    growth = 0

    @virtual
    async def run() -> None:
        nonlocal growth
        files = set(os.listdir("/proc/self/fd"))
        async with open_gateway(directory, every_line=False) as gateway:
            await endure(gateway, chance, warm_up)
            before = memory()
            await endure(gateway, chance, number)
            growth = memory() - before
            assert all(len(limit._budgets) <= KEYS_LIMIT for limit in gc.get_objects() if isinstance(limit, RateLimit))
            assert (directory / "run" / "journal").stat().st_size < JOURNAL_LIMIT
            assert await gateway.neighbour_still_hears()
            await asyncio.sleep(60)
            assert gateway.server.open_connections == 0
        assert set(os.listdir("/proc/self/fd")) <= files

    tracemalloc.start()
    try:
        run()
    finally:
        tracemalloc.stop()
    return growth


def memory() -> int:
    """Bytes that are held by what neither the tests nor their XML parser have asked for."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(False, part) for part in NOT_THE_GATEWAY])
    return sum(trace.size for trace in snapshot.traces)


def test_memory_stays_flat(tmp_path: Path) -> None:
    assert memory_after(QUICK_WARM_UP, QUICK, random.Random(3), tmp_path) < GROWTH


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_memory_stays_flat_for_long(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    assert memory_after(LONG_WARM_UP, LONG, random.Random(seed), tmp_path) < GROWTH
