# SPDX-License-Identifier: Apache-2.0
"""Repeated requests while other things happen to the same mapping."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.support.hall import Hall, settle
from tests.support.virtual_time import virtual


@pytest.mark.parametrize("releases", [0, None])
def test_a_deletion_in_the_same_turn_as_a_repeated_request_takes_the_entry(
    tmp_path: Path, releases: int | None
) -> None:
    @virtual
    async def test() -> None:
        hall = Hall(tmp_path)
        await hall.add(8080)
        hall.carrier.releases = releases
        added, deleted = await asyncio.gather(hall.add(8080, LeaseDuration=1800), hall.delete(8080))
        assert (added.code, deleted.code) == (0, 0)
        await settle()
        assert (await hall.listed(), hall.ruleset.rules, hall.carrier.wanted) == ([], {}, {})

    test()


@virtual
async def test_a_request_that_is_repeated_in_the_last_moment_of_its_lease_begins_it_anew(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=10)
    lease_ends = hall.only.lease_ends
    assert lease_ends is not None
    await asyncio.sleep(lease_ends - hall.loop.time() - 1e-6)
    repeating = asyncio.ensure_future(hall.add(8080, LeaseDuration=10))
    await asyncio.sleep(5)
    assert (await repeating).code == 0
    assert await hall.ports() == [8080]


@virtual
async def test_a_request_that_is_repeated_word_for_word_without_end_costs_the_carrier_and_the_journal_nothing(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=0)
    journal = tmp_path / "run" / "journal"
    asked, written = list(hall.carrier.asked), journal.read_text()
    assert (await hall.add(8080, LeaseDuration=0)).code == 0
    assert (hall.carrier.asked, journal.read_text()) == (asked, written)
    assert (await hall.add(8080, LeaseDuration=0, PortMappingDescription="other")).code == 0
    assert journal.read_text() != written


@virtual
async def test_a_request_for_another_port_that_is_repeated_is_answered_when_the_rules_lead_there(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow = 0.5
    leading = asyncio.ensure_future(hall.add(8080, InternalPort=9000))
    await asyncio.sleep(0.1)
    assert (await hall.add(8080, InternalPort=9000)).code == 0
    assert hall.only_rule.client.port == 9000
    assert (await leading).code == 0


@virtual
async def test_when_the_kernel_refuses_another_port_twice_the_entry_is_as_it_was_before_both(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow, hall.ruleset.fails = 0.5, 2
    replies = await asyncio.gather(hall.add(8080, InternalPort=9000), hall.add(8080, InternalPort=9001))
    assert [reply.code for reply in replies] == [501, 501]
    assert (await hall.specific(8080))["InternalPort"] == "8000"
    assert hall.only_rule.client.port == 8000


@virtual
async def test_what_is_deleted_while_its_rules_are_led_to_another_port_stays_deleted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow = 0.5
    leading = asyncio.ensure_future(hall.add(8080, InternalPort=9000))
    await asyncio.sleep(0.1)
    assert (await hall.delete(8080)).code == 0
    assert (await leading).code == 501
    assert (len(hall.table), hall.ruleset.rules, hall.carrier.wanted) == (0, {}, {})


@virtual
async def test_what_is_deleted_while_the_kernel_refuses_another_port_stays_deleted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow, hall.ruleset.fails, hall.carrier.releases = 0.5, 1, None
    leading = asyncio.ensure_future(hall.add(8080, InternalPort=9000))
    await asyncio.sleep(0.1)
    assert (await hall.delete(8080)).code == 0
    assert (await leading).code == 501
    assert (len(hall.table), hall.ruleset.rules, hall.carrier.wanted) == (0, {}, {})


@virtual
async def test_a_new_lease_counts_while_the_rules_are_led_to_another_port(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=10)
    await asyncio.sleep(9.5)
    hall.ruleset.slow = 1
    assert (await hall.add(8080, InternalPort=9000, LeaseDuration=100)).code == 0
    assert [row["InternalPort"] for row in await hall.listed()] == ["9000"]


@virtual
async def test_a_port_that_the_kernel_refuses_does_not_undo_a_later_request(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow, hall.ruleset.fails = 0.5, 1
    first = asyncio.ensure_future(hall.add(8080, InternalPort=9000))
    await asyncio.sleep(0.1)
    second = asyncio.ensure_future(hall.add(8080, InternalPort=9001))
    assert ((await first).code, (await second).code) == (501, 0)
    assert (hall.only.request.client.port, hall.only_rule.client.port) == (9001, 9001)


@virtual
async def test_a_port_that_the_kernel_refuses_leaves_lease_and_port_as_they_were(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=100)
    hall.ruleset.fails = 1
    assert (await hall.add(8080, InternalPort=9000, LeaseDuration=0)).code == 501
    assert (hall.only.request.client.port, hall.only_rule.client.port) == (8000, 8000)
    await asyncio.sleep(101)
    assert await hall.listed() == []
    hall.kill()
    assert Hall(tmp_path).journal.load().mappings == ()


@virtual
async def test_a_control_point_that_hangs_up_while_its_rules_are_led_elsewhere_leaves_them_as_they_are_listed(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow, hall.ruleset.fails = 0.5, 1
    leading = asyncio.ensure_future(hall.add(8080, InternalPort=9000))
    await asyncio.sleep(0.1)
    leading.cancel()
    await asyncio.sleep(1)
    assert (hall.only.request.client.port, hall.only_rule.client.port) == (8000, 8000)


@virtual
async def test_rules_that_are_led_elsewhere_are_those_of_the_grant_that_is_on_its_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    other = IPv4Address("62.0.0.9")
    hall.ruleset.slow, hall.carrier.silent = 0.05, True
    hall.carrier.grant(hall.only.id, address=other)
    await asyncio.sleep(0.01)
    assert (await hall.add(8080, InternalPort=9000)).code == 0
    await settle()
    assert (hall.only_rule.client.port, hall.only_rule.external.address) == (9000, other)
    assert hall.only.grant
    assert hall.only.grant.external.address == other


@virtual
async def test_a_request_that_is_repeated_after_another_client_port_changes_no_rule(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    await hall.add(8080, InternalPort=8001)
    hall.carrier.silent = True
    puts = len(hall.ruleset.puts)
    await hall.add(8080, InternalPort=8001, PortMappingDescription="another")
    assert len(hall.ruleset.puts) == puts


@virtual
async def test_a_late_grant_leads_to_the_client_port_of_the_retry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    assert (await hall.add(8080)).code == 501
    hall.carrier.grant(hall.only.id)
    await settle()
    hall.carrier.silent = False
    assert (await hall.add(8080, InternalPort=9000)).code == 0
    assert hall.only_rule.client.port == 9000
    assert [row["InternalPort"] for row in await hall.listed()] == ["9000"]
