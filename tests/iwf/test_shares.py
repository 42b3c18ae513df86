# SPDX-License-Identifier: Apache-2.0
"""How much one host may have, and how fast: nobody takes all, and nobody keeps the others from being answered."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

from igdpcp.config import PermissionConfig
from igdpcp.iwf.fair_share import LAST_PART, QUOTA_SECONDS
from igdpcp.model import Activation, Endpoint, Protocol
from igdpcp.pcp.message import ResultCode
from igdpcp.static_sections import StaticMappingConfig
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual

C, GUEST = "192.168.1.70", "192.168.1.200"
TOTAL, LAST = 32, 4


async def taken(hall: Hall, host: str, first: int, wanted: int) -> int:
    """How many of so many ports the host gets."""
    return [(await hall.add(port, host)).code for port in range(first, first + wanted)].count(0)


def quota(hall: Hall, most: int) -> None:
    """The carrier grants so many and no more."""

    def answer(request: object) -> None:
        id = request.id  # type: ignore[attr-defined]
        if len(hall.carrier.running - {id}) < most:
            hall.carrier.grant(id)
        else:
            hall.carrier.refuse(id, ResultCode.USER_EX_QUOTA, 30)

    hall.carrier.answer = answer


@virtual
async def test_iwf_184_who_holds_many_leaves_the_last_ones_to_others(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings=TOTAL)
    await hall.add(1999, B)
    assert await taken(hall, A, 2000, TOTAL) == TOTAL - LAST - 1
    assert ((await hall.add(3000)).code, (await hall.add(3000, version=2)).code) == (501, 728)
    assert len(hall.carrier.asked) == TOTAL - LAST
    assert [await taken(hall, host, first, 1) for host, first in ((B, 3000), (C, 4000))] == [1, 1]
    assert hall.policy.refusals["unfair"] == LAST + 3


@virtual
async def test_iwf_184_a_host_that_is_alone_may_have_all(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings=TOTAL)
    assert await taken(hall, A, 2000, TOTAL + 1) == TOTAL
    await hall.delete(2000)
    assert (await hall.add(2000)).code == 0


@virtual
async def test_iwf_184_what_is_given_back_when_all_are_taken_is_for_who_holds_none(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings=TOTAL)
    await hall.add(1999, C)
    await taken(hall, A, 2000, TOTAL)
    for number in range(100, 100 + LAST):
        assert await taken(hall, f"192.168.1.{number}", 3000 + number, 1) == 1
    assert (await hall.add(5000, B)).code == 501
    await hall.delete(2000)
    assert (await hall.add(5001)).code == 501
    assert (await hall.add(5000, B)).code == 0


@virtual
async def test_iwf_184_the_carriers_quota_is_shared_once_it_was_met(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 16)
    assert await taken(hall, A, 2000, 16) == 16
    assert (await hall.add(3000, B)).code == 501
    asked = len(hall.carrier.asked)
    await hall.delete(2000)
    assert (await hall.add(4000)).code == 501
    assert len(hall.carrier.asked) == asked, "of the one that was given back A gets none, and nobody is asked"
    assert (await hall.add(3000, B)).code == 0


@virtual
async def test_iwf_097_184_who_joins_a_mapping_uses_nothing_of_the_carriers_quota(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 3)
    assert (await hall.add(3000, B)).code == 0
    assert await taken(hall, A, 2000, 3) == 2
    assert (await hall.add(3000, B, RemoteHost="198.51.100.9")).code == 0


@virtual
async def test_iwf_184_a_quota_that_is_met_while_grants_come_into_force_is_what_was_granted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 16)
    *adds, other = await asyncio.gather(*(hall.add(port) for port in range(2000, 2020)), hall.add(3000, B))
    assert ([reply.code for reply in adds].count(0), other.code) == (16, 501)
    for port in range(2000, 2010):
        await hall.delete(port)
    assert await taken(hall, A, 4000, 16) == 10 - 16 // LAST_PART
    assert await taken(hall, B, 5000, 16) == 1


@virtual
async def test_iwf_184_a_quota_that_was_met_long_ago_or_has_grown_is_none(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 8)
    await hall.add(1999, B)
    await taken(hall, A, 2000, 8)
    asked = len(hall.carrier.asked)
    assert (await taken(hall, A, 3000, 1), len(hall.carrier.asked)) == (0, asked)
    quota(hall, 100)
    await asyncio.sleep(QUOTA_SECONDS)
    assert await taken(hall, A, 3000, 30) == 30


@virtual
async def test_iwf_184_who_holds_none_is_told_by_the_carrier_that_its_quota_is_met(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 8)
    await taken(hall, A, 2000, 9)
    asked = len(hall.carrier.asked)
    assert (await hall.add(3000, B, version=2)).code == 728
    assert len(hall.carrier.asked) == asked + 1


@virtual
async def test_iwf_184_a_query_neither_waits_for_a_mapping_nor_ends_the_waiting(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 8)
    await taken(hall, A, 2000, 8)
    assert (await hall.specific(3001, C)).code == 501
    await hall.delete(2000)
    assert (await hall.add(2000)).code == 0, "who only asked is waited for by nobody"
    assert (await hall.add(3000, B)).code == 501
    assert (await hall.specific(3001, B)).code == 501
    await hall.delete(2000)
    assert (await hall.add(2000)).code == 501
    refused = dict(hall.policy.refusals)
    assert (await hall.specific(3002, A)).code == 714
    assert hall.policy.refusals == refused


@virtual
async def test_iwf_184_what_is_on_its_way_into_the_kernel_is_part_of_the_carriers_quota(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 8)
    await hall.add(1999, B)
    hall.ruleset.slow = 0.1
    codes = [reply.code for reply in await asyncio.gather(*(hall.add(port) for port in range(2000, 2010)))]
    assert (codes.count(0), codes.count(501)) == (7, 3)
    for port in range(2000, 2005):
        await hall.delete(port)
    assert await taken(hall, A, 3000, 3) == 3, "five of eight are free"


@virtual
async def test_iwf_184_what_the_router_has_granted_alone_uses_nothing_of_the_carriers_quota(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    hall.carrier.become(Activation.LOST)
    await settle()
    assert (await taken(hall, A, 2000, 10), await taken(hall, B, 3000, 2)) == (10, 2)
    hall.carrier.silent = False
    quota(hall, 8)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    assert hall.table.at_carrier == 8
    for mapping in [each for each in hall.table if each.at_carrier][:4]:
        await hall.delete(mapping.external_port, str(mapping.request.client.address))
    assert await taken(hall, B, 4000, 1) == 1


@virtual
async def test_iwf_184_while_the_router_serves_alone_nobody_is_kept_to_the_carriers_quota(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    quota(hall, 8)
    assert (await taken(hall, A, 2000, 4), await taken(hall, B, 3000, 5)) == (4, 4)
    hall.carrier.answer, hall.carrier.silent = None, True
    hall.carrier.become(Activation.LOST)
    await settle()
    assert await taken(hall, A, 2100, 2) == 2


@virtual
async def test_iwf_184_what_the_configuration_waits_for_is_no_host_that_waits(tmp_path: Path) -> None:
    web = StaticMappingConfig("web", (Protocol.TCP,), 443, Endpoint(IPv4Address(B), 443))
    hall = Hall(tmp_path, static=[web])
    quota(hall, 8)
    await taken(hall, A, 2000, 8)
    await hall.restart.restore()
    await settle()
    assert hall.static.problems
    await hall.delete(2000)
    assert (await hall.add(2000)).code == 0


@virtual
async def test_iwf_184_a_host_that_asks_too_fast_is_refused_until_it_has_waited(tmp_path: Path) -> None:
    hall = Hall(tmp_path, adds_per_second=1)
    assert await taken(hall, A, 2000, 12) == 10
    assert (await hall.add(3000, version=2)).code == 728
    assert (await hall.add(2000, version=2)).code == 728, "a repeated one costs as much"
    assert (await hall.delete(2000)).code == 0
    assert (await hall.add(3000, B)).code == 0
    await asyncio.sleep(1)
    assert (await hall.add(3001)).code == 0
    assert hall.policy.refusals["too_fast"] == 4
    assert len(hall.carrier.asked) == 12


@virtual
async def test_iwf_185_what_is_never_mapped_is_refused_whatever_is_permitted(tmp_path: Path) -> None:
    everything = [PermissionConfig("all", "allow")]
    hall = Hall(tmp_path, permissions=everything, never_map=(range(22, 23), range(6000, 6011)))
    for port in (22, 6000, 6010):
        assert ((await hall.add(port)).code, (await hall.add(port, version=2)).code) == (718, 606)
        assert (await hall.add(port, any_port=True)).code == 606
    ports = iter([6005, 40000])
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, next(ports))
    assert (await hall.add(0, any_port=True))["ReservedPort"] == "40000"
    values = {"RemoteHost": "", "RemotePort": 0, "InternalClient": "2600:1::50", "Protocol": 6, "LeaseTime": 3600}
    assert [(await hall.firewall("AddPinhole", InternalPort=port, **values)).code for port in (22, 23)] == [606, 0]


@virtual
async def test_iwf_185_a_permission_of_one_lan_is_for_its_hosts_only(tmp_path: Path) -> None:
    rules = [
        PermissionConfig("no_guests", "deny", lan="guest", external_ports=range(8080, 8081)),
        PermissionConfig("home", "allow", lan="lan"),
        PermissionConfig("guests", "allow", lan="guest", external_ports=range(8080, 8082)),
    ]
    hall = Hall(tmp_path, permissions=rules)
    assert [(await hall.add(port, GUEST, version=2)).code for port in (8080, 8081, 8082)] == [606, 0, 606]
    assert [(await hall.add(port, A, version=2)).code for port in (8080, 8082)] == [0, 0]
