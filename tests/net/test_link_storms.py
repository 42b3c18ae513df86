# SPDX-License-Identifier: Apache-2.0
"""How often links are read where something changes all the time."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise

import pytest

from igdpcp.net import links
from igdpcp.net.links import PAUSES_PER_READING, LinkSnapshot, LinkWatcher
from tests.netfilter.topology import command, inside, namespace

pytestmark = pytest.mark.lab

READING = 0.1  # seconds that one takes on this router
READINGS = 3


def test_however_often_links_change_reading_them_takes_a_bounded_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans: list[tuple[float, float]] = []
    done = threading.Event()

    def read() -> LinkSnapshot:
        began = time.monotonic()
        threading.Event().wait(READING)
        spans.append((began, time.monotonic()))
        if len(spans) > READINGS:
            done.set()
        return LinkSnapshot({}, (), ())

    def change(router: str) -> None:
        while not done.is_set():
            for verb in ("add", "del"):
                command("ip", "-n", router, "addr", verb, "192.0.2.1/24", "dev", "lo")

    async def watch(router: str) -> None:
        watcher = LinkWatcher(lambda _: None)
        await watcher.start()
        await asyncio.wait_for(asyncio.to_thread(change, router), 30)
        await watcher.close()

    monkeypatch.setattr(links, "read_links", read)
    with namespace() as router:
        inside(router, lambda: asyncio.run(watch(router)))

    for (began, ended), (again, _) in pairwise(spans[1:]):
        assert again - ended >= 0.9 * PAUSES_PER_READING * (ended - began)
