# SPDX-License-Identifier: Apache-2.0
"""What control points are to be told has changed: SystemUpdateID, across restarts too, and who hears of it."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

from igdpcp.iwf.table import SYSTEM_UPDATE_IDS
from igdpcp.model import Activation
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual


@virtual
async def test_iwf_032_each_change_that_is_shown_counts_one_and_is_told(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert hall.interworking.system_update_id == 0
    await hall.add(8080, LeaseDuration=100)
    assert (hall.interworking.system_update_id, hall.changes) == (1, 1)
    await hall.add(8080, LeaseDuration=200)
    assert (hall.interworking.system_update_id, hall.changes) == (2, 2)
    await hall.add(8081, B)
    await hall.delete(8081, B)
    assert (hall.interworking.system_update_id, hall.changes) == (4, 4)
    await asyncio.sleep(201)
    assert (hall.interworking.system_update_id, hall.changes) == (5, 5)


@virtual
async def test_iwf_032_what_is_asked_for_and_refused_is_no_change(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(11)
    await hall.add(8080)
    assert (hall.interworking.system_update_id, hall.changes) == (0, 0)


@virtual
async def test_iwf_032_a_renewal_that_changes_nothing_that_is_shown_is_no_change(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.grant(hall.only.id, lifetime=1000)
    await settle()
    assert (hall.interworking.system_update_id, hall.changes) == (1, 1)


@virtual
async def test_iwf_193_another_state_or_address_of_the_upstream_is_told(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.become(Activation.LOST)
    await settle()
    assert hall.changes == 1
    hall.carrier.move(IPv4Address("62.0.0.9"))
    await settle()
    assert hall.changes == 2


@virtual
async def test_iwf_032_after_a_kill_the_count_goes_on(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    for host in (A, B, A):
        await first.add(8080, host)
        await first.delete(8080, host)
    first.kill()
    second = Hall(tmp_path)
    await second.restart.restore()
    assert second.interworking.system_update_id == 7


@virtual
async def test_iwf_032_after_a_power_cut_the_count_goes_on_from_the_flash_copy(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.add(8080, LeaseDuration=7200)
    await first.stop()
    (tmp_path / "run" / "journal").unlink()
    second = Hall(tmp_path)
    await second.restart.restore()
    assert second.interworking.system_update_id > first.interworking.system_update_id == 2


@virtual
async def test_iwf_032_after_the_greatest_number_comes_nought(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.table.resume(SYSTEM_UPDATE_IDS - 2)
    await hall.add(8080)
    assert hall.interworking.system_update_id == 0
