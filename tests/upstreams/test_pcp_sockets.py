# SPDX-License-Identifier: Apache-2.0
"""The sockets towards the server: what comes in beyond what one wake-up reads waits for its turn."""

from __future__ import annotations

import asyncio

import pytest

from igdpcp.upstreams.pcp_sockets import DATAGRAMS_PER_WAKE
from tests.support.virtual_time import virtual
from tests.upstreams.line import Line


@virtual
async def test_a_flood_of_datagrams_leaves_other_work_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        peer, before = line.upstream.peer, line.upstream.counters["received"]
        assert peer is not None
        for _ in range(3 * DATAGRAMS_PER_WAKE):
            line.carrier.socket.sendto(b"nothing", (str(line.own), peer.port))
        turns = list[int]()
        while not turns or turns[-1] < 3 * DATAGRAMS_PER_WAKE:
            await asyncio.sleep(0)
            turns.append(line.upstream.counters["received"] - before)
        assert [turn for turn in turns if turn] == [n * DATAGRAMS_PER_WAKE for n in (1, 2, 3)]
