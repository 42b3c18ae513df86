# SPDX-License-Identifier: Apache-2.0
"""A part that cannot be closed keeps no other one open; what is being written is written before more is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from igdpcp.config import Config
from igdpcp.daemon import flash_copy
from igdpcp.daemon.service import Service
from igdpcp.errors import OurFault, RulesetError
from igdpcp.iwf.journal import Journal
from igdpcp.log import RecentTroubles
from tests.support.virtual_time import virtual


@virtual
async def test_what_fails_to_close_does_not_keep_the_rest_open() -> None:
    closed: list[str] = []

    def fail(error: Exception) -> None:
        raise error

    service = Service(Config(), RecentTroubles(), lambda: None)
    service._closers += [
        lambda: closed.append("journal"),
        lambda: fail(RulesetError("the kernel refuses")),
        lambda: fail(OSError("gone")),
        lambda: closed.append("doors"),
    ]
    await service.stop()
    assert closed == ["doors", "journal"]


def test_a_stop_waits_for_the_flash_copy_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash_copy, "FLASH_SECONDS", 0)
    begun, goes_on = asyncio.Event(), threading.Event()
    done: list[str] = []

    class SlowFlash(Journal):
        def writer(self) -> Callable[[], None] | None:
            begun.set()
            return self._write_slowly

        def _write_slowly(self) -> None:
            goes_on.wait()
            done.append("written")

        def save(self) -> None:
            done.append("written at the end")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        service = Service(Config(), RecentTroubles(), lambda: None)
        copy = flash_copy.FlashCopy(SlowFlash(tmp_path, tmp_path, loop.time), str(tmp_path))
        service._closers.append(copy.close)
        service._tasks.start(copy.keep())
        await begun.wait()
        loop.call_later(0.05, goes_on.set)
        await service.stop()

    try:
        asyncio.run(run())
    finally:
        goes_on.set()
    assert done == ["written", "written at the end"]


@virtual
async def test_what_goes_on_in_the_background_and_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OurFault("the disk is full")

    service = Service(Config(), RecentTroubles(), lambda: None)
    service._tasks.start(fail())
    await asyncio.sleep(1)
    await service.stop()
    assert "event=task_failed" in caplog.text
