# SPDX-License-Identifier: Apache-2.0
"""While the WAN has no address the upstream is asked for the router's own tuple, never for the LAN host's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from igdpcp.model import Activation, Endpoint
from tests.support.hall import WAN, Hall, settle
from tests.support.virtual_time import virtual


def cut(hall: Hall) -> None:
    """The WAN loses its address, and with it the carrier."""
    hall.router.wan_address, hall.carrier.silent, hall.carrier.releases = None, True, None
    hall.carrier.become(Activation.NO_WAN)


def mend(hall: Hall) -> None:
    hall.router.wan_address, hall.carrier.silent, hall.carrier.releases = WAN, False, 0
    hall.carrier.become(Activation.ACTIVE)
    hall.lifecycle.wan_changed()


@virtual
async def test_a_request_meanwhile_names_the_tuple_that_the_grant_has_and_is_refused(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    cut(hall)
    assert (await hall.add(8080, LeaseDuration=7200)).code == 501
    mend(hall)
    await settle()
    assert [asked.internal for asked in hall.carrier.asked] == [Endpoint(WAN, 8080), 8080, Endpoint(WAN, 8080)]
    assert {asked.grant and asked.grant.nonce for asked in hall.carrier.asked[1:]} == {b"n"}
    assert (await hall.ports(), hall.carrier.returned) == ([8080], [])


@virtual
async def test_a_deletion_meanwhile_takes_the_entry_and_is_told_afterwards(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id = hall.only.id
    cut(hall)
    assert (await hall.delete(8080)).code == 0
    assert (await hall.listed(), hall.ruleset.rules, hall.carrier.returned) == ([], {}, [id])
    hall.kill()
    second = Hall(tmp_path)
    await second.restart.restore()
    assert [(left.internal, left.grant and left.grant.nonce) for left in second.carrier.given_back] == [
        (Endpoint(WAN, 8080), b"n")
    ]


@virtual
async def test_what_was_on_its_way_is_given_back_for_the_address_that_the_router_will_have(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    first.carrier.silent = True
    adding = asyncio.ensure_future(first.add(8080))
    await settle()
    first.kill()
    adding.cancel()
    second = Hall(tmp_path)
    second.router.wan_address = None
    await second.restart.restore()
    assert [left.internal for left in second.carrier.given_back] == [8080]


@virtual
async def test_a_routed_mapping_is_the_lan_hosts_own_with_and_without_a_wan(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    await hall.add(8080)
    cut(hall)
    await hall.add(8080, LeaseDuration=7200)
    assert {str(asked.internal) for asked in hall.carrier.asked} == {"192.168.1.50:8000"}
