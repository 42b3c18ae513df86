# SPDX-License-Identifier: Apache-2.0
"""Giving everything back, whatever else happens meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from igdpcp.iwf.interfaces import Released
from igdpcp.model import MappingState
from igdpcp.pcp.message import ResultCode
from tests.support.hall import B, Hall, settle
from tests.support.virtual_time import virtual


async def started(directory: Path) -> Hall:
    hall = Hall(directory)
    await hall.restart.restore()
    return hall


@virtual
async def test_release_closes_the_rules_at_once_and_tells_the_carrier_of_everything(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for n in range(3):
        await hall.add(8080 + n)
    ids = [mapping.id for mapping in hall.table]
    before = hall.loop.time()
    await hall.restart.release()
    assert hall.loop.time() - before < 1
    assert hall.carrier.returned == ids
    assert (len(hall.table), hall.ruleset.rules) == (0, {})
    await hall.stop()
    assert (await started(tmp_path)).carrier.given_back == []


@virtual
async def test_release_with_a_silent_carrier_ends_and_is_told_again_at_the_next_start(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = None
    before = hall.loop.time()
    await hall.restart.release()
    assert hall.loop.time() - before < 11
    assert hall.ruleset.rules == {}
    await hall.stop()
    assert len((await started(tmp_path)).carrier.given_back) == 1


@virtual
async def test_release_takes_along_what_is_being_deleted_and_what_waits(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    first = hall.only.id
    hall.carrier.releases, hall.carrier.silent = None, True
    deleting = asyncio.ensure_future(hall.delete(8080))
    adding = asyncio.ensure_future(hall.add(8081))
    await settle()
    releasing = asyncio.ensure_future(hall.restart.release())
    await asyncio.sleep(1)
    for id in (first, *hall.carrier.returned[1:]):
        hall.fallback.receive(Released(id, 0))
    before = hall.loop.time()
    await releasing
    assert hall.loop.time() - before < 0.1
    assert ((await deleting).code, (await adding).code) == (0, 501)
    await hall.stop()
    assert (await started(tmp_path)).carrier.given_back == []


@virtual
async def test_leases_that_end_during_a_release_do_not_end_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for n in range(30):
        await hall.add(8000 + n)
    for n in range(5):
        await hall.add(9000 + n, LeaseDuration=1, InternalPort=9000 + n)
    ids = [mapping.id for mapping in hall.table]
    hall.carrier.releases = None
    releasing = asyncio.ensure_future(hall.restart.release())
    await asyncio.sleep(3)
    for id in ids:
        hall.fallback.receive(Released(id, 0))
    await releasing
    assert (len(hall.table), hall.ruleset.rules, hall.carrier.returned) == (0, {}, ids)


@virtual
async def test_refusals_and_losses_during_a_release_do_not_end_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for n in range(3):
        await hall.add(8080 + n, LeaseDuration=0, any_port=n == 0, version=1)
    ids = [mapping.id for mapping in hall.table]
    hall.carrier.releases = None
    releasing = asyncio.ensure_future(hall.restart.release())
    await settle()
    for id in ids:
        hall.carrier.refuse(id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
        hall.carrier.lose(id)
    await settle()
    for id in ids:
        hall.fallback.receive(Released(id, 0))
    await releasing
    assert (len(hall.table), hall.ruleset.rules, hall.carrier.returned) == (0, {}, ids)


@virtual
async def test_a_late_grant_does_not_bring_a_rule_back_during_a_release(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for n in range(100):
        await hall.add(8000 + n)
    requests = {mapping.id: hall.carrier.wanted[mapping.id] for mapping in hall.table}
    hall.carrier.releases = None
    releasing = asyncio.ensure_future(hall.restart.release())
    for id, request in requests.items():
        hall.carrier.wanted[id] = request
        hall.carrier.grant(id)  # a renewal's answer that was on its way
    await asyncio.sleep(1)
    assert (len(hall.table), hall.ruleset.rules) == (0, {})
    await releasing
    assert hall.ruleset.rules == {}


@virtual
async def test_a_rule_on_its_way_into_the_kernel_does_not_outlive_the_release(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow = 1
    hall.lifecycle.wan_changed()
    adding = asyncio.ensure_future(hall.add(8081, B))
    await settle()
    await hall.restart.release()
    assert ((await adding).code, hall.ruleset.rules) == (501, {})
    await asyncio.sleep(60)
    assert (len(hall.table), hall.ruleset.rules) == (0, {})


@virtual
async def test_a_second_release_waits_for_the_same_end(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for n in range(10):
        await hall.add(8080 + n)
    ids = [mapping.id for mapping in hall.table]
    hall.carrier.releases = None
    releases = [asyncio.ensure_future(hall.restart.release()) for _ in range(2)]
    await asyncio.sleep(1)
    assert not any(release.done() for release in releases)
    for id in ids:
        hall.fallback.receive(Released(id, 0))
    before = hall.loop.time()
    assert await asyncio.gather(*releases) == [None, None]
    assert hall.loop.time() - before < 0.1
    assert hall.carrier.returned == ids


@virtual
async def test_a_request_that_waited_for_a_deletion_opens_nothing_after_the_release(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await settle()
    assert hall.only.state is MappingState.ENDING
    waiting = asyncio.ensure_future(hall.add(8080))
    await settle()
    hall.carrier.releases = 0
    releasing = asyncio.ensure_future(hall.restart.release())
    await asyncio.gather(deleting, waiting, releasing)
    assert (waiting.result().code, len(hall.table), hall.ruleset.rules) == (501, 0, {})
