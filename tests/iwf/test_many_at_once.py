# SPDX-License-Identifier: Apache-2.0
"""Fifty control points ask for twenty mappings each in one moment, of a carrier that gives this router 32."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections import Counter
from pathlib import Path

import pytest

from igdpcp.iwf.fair_share import LAST_PART
from igdpcp.log import LINES_BURST
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.hall import Reply
from tests.support.virtual_time import virtual
from tests.support.whole_path import WholePath, path_of

POINTS, EACH, QUOTA = 50, 20, 32
HOSTS = [f"192.168.1.{100 + n}" for n in range(POINTS)]
IN_TURN = [(point, number) for number in range(EACH) for point in range(POINTS)]
HOST_BY_HOST = sorted(IN_TURN)
LAST = QUOTA // LAST_PART
Shares = dict[int, int]  # how many each control point gets

# Nobody knows the total before it has been met: then the carrier serves whom it hears first.
FIRST_COME = {0: EACH, 1: QUOTA - EACH}
# With the total known, and all fifty known to wait, of the last ones each goes to who holds none.
SHARED = {0: EACH, 1: QUOTA - LAST - EACH, **dict.fromkeys(range(2, 2 + LAST), 1)}
ONE_EACH = dict.fromkeys(range(QUOTA), 1)


def port_of(point: int, number: int) -> int:
    return 10000 + point * EACH + number


def leftovers(path: WholePath) -> list[int]:
    """How much of each kind goes on, or is remembered of what is over."""
    lifecycle = path.hall.lifecycle
    waiters, commits = lifecycle._waiters, lifecycle._commits
    return [
        len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), len(waiters._outcomes), len(waiters._counts),
        len(waiters._until), len(commits._latest), len(lifecycle._timers._due) - len(path.hall.table),
        len(lifecycle._resends._timers._due), len(path.hall.upstream_leg.leaving), len(path.hall.upstream_leg._untold),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("order", "first", "second", "version", "fault"),
    [
        pytest.param(IN_TURN, ONE_EACH, ONE_EACH, 1, 501, id="in turn"),
        pytest.param(HOST_BY_HOST, FIRST_COME, SHARED, 2, 728, id="host by host"),
    ],
)
def test_iwf_172_184_fifty_control_points_at_once_get_what_the_carrier_gives_and_the_right_fault(
    order: list[tuple[int, int]],
    first: Shares,
    second: Shares,
    version: int,
    fault: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    @virtual
    async def test() -> None:
        path = WholePath(
            tmp_path, PROFILES["quota_32"], monkeypatch, external_ip_probe=False, max_mappings=POINTS * EACH
        )
        await path.start()
        await path.hall.add(9999)
        await path.hall.delete(9999)
        await asyncio.sleep(60)
        before = leftovers(path)

        async def ask(point: int, number: int) -> tuple[int, int, Reply]:
            port, host = port_of(point, number), HOSTS[point]
            reply = await path.hall.add(port, host, version=version, InternalPort=port, LeaseDuration=0)
            assert reply.code or any(each.port == port for each in path.carrier_holds())
            return point, port, reply

        async def ask_all() -> list[tuple[int, int, Reply]]:
            asked_at = path.loop.time()
            answers = await asyncio.gather(*(ask(point, number) for point, number in order))
            assert path.loop.time() - asked_at <= path.hall.main.soap_deadline + 1
            assert Counter(reply.code for _, _, reply in answers) == {0: QUOTA, fault: POINTS * EACH - QUOTA}
            return answers

        async def close(answers: list[tuple[int, int, Reply]]) -> None:
            given = [(port, HOSTS[point]) for point, port, reply in answers if not reply.code]
            closed = await asyncio.gather(*(path.hall.delete(port, host, version=version) for port, host in given))
            assert {reply.code for reply in closed} == {0}
            await asyncio.sleep(60)
            assert (path.carrier_holds(), path.ruleset.rules, path.journalled()) == (set(), {}, [])
            assert (len(path.hall.table), leftovers(path)) == (0, before)

        with caplog.at_level("INFO"):
            answers = await ask_all()
        assert Counter(point for point, _, reply in answers if not reply.code) == first
        opened = {port for _, port, reply in answers if not reply.code}
        assert {each.external_port for each in path.carrier_holds()} == opened
        assert {mapping.external_port for mapping in path.hall.table} == opened
        assert {rule.external.port for rule in path.ruleset.live.values()} == opened
        assert {path_of(mapping) for mapping in path.hall.table} == path.carrier_holds()
        lines = [dict(word.split("=", 1) for word in shlex.split(each.getMessage())) for each in caplog.records]
        decisions = {(HOSTS[point], str(port)): reply.code for point, port, reply in answers}
        told = {(line["client"], line["external_port"]): int(line.get("code", 0)) for line in lines}
        assert told.items() <= decisions.items()
        assert len(told) == len(lines), "one line for each decision"
        lines_of = Counter((host, code) for (host, _), code in told.items())
        for of, count in Counter((host, code) for (host, _), code in decisions.items()).items():
            assert min(LINES_BURST, count) <= lines_of[of] <= count

        await asyncio.sleep(3600)
        assert {each.external_port for each in path.carrier_holds()} == opened
        assert len(path.journalled()) == QUOTA
        assert leftovers(path) == before
        for point, host in enumerate(HOSTS):
            assert (await path.hall.add(port_of(POINTS, point), host, version=version)).code == fault
        await close(answers)

        answers = await ask_all()
        assert Counter(point for point, _, reply in answers if not reply.code) == second
        await close(answers)
        await path.stop()
        path.close()

    test()
