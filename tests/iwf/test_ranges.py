# SPDX-License-Identifier: Apache-2.0
"""Ranges of ports: listing them, and deleting them as one change; and who sees whose entries."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

from igdpcp.iwf.deletion import URGENT_DELETIONS
from igdpcp.iwf.interfaces import Released
from igdpcp.model import Endpoint, MappingRequest, Owner, Protocol, Requester
from tests.support.hall import A6, A, B, Hall, Reply, settle
from tests.support.virtual_time import virtual


async def delete_range(
    hall: Hall, start: int = 8000, end: int = 8999, host: str = A, *, manage: int = 0, protocol: str = "TCP"
) -> int:
    """The fault code of DeletePortMappingRange."""
    reply = await hall.soap(
        "DeletePortMappingRange", host, 2, StartPort=start, EndPort=end, Protocol=protocol, Manage=manage
    )
    return reply.code


async def list_range(
    hall: Hall, start: int = 1, end: int = 65535, host: str = A, *, manage: int = 1, number: int = 0
) -> Reply:
    return await hall.soap(
        "GetListOfPortMappings", host, 2, StartPort=start, EndPort=end, Protocol="TCP", Manage=manage,
        NumberOfPorts=number,
    )  # fmt: skip


def ports_in(reply: Reply) -> list[int]:
    assert reply.code == 0
    found = ElementTree.fromstring(reply["PortListing"]).iter()
    return [int(element.text or "") for element in found if element.tag.endswith("NewExternalPort")]


@virtual
async def test_iwf_137_a_range_is_deleted_of_the_control_points_own_entries_both_ends_included(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for port, host in ((8000, A), (8500, B), (8999, A), (9000, A)):
        await hall.add(port, host, InternalPort=port)
    await hall.add(8001, A, Protocol="UDP")
    ids = [mapping.id for mapping in hall.table if mapping.external_port in (8000, 8999)]
    assert await delete_range(hall) == 0
    assert hall.carrier.returned == ids
    assert await hall.ports() == [8500, 9000, 8001]
    assert len(hall.ruleset.rules) == 3


@virtual
async def test_iwf_138_120_a_range_that_holds_nothing_is_730_without_a_packet(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(9000)
    assert await delete_range(hall) == 730
    assert (await list_range(hall, 8000, 8999)).code == 730
    assert hall.carrier.returned == []


@virtual
async def test_a_range_that_ends_before_it_begins_is_733(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert await delete_range(hall, 8001, 8000) == 733
    assert (await list_range(hall, 8001, 8000)).code == 733


@virtual
async def test_iwf_131_a_range_of_others_entries_is_606_to_who_wants_to_manage_them(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, B)
    assert await delete_range(hall, manage=1) == 606
    assert await delete_range(hall, manage=0) == 730
    await hall.add(8081, A)
    assert await delete_range(hall, manage=1) == 0
    assert await hall.ports() == [8080]


@virtual
async def test_without_secure_mode_everybody_manages_all_entries(tmp_path: Path) -> None:
    hall = Hall(tmp_path, secure_mode=False)
    await hall.add(8080, B)
    await hall.add(8081, A)
    assert await delete_range(hall, manage=0) == 0
    assert await hall.ports() == [8080]
    assert await delete_range(hall, manage=1) == 0
    assert await hall.listed() == []


@virtual
async def test_iwf_185_entries_of_the_operator_are_skipped(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    operator = Requester(None, Owner.OPERATOR)
    for port in (80, 4443):
        client = Endpoint(IPv4Address(A), port)
        await hall.interworking.add_port_mapping(MappingRequest(operator, Protocol.TCP, port, client))
    await hall.add(8080)
    assert await delete_range(hall, 1, 65535) == 0
    assert await hall.ports() == [80, 4443]


@virtual
async def test_iwf_032_a_range_is_one_change_whatever_else_changes_meanwhile(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for port in range(8000, 8010):
        await hall.add(port, InternalPort=port)
    await hall.add(9000, B)
    before = hall.interworking.system_update_id
    assert await delete_range(hall) == 0
    assert hall.interworking.system_update_id == before + 1
    for port in range(8000, 8010):
        await hall.add(port, InternalPort=port)
    before = hall.interworking.system_update_id
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(delete_range(hall))
    await settle()
    hall.carrier.releases = 0
    await hall.delete(9000, B)
    assert hall.interworking.system_update_id == before + 1
    assert await deleting == 0
    assert hall.interworking.system_update_id == before + 2


@virtual
async def test_iwf_135_what_the_carrier_keeps_of_a_range_stays_and_the_rest_goes(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for port in (8000, 8001):
        await hall.add(port, InternalPort=port)
    kept, gone = (mapping.id for mapping in hall.table)
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(delete_range(hall))
    await settle()
    hall.fallback.receive(Released(kept, 2))
    hall.fallback.receive(Released(gone, 0))
    assert await deleting == 0
    assert (await hall.ports(), list(hall.ruleset.rules)) == ([8000], [kept])
    hall.carrier.releases = 2
    assert await delete_range(hall) == 606
    assert await hall.ports() == [8000]


@virtual
async def test_iwf_136_a_silent_carrier_keeps_of_a_range_what_it_did_not_answer_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    for port in (8000, 8001):
        await hall.add(port, InternalPort=port)
    first = next(iter(hall.table)).id
    hall.carrier.releases = None
    began = hall.loop.time()
    deleting = asyncio.ensure_future(delete_range(hall))
    await settle()
    hall.fallback.receive(Released(first, 0))
    assert await deleting == 0
    assert hall.loop.time() - began < hall.main.soap_deadline + 0.5
    assert await hall.ports() == [8001]
    assert await delete_range(hall) == 501
    assert await hall.ports() == [8001]


@virtual
async def test_iwf_139_a_silent_carrier_is_told_of_a_range_in_the_background(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for port in (8000, 8001):
        await hall.add(port, InternalPort=port)
    ids = {mapping.id for mapping in hall.table}
    hall.carrier.releases = None
    assert await delete_range(hall) == 0
    assert (await hall.listed(), hall.ruleset.rules, hall.upstream_leg.leaving) == ([], {}, ids)


@virtual
async def test_only_so_many_deletions_of_a_range_are_urgent(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    count = URGENT_DELETIONS + 5
    for port in range(8000, 8000 + count):
        await hall.add(port, InternalPort=port)
    assert await delete_range(hall) == 0
    assert hall.carrier.urgently_returned == hall.carrier.returned[:URGENT_DELETIONS]
    assert len(hall.carrier.returned) == count


@virtual
async def test_a_range_joins_a_deletion_that_is_on_its_way_and_cancels_what_is_not_open_yet(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8000)
    id, hall.carrier.releases, hall.carrier.silent = hall.only.id, None, True
    one = asyncio.ensure_future(hall.delete(8000))
    adding = asyncio.ensure_future(hall.add(8001, InternalPort=8001))
    await settle()
    deleting = asyncio.ensure_future(delete_range(hall))
    await settle()
    assert (await adding).code == 501
    hall.fallback.receive(Released(id, 0))
    assert ((await one).code, await deleting) == (0, 0)
    assert hall.carrier.returned.count(id) == 1
    assert len(hall.table) == 0


@virtual
async def test_a_control_point_that_hangs_up_does_not_stop_the_deletion_of_a_range(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8000)
    id, hall.carrier.releases = hall.only.id, None
    deleting = asyncio.ensure_future(delete_range(hall))
    await settle()
    deleting.cancel()
    hall.fallback.receive(Released(id, 0))
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_iwf_110_a_list_is_by_port_and_as_long_as_asked_for_without_a_packet(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for port, host in ((9000, A), (8000, B), (8500, A)):
        await hall.add(port, host, InternalPort=port)
    asked = len(hall.carrier.asked)
    assert ports_in(await list_range(hall)) == [8000, 8500, 9000]
    assert ports_in(await list_range(hall, number=2)) == [8000, 8500]
    assert ports_in(await list_range(hall, 8500, 9000)) == [8500, 9000]
    assert ports_in(await list_range(hall, manage=0)) == [8500, 9000]
    assert len(hall.carrier.asked) == asked


@virtual
async def test_a_list_shows_only_what_is_open(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080))
    await settle()
    assert (await list_range(hall)).code == 730
    hall.carrier.grant(hall.only.id)
    await adding
    assert ports_in(await list_range(hall)) == [8080]


@virtual
async def test_iwf_112_over_ipv6_every_entry_is_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, B)
    assert (await hall.specific(8080, A6))["InternalClient"] == B
    assert (await hall.specific(8080, A)).code == 718


async def generic(hall: Hall, index: int, host: str, version: int) -> Reply:
    return await hall.soap("GetGenericPortMappingEntry", host, version, PortMappingIndex=index)


@virtual
async def test_a_private_list_shows_a_host_its_own_entries_only(tmp_path: Path) -> None:
    hall = Hall(tmp_path, private_list=True)
    await hall.add(8080, B)
    await hall.add(8081, A)
    assert ports_in(await list_range(hall)) == [8081]
    assert (await generic(hall, 0, A, 2)).code == 606
    assert (await generic(hall, 1, A, 2))["ExternalPort"] == "8081"
    assert (await generic(hall, 2, A, 2)).code == 713
    specific = {"RemoteHost": "", "ExternalPort": 8080, "Protocol": "TCP"}
    assert (await hall.soap("GetSpecificPortMappingEntry", A, 2, **specific)).code == 606
    assert (await hall.soap("GetSpecificPortMappingEntry", A, 1, **specific)).code == 714
    assert (await hall.soap("GetSpecificPortMappingEntry", B, 1, **specific)).code == 0
    assert (await hall.specific(8080, A6)).code == 714


@virtual
async def test_a_private_list_is_walked_to_its_end_in_version_1(tmp_path: Path) -> None:
    hall = Hall(tmp_path, private_list=True)
    for port, host in ((8080, B), (8081, A), (8082, B), (8083, A)):
        await hall.add(port, host, InternalPort=port)
    assert await hall.ports() == [8081, 8083]
    assert (await generic(hall, 2, A, 1)).code == 713


@virtual
async def test_iwf_027_the_number_of_entries_counts_what_is_open(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    await hall.add(8081, B)
    assert hall.interworking.number_of_entries == 2
    await hall.delete(8080)
    assert hall.interworking.number_of_entries == 1
