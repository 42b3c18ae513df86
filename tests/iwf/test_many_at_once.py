# SPDX-License-Identifier: Apache-2.0
"""Fifty control points ask for twenty mappings each in one moment, of a carrier that gives this router 32."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from igdpcp.log import LINES_BURST
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.hall import Reply
from tests.support.virtual_time import virtual
from tests.support.whole_path import WholePath, path_of

POINTS, EACH, QUOTA = 50, 20, 32
HOSTS = [f"192.168.1.{100 + n}" for n in range(POINTS)]


def port_of(point: int, number: int) -> int:
    return 10000 + point * EACH + number


@pytest.mark.parametrize(("version", "fault"), [(1, 501), (2, 728)])
def test_iwf_172_184_fifty_control_points_at_once_get_what_the_carrier_gives_and_the_right_fault(
    version: int, fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def test() -> None:
        path = WholePath(
            tmp_path, PROFILES["quota_32"], monkeypatch, external_ip_probe=False, max_mappings=POINTS * EACH
        )
        await path.start()
        await path.hall.add(9999)
        await path.hall.delete(9999)
        await asyncio.sleep(1)
        tasks, descriptors = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))

        async def ask(point: int, number: int) -> tuple[int, int, Reply]:
            port, host = port_of(point, number), HOSTS[point]
            reply = await path.hall.add(port, host, version=version, InternalPort=port, LeaseDuration=0)
            assert reply.code or any(each.port == port for each in path.carrier_holds())
            return point, port, reply

        with caplog.at_level("INFO"):
            asked_at = path.loop.time()
            answers = await asyncio.gather(*(ask(p, n) for n in range(EACH) for p in range(POINTS)))
            assert path.loop.time() - asked_at <= path.hall.main.soap_deadline + 1

        codes = Counter(reply.code for _, _, reply in answers)
        assert codes == {0: QUOTA, fault: POINTS * EACH - QUOTA}
        opened = {port for _, port, reply in answers if not reply.code}
        assert {each.external_port for each in path.carrier_holds()} == opened
        assert {mapping.external_port for mapping in path.hall.table} == opened
        assert {rule.external.port for rule in path.ruleset.live.values()} == opened
        assert {path_of(mapping) for mapping in path.hall.table} == path.carrier_holds()
        lines = [record.getMessage().split() for record in caplog.records]
        assert sum("event=mapping_open" in words for words in lines) == QUOTA
        refused = Counter(words[1] for words in lines if "event=refused" in words)
        refusals = Counter(HOSTS[point] for point, _, reply in answers if reply.code)
        assert all(LINES_BURST <= refused[f"client={host}"] <= count for host, count in refusals.items())

        await asyncio.sleep(3600)
        assert {each.external_port for each in path.carrier_holds()} == opened
        assert len(path.journalled()) == QUOTA
        assert (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))) == (tasks, descriptors)

        closed = [
            path.hall.delete(port, HOSTS[point], version=version) for point, port, reply in answers if not reply.code
        ]
        assert {reply.code for reply in await asyncio.gather(*closed)} == {0}
        await asyncio.sleep(60)
        assert (path.carrier_holds(), path.ruleset.rules, path.journalled()) == (set(), {}, [])
        await path.stop()
        path.close()

    test()
