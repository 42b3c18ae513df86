# SPDX-License-Identifier: Apache-2.0
"""Which established flows are cut: none as a rule, those of a UDP port that leads to another client, those that end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from igdpcp.iwf import established
from igdpcp.model import Endpoint, Protocol
from igdpcp.openings import Flows
from tests.support.hall import A6, CARRIER, WAN, A, B, Hall
from tests.support.virtual_time import virtual

HOST_A = ip_address(A)
OUTSIDE = frozenset([(WAN, 8080), (CARRIER, 8080)])


@virtual
async def test_as_a_rule_flows_go_on(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for _ in range(2):
        assert not (await hall.add(8080, Protocol="UDP")).code
        assert not (await hall.soap("DeletePortMapping", RemoteHost="", ExternalPort=8080, Protocol="UDP")).code
    assert hall.flows.cuts == []


@virtual
async def test_when_a_udp_port_leads_to_another_client_the_old_ones_flows_are_cut(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    await hall.add(8080, Protocol="UDP")
    await hall.soap("DeletePortMapping", RemoteHost="", ExternalPort=8080, Protocol="UDP")
    await hall.add(8080, B, Protocol="UDP")
    wan = frozenset([(WAN, 8080)])
    assert hall.flows.cuts == [Flows(Protocol.UDP, HOST_A, 8000, wan, outgoing=True)]
    await hall.add(8080, B, Protocol="UDP")
    assert len(hall.flows.cuts) == 1


@virtual
async def test_where_a_port_led_is_known_of_mappings_of_an_earlier_process_too(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    await hall.add(8080, Protocol="UDP")
    hall.leg._established._led.clear()  # rules that were adopted are put by nobody
    await hall.soap("DeletePortMapping", RemoteHost="", ExternalPort=8080, Protocol="UDP")
    await hall.add(8080, B, Protocol="UDP")
    assert hall.flows.cuts == [Flows(Protocol.UDP, HOST_A, 8000, frozenset([(WAN, 8080)]), outgoing=True)]


@virtual
async def test_when_a_client_moves_its_port_the_flows_to_the_old_one_are_cut(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, Protocol="UDP")
    assert not (await hall.add(8080, Protocol="UDP", InternalPort=8001)).code
    assert hall.flows.cuts == [Flows(Protocol.UDP, HOST_A, 8000, OUTSIDE, outgoing=True)]


@virtual
async def test_flows_to_the_port_that_an_alias_shows_are_cut_too(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias", cut_flows=True)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=20100)
    ends = OUTSIDE | {(CARRIER, 20100)}
    await hall.add(8080, Protocol="UDP")
    await hall.add(8080, Protocol="UDP", InternalPort=8001)
    assert hall.flows.cuts == [Flows(Protocol.UDP, HOST_A, 8000, ends, outgoing=True)]
    await hall.soap("DeletePortMapping", RemoteHost="", ExternalPort=8080, Protocol="UDP")
    assert hall.flows.cuts[1:] == [Flows(Protocol.UDP, HOST_A, 8001, ends)]


@virtual
async def test_a_tcp_port_may_lead_elsewhere_while_old_connections_go_on(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    await hall.add(8080)
    await hall.delete(8080)
    await hall.add(8080, B)
    assert hall.flows.cuts == []


@virtual
async def test_what_is_remembered_of_ports_is_bounded(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, Protocol="UDP")
    keeper, opening = hall.leg._established, hall.only_rule
    for port in range(1, 3 * established.LED_LIMIT):
        await keeper.opened(replace(opening, wan_port=port % 65535))
    assert len(keeper._led) <= established.LED_LIMIT


@virtual
async def test_so_many_ports_are_remembered(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, Protocol="UDP")
    keeper, opening = hall.leg._established, hall.only_rule
    ports = range(10000, 10000 + established.LED_LIMIT)
    for port in ports:
        await keeper.opened(replace(opening, wan_port=port))
    other = replace(opening, client=Endpoint(IPv4Address(B), 8000))
    for port in ports[0], 8080:
        await keeper.opened(replace(other, wan_port=port))
    [cut] = hall.flows.cuts
    assert (WAN, ports[0]) in cut.destinations


@virtual
async def test_with_cut_flows_a_deleted_mappings_flows_are_cut(tmp_path: Path) -> None:
    hall = Hall(tmp_path, cut_flows=True)
    await hall.add(8080)
    await hall.delete(8080)
    assert hall.flows.cuts == [Flows(Protocol.TCP, HOST_A, 8000, OUTSIDE)]


@virtual
async def test_with_cut_flows_a_lease_that_ends_cuts_and_only_for_its_remote_host(tmp_path: Path) -> None:
    hall = Hall(tmp_path, cut_flows=True)
    await hall.add(8080, LeaseDuration=60, RemoteHost="198.51.100.9")
    await asyncio.sleep(62)
    assert hall.flows.cuts == [Flows(Protocol.TCP, HOST_A, 8000, OUTSIDE, ip_address("198.51.100.9"))]


@virtual
async def test_with_cut_flows_a_routed_mappings_flows_are_those_to_the_client_itself(tmp_path: Path) -> None:
    hall = Hall(tmp_path, cut_flows=True, routed=True)
    await hall.add(8080)
    await hall.delete(8080)
    ends = frozenset([(HOST_A, 8000), (CARRIER, 8080)])
    assert hall.flows.cuts == [Flows(Protocol.TCP, HOST_A, 8000, ends)]


@virtual
async def test_with_cut_flows_a_closed_pinholes_flows_are_cut(tmp_path: Path) -> None:
    hall = Hall(tmp_path, cut_flows=True)
    wish = {"RemoteHost": "2600:9::1", "RemotePort": 5, "InternalClient": A6, "InternalPort": 7000, "Protocol": 17,
            "LeaseTime": 600}  # fmt: skip
    id = (await hall.firewall("AddPinhole", A6, **wish))["UniqueID"]
    assert not (await hall.firewall("DeletePinhole", A6, UniqueID=id)).code
    host = ip_address(A6)
    ends = frozenset([(host, 7000)])
    assert hall.flows.cuts == [Flows(Protocol.UDP, host, 7000, ends, ip_address("2600:9::1"), 5)]
