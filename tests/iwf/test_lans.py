# SPDX-License-Identifier: Apache-2.0
"""LANs that come and go: what leads to hosts that have left ends, and what leads to hosts that come back stays."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from igdpcp.config import PermissionConfig
from igdpcp.iwf.absences import LAN_GRACE_SECONDS
from igdpcp.model import IPAddress
from tests.support.hall import A6, B, Hall, settle
from tests.support.virtual_time import virtual

PINHOLE: dict[str, Any] = {"RemoteHost": "", "RemotePort": 0, "InternalClient": A6, "InternalPort": 4000, "Protocol": 6}
A_MOMENT = 1.0
HERE = (IPv4Network("192.168.1.0/24"), IPv6Network("2600:1::/64"))
ELSEWHERE = (IPv4Network("192.168.7.0/24"), IPv6Network("2600:7::/64"))


def renumber(hall: Hall, *networks: IPv4Network | IPv6Network, told: bool = True) -> None:
    """These are the LANs."""

    def on_lan(address: IPAddress) -> bool:
        return any(address in network for network in networks)

    hall.router.on_lan = on_lan  # type: ignore[method-assign]
    if told:
        hall.lifecycle.departures.lans_changed()
        hall.pinholes.lans_changed()


async def opened(directory: Path, **options: Any) -> Hall:
    """With two hosts' mappings and a pinhole that do not end by themselves."""
    hall = Hall(directory, **options)
    await hall.add(8080, LeaseDuration=0)
    await hall.add(8081, B, LeaseDuration=0)
    assert (await hall.firewall("AddPinhole", LeaseTime=86400, **PINHOLE)).code == 0
    return hall


def standing(hall: Hall) -> tuple[int, int]:
    return len(hall.ruleset.rules), len(hall.ruleset.pinhole_rules)


@virtual
async def test_iwf_180_what_leads_to_hosts_that_have_left_the_lans_for_long_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hall = await opened(tmp_path)
    renumber(hall, *ELSEWHERE)
    await asyncio.sleep(LAN_GRACE_SECONDS - A_MOMENT)
    assert standing(hall) == (2, 1)
    await asyncio.sleep(2 * A_MOMENT)
    assert (standing(hall), len(hall.table), len(hall.pinhole_table)) == ((0, 0), 0, 0)
    assert len(hall.carrier.returned) == 2
    assert ("event=mapping_led_astray" in caplog.text, "event=pinhole_led_astray" in caplog.text) == (True, True)


@virtual
async def test_iwf_180_only_what_leads_to_the_lan_that_has_gone_ends(tmp_path: Path) -> None:
    hall = await opened(tmp_path)
    renumber(hall, IPv4Network(f"{B}/32"), HERE[1])
    await asyncio.sleep(LAN_GRACE_SECONDS + A_MOMENT)
    assert (await hall.ports(), standing(hall)) == ([8081], (1, 1))


@virtual
async def test_iwf_180_a_lan_that_is_away_at_a_renewal_or_a_start_does_not_cost_its_hosts_their_permission(
    tmp_path: Path,
) -> None:
    rules = [PermissionConfig("home", "allow", lan="lan"), PermissionConfig("no_others", "deny")]
    first = await opened(tmp_path, permissions=rules)
    renumber(first)
    for mapping in first.table:
        first.carrier.grant(mapping.id)
    await settle()
    assert standing(first) == (2, 1)
    await first.stop()
    second = Hall(tmp_path, permissions=rules)
    renumber(second)
    await second.restart.restore()
    await settle()
    assert standing(second) == (2, 1)
    renumber(second, *HERE)
    assert (await second.add(8082)).code == 0
    assert (await second.add(8083, "192.168.1.200", version=2)).code == 606
    await asyncio.sleep(2 * LAN_GRACE_SECONDS)
    assert standing(second) == (3, 1)


@virtual
async def test_iwf_180_what_the_rules_deny_on_the_lan_that_comes_after_our_start_is_closed_then(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    await first.stop()
    rules = [PermissionConfig("guests", "deny", lan="lan"), PermissionConfig("all", "allow")]
    second = Hall(tmp_path, permissions=rules)
    renumber(second)
    await second.restart.restore()
    await settle()
    assert standing(second) == (2, 1), "on which LAN they are nobody knows yet"
    renumber(second, *HERE)
    await settle()
    assert (standing(second), len(second.table)) == ((0, 0), 0)
    assert len(second.carrier.returned) == 2


@virtual
async def test_iwf_180_a_lan_that_is_back_in_time_keeps_everything_and_may_go_for_a_moment_again(
    tmp_path: Path,
) -> None:
    hall = await opened(tmp_path)
    for _ in range(3):
        renumber(hall)
        await asyncio.sleep(LAN_GRACE_SECONDS - A_MOMENT)
        renumber(hall, *HERE)
        await asyncio.sleep(A_MOMENT / 2)
    await asyncio.sleep(2 * LAN_GRACE_SECONDS)
    assert standing(hall) == (2, 1)


@virtual
async def test_iwf_180_a_lan_whose_return_is_not_told_in_time_keeps_everything(tmp_path: Path) -> None:
    hall = await opened(tmp_path)
    renumber(hall)
    await asyncio.sleep(LAN_GRACE_SECONDS - A_MOMENT)
    renumber(hall, *HERE, told=False)
    await asyncio.sleep(2 * A_MOMENT)
    assert standing(hall) == (2, 1)


@virtual
async def test_iwf_180_a_deletion_on_its_way_is_answered_though_its_lan_goes(tmp_path: Path) -> None:
    hall = Hall(tmp_path, soap_deadline=10)
    await hall.add(8080)
    renumber(hall)
    await asyncio.sleep(LAN_GRACE_SECONDS - A_MOMENT)
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await asyncio.sleep(2 * A_MOMENT)
    assert len(hall.ruleset.rules) == 0
    assert (await deleting).code == 0
    assert (len(hall.table), len(hall.carrier.returned)) == (0, 1)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_iwf_042_180_what_leads_to_a_lan_that_is_gone_at_the_next_start_ends_soon(tmp_path: Path, end: str) -> None:
    @virtual
    async def test() -> None:
        first = await opened(tmp_path)
        first.kill() if end == "kill" else await first.stop()
        second = Hall(tmp_path)
        renumber(second, *ELSEWHERE)
        await second.restart.restore()
        assert standing(second) == (2, 1)
        await asyncio.sleep(LAN_GRACE_SECONDS + A_MOMENT)
        assert (standing(second), await second.listed()) == ((0, 0), [])
        assert len(second.carrier.returned) == 2

    test()


@virtual
async def test_iwf_042_a_lan_that_gets_its_address_after_our_start_finds_everything(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    first.kill()
    second = Hall(tmp_path)
    renumber(second)
    await second.restart.restore()
    await asyncio.sleep(LAN_GRACE_SECONDS / 2)
    renumber(second, *HERE)
    await asyncio.sleep(LAN_GRACE_SECONDS)
    assert standing(second) == (2, 1)


@virtual
async def test_a_stop_leaves_what_has_left_the_lans_to_the_next_start(tmp_path: Path) -> None:
    hall = await opened(tmp_path)
    renumber(hall, *ELSEWHERE)
    await hall.lifecycle.stop()
    await hall.pinholes.stop()
    await asyncio.sleep(LAN_GRACE_SECONDS + A_MOMENT)
    assert standing(hall) == (2, 1)
