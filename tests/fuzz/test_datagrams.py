# SPDX-License-Identifier: Apache-2.0
"""Whatever hosts of the LAN send to the SSDP port: searches are answered, and nothing else is."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable

import pytest

from igdpcp.upnp.ssdp import Search, answers
from tests.fuzz.inputs import datagram
from tests.fuzz.ssdp_port import open_port

QUICK, LONG = 6_000, 100_000  # datagrams
BATCH = 500


def sent_to_the_port(make: Callable[[random.Random], bytes], chance: random.Random, number: int) -> None:
    """Datagrams of that many hosts; AssertionError with the batch in which something happened that must not."""
    troubles: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        async with open_port() as port:
            (door,) = port.server._doors
            for _ in range(number // BATCH):
                datagrams = [make(chance) for _ in range(BATCH)]
                for fields in await port.say(datagrams):
                    assert answers(Search(fields["st"], None), door.presence), "an answer about nothing of ours"
                assert troubles == []
            assert port.server.counters.send_errors == 0

    asyncio.run(run())


def noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(300)).replace(b"M-SEARCH", b"")


def test_whatever_is_sent_what_follows_is_answered() -> None:
    sent_to_the_port(datagram, random.Random(1), QUICK)


def test_noise_is_not_answered() -> None:
    sent_to_the_port(noise, random.Random(2), QUICK // 4)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_whatever_is_sent_for_long() -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    sent_to_the_port(datagram, random.Random(seed), LONG)
