# SPDX-License-Identifier: Apache-2.0
"""Permission rules where the port is chosen by somebody else, after a reload, and for IPv6 hosts."""

from __future__ import annotations

import logging
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from igdpcp.config import PermissionConfig
from igdpcp.model import Endpoint, MappingRequest, Owner, Protocol, Requester
from tests.support.hall import A6, B6, A, B, Hall, settle
from tests.support.virtual_time import virtual

FEW = PermissionConfig("few", "allow", range(6000, 6011))
NO_DESKTOP = PermissionConfig("no_desktop", "deny", range(3389, 3390))
NONE = PermissionConfig("none", "deny")
ALL = PermissionConfig("all", "allow")


async def pinhole(hall: Hall, host: str, port: int = 4000) -> int:
    """The code that AddPinhole gives this host."""
    values = {"RemoteHost": "", "RemotePort": 0, "InternalPort": port, "Protocol": 6, "LeaseTime": 3600}
    return (await hall.firewall("AddPinhole", host, InternalClient=host, **values)).code


@virtual
async def test_iwf_185_any_port_that_the_router_chooses_is_a_permitted_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False, permissions=[NO_DESKTOP, ALL])
    reply = await hall.add(0, any_port=True, InternalPort=3389)
    assert reply.code == 0
    assert reply["ReservedPort"] != "3389"


@virtual
async def test_iwf_185_any_port_may_be_one_of_few(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False, permissions=[FEW])
    assert int((await hall.add(0, any_port=True, InternalPort=33333))["ReservedPort"]) in FEW.external_ports


@virtual
async def test_iwf_185_where_no_permitted_port_is_free_any_port_is_none(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False, permissions=[PermissionConfig("one", "allow", range(6000, 6001))])
    assert (await hall.add(6000)).code == 0
    for wanted in (6000, 0):
        assert (await hall.add(wanted, any_port=True, InternalPort=22222)).code == 728
    assert await hall.ports() == [6000]


@virtual
async def test_iwf_185_a_granted_port_that_is_not_permitted_is_given_back_and_another_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hall = Hall(tmp_path, permissions=[NO_DESKTOP, ALL])
    ports = iter([3389, 40000])
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, next(ports))
    assert (await hall.add(0, any_port=True))["ReservedPort"] == "40000"
    assert (len(hall.carrier.returned), len(hall.ruleset.puts)) == (1, 1)
    assert hall.carrier.asked[0].internal != hall.carrier.asked[1].internal
    assert "event=grant_not_permitted" in caplog.text


@virtual
async def test_iwf_185_a_carrier_that_grants_no_permitted_port_opens_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path, permissions=[FEW])
    assert (await hall.add(0, any_port=True)).code == 728
    assert (len(hall.table), len(hall.carrier.returned), hall.ruleset.puts) == (0, 2, [])


@virtual
async def test_iwf_185_an_open_mapping_that_the_carrier_moves_to_a_port_not_permitted_ends(tmp_path: Path) -> None:
    hall = Hall(tmp_path, permissions=[FEW])
    await hall.add(6000, any_port=True)
    hall.carrier.grant(hall.only.id, port=22222)
    await settle()
    assert (await hall.listed(), hall.ruleset.rules, len(hall.carrier.returned)) == ([], {}, 1)


@virtual
async def test_iwf_185_a_rule_that_denies_some_ports_does_not_deny_any_port(tmp_path: Path) -> None:
    hall = Hall(tmp_path, permissions=[NO_DESKTOP, ALL])
    assert (await hall.add(0, any_port=True)).code == 0
    hall = Hall(tmp_path / "none", permissions=[NONE, ALL])
    assert (await hall.add(0, any_port=True)).code == 606
    hall = Hall(tmp_path / "nothing", permissions=[NO_DESKTOP])
    assert (await hall.add(0, any_port=True)).code == 606


async def _reloaded(directory: Path, permissions: list[PermissionConfig], **options: Any) -> Hall:
    """A hall with other options than the one whose entries it finds: A's, the operator's and a pinhole."""
    first = Hall(directory, secure_mode=False)
    await first.add(8080, A, InternalClient=B)
    await first.add(9090, A)
    operators = Requester(None, Owner.OPERATOR)
    await first.interworking.add_port_mapping(MappingRequest(operators, Protocol.TCP, 80, Endpoint(IPv4Address(A), 80)))
    assert await pinhole(first, A6) == 0
    await first.stop()
    second = Hall(directory, permissions=permissions, **options)
    await second.restart.restore()
    await settle()
    return second


@virtual
async def test_iwf_185_what_a_reload_does_not_permit_any_more_is_closed_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hall = await _reloaded(tmp_path, [NONE], secure_mode=False)
    assert (await hall.ports(), len(hall.ruleset.rules), hall.ruleset.pinhole_rules) == ([80], 1, {})
    assert sorted(request.external_port for request in hall.carrier.given_back) == [8080, 9090]
    assert "event=not_adopted" in caplog.text


@virtual
async def test_iwf_185_what_a_host_opened_to_another_one_is_closed_when_secure_mode_comes(tmp_path: Path) -> None:
    hall = await _reloaded(tmp_path, [ALL])
    assert (await hall.ports(), len(hall.ruleset.pinhole_rules)) == ([9090, 80], 1)
    assert [request.external_port for request in hall.carrier.given_back] == [8080]


@virtual
async def test_iwf_097_185_of_several_remote_hosts_a_reload_closes_those_not_permitted_any_more(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.add(8080, RemoteHost="198.51.100.9")
    await first.stop()
    second = Hall(tmp_path, remote_host="reject")
    await second.restart.restore()
    await settle()
    assert [(row["ExternalPort"], row["RemoteHost"]) for row in await second.listed()] == [("8080", "")]


@virtual
async def test_iwf_185_after_a_reload_the_port_that_was_granted_counts(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    first.carrier.answer = lambda request: first.carrier.grant(request.id, 22222)
    await first.add(6000, any_port=True)
    await first.stop()
    second = Hall(tmp_path, permissions=[FEW])
    second.carrier.silent = True
    await second.restart.restore()
    assert await second.listed() == []


@virtual
async def test_iwf_185_a_rule_of_an_ipv4_network_is_for_mappings_and_one_of_an_ipv6_network_for_pinholes(
    tmp_path: Path,
) -> None:
    lan = PermissionConfig("lan", "deny", internal_addresses=IPv4Network("192.168.1.0/24"))
    lan6 = PermissionConfig("lan6", "deny", internal_addresses=IPv6Network(f"{A6}/128"))
    hall = Hall(tmp_path, permissions=[lan, ALL])
    assert (await hall.add(8080, version=2)).code == 606
    assert await pinhole(hall, A6) == 0
    hall = Hall(tmp_path / "6", permissions=[lan6, ALL])
    assert (await hall.add(8080, version=2)).code == 0
    assert (await pinhole(hall, A6), await pinhole(hall, B6)) == (606, 0)


@virtual
async def test_iwf_185_an_ipv6_network_can_be_all_that_may_open_pinholes(tmp_path: Path) -> None:
    lan6 = PermissionConfig("lan6", "allow", range(4000, 4002), IPv6Network(f"{A6}/128"), range(4001, 4003))
    hall = Hall(tmp_path, permissions=[lan6])
    assert (await pinhole(hall, A6, 4001), await pinhole(hall, A6, 4000), await pinhole(hall, A6, 4002)) == (
        0,
        606,
        606,
    )
    assert (await pinhole(hall, B6, 4001), (await hall.add(4001, InternalPort=4001, version=2)).code) == (606, 606)
