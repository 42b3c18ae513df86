# SPDX-License-Identifier: Apache-2.0
"""When the kernel's rules are looked at and compared, and what is done about what is found."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from igdpcp.errors import RulesetError
from igdpcp.iwf.router_leg import COMPARE_SECONDS, PAUSES_PER_COMPARISON, RESYNC_SECONDS
from igdpcp.openings import Discrepancy, Surroundings
from tests.support.hall import Hall
from tests.support.virtual_time import virtual

HOME = Surroundings(frozenset(["wan0"]), frozenset(["br-lan"]), frozenset())
WRONG = Discrepancy(missing=3, surplus=1)


@virtual
async def test_rules_that_differ_after_somebodys_change_are_laid_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.rules, hall.ruleset.differs = {}, WRONG
    await hall.leg.audit("nft")
    assert len(hall.ruleset.rules) == 1
    assert hall.leg.problem is None
    assert 'event=ruleset_differs missing=3 surplus=1 changed_by=nft remedy="laid anew"' in caplog.text


@virtual
async def test_while_nobody_changes_anything_nothing_is_compared(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for _ in range(10):
        await asyncio.sleep(COMPARE_SECONDS)
        await hall.leg.audit()
    assert hall.ruleset.audits == 0


@virtual
async def test_however_often_others_change_rules_comparing_them_takes_a_bounded_share_of_the_time(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    for seconds, share in ((0.1, COMPARE_SECONDS), (10.0, PAUSES_PER_COMPARISON * 10.0)):
        hall.ruleset.slow, hall.ruleset.audits = seconds, 0
        ends = asyncio.get_running_loop().time() + 10 * share
        while asyncio.get_running_loop().time() < ends:
            await hall.leg.audit("dnsmasq")
            await asyncio.sleep(1)
        assert 9 <= hall.ruleset.audits <= 11


@virtual
async def test_a_change_that_came_too_soon_after_a_comparison_is_looked_at_later(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.leg.audit("nft")
    hall.ruleset.differs = WRONG
    await hall.leg.audit("nft")
    assert hall.ruleset.syncs == 0
    await asyncio.sleep(COMPARE_SECONDS)
    await hall.leg.audit()
    assert hall.ruleset.syncs == 1


@virtual
async def test_a_firewall_that_is_back_gets_its_rules_at_once(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.rules, hall.ruleset.whole, hall.ruleset.fails = {}, False, 1
    await hall.leg.audit("fw4")
    assert hall.leg.problem == "no such table"
    hall.ruleset.whole = True
    await hall.leg.audit("fw4")
    assert hall.leg.problem is None
    assert len(hall.ruleset.rules) == 1
    await asyncio.sleep(2 * RESYNC_SECONDS)
    assert hall.ruleset.syncs == 2


@virtual
async def test_a_change_that_fails_while_the_rules_are_laid_is_mended_afterwards(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow = 0.1
    laying = asyncio.ensure_future(hall.leg.sync())
    await asyncio.sleep(0.05)
    hall.leg.failed(RulesetError("no room"))
    await laying
    assert hall.leg.problem == "no room"
    await asyncio.sleep(2 * RESYNC_SECONDS)
    assert hall.leg.problem is None


@virtual
async def test_what_cannot_be_compared_is_left_as_it_is(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.fails = 1
    await hall.leg.audit("nft")
    assert (hall.ruleset.audits, hall.ruleset.syncs, hall.leg.problem) == (1, 0, None)


@virtual
async def test_a_repair_tells_what_it_found_and_what_is_left(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.differs = WRONG
    assert await hall.leg.repair() == (WRONG, Discrepancy())
    assert await hall.leg.repair() == (Discrepancy(), Discrepancy())
    assert hall.ruleset.syncs == 1


@virtual
async def test_a_repair_that_fails_says_why(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.fails = 2
    with pytest.raises(RulesetError, match="no such table"):
        await hall.leg.repair()


@virtual
async def test_the_kernel_is_told_its_surroundings_when_they_are_others_and_not_each_time(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.leg.surround(HOME)
    hall.ruleset.fails = 1
    await hall.leg.surround(HOME)
    assert hall.leg.problem is None
    await hall.leg.surround(replace(HOME, wan_devices=frozenset(["wan1"])))
    assert hall.leg.problem
    await hall.leg.surround(replace(HOME, wan_devices=frozenset(["wan1"])))
    assert hall.ruleset.fails == 0
