# SPDX-License-Identifier: Apache-2.0
"""When a mapping ends by itself: the timer that waits for grant and lease."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

from igdpcp.iwf.deadlines import Deadlines
from igdpcp.model import Endpoint, Grant, Mapping, MappingRequest, MappingState, Mode, Owner, Protocol, Requester
from tests.support.hall import Hall
from tests.support.virtual_time import START, virtual

HOST = IPv4Address("192.168.1.50")
REQUEST = MappingRequest(Requester(HOST, Owner.UPNP1), Protocol.TCP, 8080, Endpoint(HOST, 80), lease=20)
GRANT = Grant("pcp", HOST, Endpoint(IPv4Address("62.0.0.1"), 8080), 10, START + 10)
OPEN = Mapping("1", 1, REQUEST, Mode.CASCADED, 8080, 8080, MappingState.ACTIVE, START + 20, GRANT)


@virtual
async def test_a_lease_ends_also_where_nothing_came_of_the_end_of_its_grant() -> None:
    told = list[tuple[str, float]]()
    now = asyncio.get_running_loop().time
    deadlines = Deadlines(
        lease_ended=lambda _: told.append(("lease", now())), unrenewed=lambda _: told.append(("grant", now()))
    )
    deadlines.watch(OPEN)
    await asyncio.sleep(30)
    assert told == [("grant", START + 10), ("lease", START + 20)]


@virtual
async def test_a_grant_that_ends_within_a_second_of_its_lease_ends_with_it() -> None:
    told = list[tuple[str, float]]()
    now = asyncio.get_running_loop().time
    deadlines = Deadlines(
        lease_ended=lambda _: told.append(("lease", now())), unrenewed=lambda _: told.append(("grant", now()))
    )
    deadlines.watch(replace(OPEN, grant=replace(GRANT, lifetime=19, ends=START + 19.5)))
    await asyncio.sleep(30)
    assert told == [("lease", START + 20)]


@virtual
async def test_a_later_version_of_a_mapping_has_the_only_timer() -> None:
    told = list[str]()
    deadlines = Deadlines(lease_ended=told.append, unrenewed=told.append)
    deadlines.watch(OPEN)
    deadlines.watch(replace(OPEN, lease_ends=None, grant=None))
    await asyncio.sleep(30)
    assert told == []


@virtual
async def test_of_what_is_deleted_or_was_never_answered_nothing_is_remembered(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080, LeaseDuration=3600)
    await hall.delete(8080)
    hall.carrier.silent = True
    assert (await hall.add(8081)).code == 501
    lifecycle = hall.lifecycle
    assert (lifecycle._timers._leases, lifecycle._waiters._outcomes) == ({}, {})
