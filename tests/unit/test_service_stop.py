# SPDX-License-Identifier: Apache-2.0
"""A part that cannot be closed keeps no other one open."""

from __future__ import annotations

from igdpcp.config import Config
from igdpcp.daemon.service import Service
from igdpcp.errors import RulesetError
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
