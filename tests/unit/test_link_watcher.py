# SPDX-License-Identifier: Apache-2.0
"""The watcher of links by itself: what a callback raises does not end it."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface

import pytest

from igdpcp.errors import OurFault
from igdpcp.net import links
from igdpcp.net.links import LinkSnapshot, LinkWatcher

PATIENCE = 5.0


def with_address(text: str) -> LinkSnapshot:
    return LinkSnapshot({"wan": 2}, (("wan", IPv4Interface(text)),), ())


def test_the_watcher_outlives_its_callback_and_a_kernel_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (with_address(f"100.64.12.{n}/24") for n in (1, 2, 3))
    found: list[LinkSnapshot | Exception] = [first, second, OurFault("no answer"), KeyError("IFLA_IFNAME"), third]
    monkeypatch.setattr(links, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(links, "RETRY_SECONDS", 0)

    def read() -> LinkSnapshot:
        answer = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(links, "read_links", read)
    told: asyncio.Queue[LinkSnapshot]

    def changed(snapshot: LinkSnapshot) -> None:
        told.put_nowait(snapshot)
        if snapshot == second:
            raise RuntimeError("a bug")

    async def run() -> None:
        nonlocal told
        told = asyncio.Queue()
        watcher = LinkWatcher(changed)
        assert await watcher.start() == first
        for expected in (second, third):
            watcher._notified()
            assert await asyncio.wait_for(told.get(), PATIENCE) == expected
        await watcher.close()

    asyncio.run(run())
    assert "event=link_change_failed" in caplog.text
    assert caplog.text.count("event=links_unknown") == 2
