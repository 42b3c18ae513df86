# SPDX-License-Identifier: Apache-2.0
"""Deletions: upstream first, and what its answer or its silence means."""

from __future__ import annotations

import asyncio
from pathlib import Path

from igdpcp.iwf.interfaces import Released
from igdpcp.model import Activation, MappingState
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual


@virtual
async def test_iwf_130_what_is_not_there_is_not_deleted_upstream(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.delete(8080)).code == 714
    assert hall.carrier.returned == []


@virtual
async def test_iwf_130_an_entry_with_another_remote_host_is_another_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, RemoteHost="198.51.100.9")
    assert (await hall.delete(8080)).code == 714
    assert await hall.ports() == [8080]


@virtual
async def test_iwf_131_another_clients_entry_is_hidden_or_forbidden(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    assert (await hall.delete(8080, B, version=2)).code == 606
    assert (await hall.delete(8080, B, version=1)).code == 714
    assert hall.carrier.returned == []
    assert await hall.ports() == [8080]


@virtual
async def test_iwf_132_134_a_deletion_that_is_confirmed_ends_entry_and_rule(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id = hall.only.id
    assert (await hall.delete(8080)).code == 0
    assert hall.carrier.returned == [id]
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_iwf_134_errors_of_servers_that_do_not_know_it_count_as_deleted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = 3
    assert (await hall.delete(8080)).code == 0
    assert await hall.listed() == []


@virtual
async def test_iwf_135_a_deletion_that_the_carrier_refuses_leaves_the_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = 2
    assert (await hall.delete(8080, version=2)).code == 606
    await settle()
    assert await hall.ports() == [8080]
    assert len(hall.ruleset.rules) == 1
    assert hall.only.id in hall.carrier.wanted


@virtual
async def test_iwf_136_a_silent_server_keeps_the_entry_where_the_policy_says_so(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    await hall.add(8080)
    hall.carrier.releases = None
    assert (await hall.delete(8080)).code == 501
    assert await hall.ports() == [8080]
    assert len(hall.ruleset.rules) == 1
    hall.carrier.releases = 0
    assert (await hall.delete(8080)).code == 0
    assert await hall.listed() == []


@virtual
async def test_iwf_136_a_silent_server_is_told_in_the_background_otherwise(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id = hall.only.id
    hall.carrier.releases = None
    assert (await hall.delete(8080)).code == 0
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})
    assert hall.upstream_leg.leaving == {id}
    hall.fallback.receive(Released(id, 0))
    await settle()
    assert hall.upstream_leg.leaving == set()
    assert _next_start_finds(hall, tmp_path) == []


@virtual
async def test_what_was_not_told_and_ended_in_the_same_moment_is_not_told_at_the_next_start(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    await hall.add()
    hall.carrier.releases = None
    deletion = asyncio.create_task(hall.delete())
    await settle()
    for result in 7, 0:  # the WAN has another address: what the carrier holds for the old one cannot be named
        hall.fallback.receive(Released("00000001", result))
    assert (await deletion).code == 0
    assert _next_start_finds(hall, tmp_path) == []


@virtual
async def test_iwf_141_what_the_router_alone_granted_is_deleted_without_the_carrier(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    await hall.add(8080)
    assert (await hall.delete(8080)).code == 0
    assert (hall.carrier.asked, hall.carrier.returned) == ([], [])


@virtual
async def test_two_deletions_at_once_are_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id, hall.carrier.releases = hall.only.id, None
    deleting = [asyncio.ensure_future(hall.delete(8080)) for _ in range(2)]
    await asyncio.sleep(1)
    hall.fallback.receive(Released(id, 0))
    assert [(await reply).code for reply in deleting] == [0, 0]
    assert hall.carrier.returned == [id]


@virtual
async def test_a_control_point_that_hangs_up_does_not_stop_the_deletion(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id, hall.carrier.releases = hall.only.id, None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await asyncio.sleep(1)
    deleting.cancel()
    hall.fallback.receive(Released(id, 0))
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_an_entry_is_listed_until_its_deletion_is_decided(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await asyncio.sleep(1)
    assert await hall.ports() == [8080]
    assert hall.only.state is MappingState.ENDING
    assert (await deleting).code == 0


@virtual
async def test_a_request_that_meets_its_own_deletion_waits_for_it_and_is_made_anew(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id, hall.carrier.releases = hall.only.id, None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await settle()
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(1)
    assert len(hall.carrier.asked) == 1
    hall.fallback.receive(Released(id, 0))
    assert [(await deleting).code, (await adding).code] == [0, 0]
    assert hall.only.id != id
    assert await hall.ports() == [8080]


@virtual
async def test_a_lease_that_ends_during_a_deletion_that_fails_ends_the_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    await hall.add(8080, LeaseDuration=10)
    await asyncio.sleep(9)
    hall.carrier.releases = None
    assert (await hall.delete(8080)).code == 501
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_a_grant_that_ends_unrenewed_after_a_failed_deletion_is_not_listed(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.longest = 120
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.releases, hall.carrier.silent = None, True
    assert (await hall.delete(8080)).code == 501
    await asyncio.sleep(120)
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_a_deletion_on_its_way_is_answered_when_the_service_stops(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await settle()
    before = hall.loop.time()
    await hall.stop()
    assert (await deleting).code == 501
    assert hall.loop.time() == before


@virtual
async def test_the_freed_wan_port_rests_unless_its_owner_returns(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    await hall.delete(8080)
    await hall.add(8080, B)
    assert hall.carrier.asked[-1].internal.port != 8080
    await hall.delete(8080, B)
    await hall.add(8080, A)
    assert hall.carrier.asked[-1].internal.port == 8080
    await hall.delete(8080)
    await asyncio.sleep(31)
    await hall.add(8080, B)
    assert hall.carrier.asked[-1].internal.port == 8080


def _next_start_finds(hall: Hall, directory: Path) -> list[object]:
    hall.kill()
    return list(Hall(directory).journal.load().mappings)
