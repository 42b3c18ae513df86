# SPDX-License-Identifier: Apache-2.0
"""What hosts of the LAN are answered in PCP and NAT-PMP, and how much of it they can have at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, ip_interface
from pathlib import Path

import pytest

from igdpcp.daemon import pcp_server
from igdpcp.daemon.flood_guard import DATAGRAMS_PER_HOST
from igdpcp.daemon.pcp_server import ANSWER_TIMEOUT, WAITING_LIMIT, WAITING_PER_HOST
from igdpcp.log import LINES_BURST
from igdpcp.model import Owner
from igdpcp.net.router import Lan
from tests.support.hall import CARRIER, A, B, Hall, settle
from tests.support.pcp_host import (
    NATPMP_ADDRESS,
    NATPMP_UDP,
    PREFER_FAILURE,
    UDP,
    announce,
    map_request,
    natpmp_map,
    read_address,
    read_announce,
    read_map,
    read_port,
)
from tests.support.pcp_lan import GUEST, HOME, PcpLan, lan, serving
from tests.support.virtual_time import virtual

__all__ = ["lan"]  # a fixture

Scenario = Callable[[Path, PcpLan], Awaitable[None]]
NOT_AUTHORIZED, NETWORK_FAILURE, CANNOT_PROVIDE_EXTERNAL = 2, 7, 11
NATPMP_REFUSED = 2


def grants_after(hall: Hall, seconds: float) -> None:
    """The carrier takes its time from now on."""
    hall.carrier.answer = lambda request: hall.loop.call_later(seconds, hall.carrier.grant, request.id) and None


@virtual
async def test_a_host_opens_asks_again_for_and_closes_a_port_in_pcp(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host()
    async with serving(hall):
        opened = read_map(await host.ask(map_request(A, 8000, suggested=8080)))
        assert (opened.result, opened.lifetime, opened.nonce) == (0, 3600, b"nonce of LAN")
        assert (opened.protocol, opened.port) == (6, 8000)
        assert (opened.external, opened.external_port) == (str(CARRIER), 8080)
        assert hall.only.request.requester.owner is Owner.PCP
        await asyncio.sleep(1000)
        again = read_map(await host.ask(map_request(A, 8000, lifetime=7200)))
        assert (again.external_port, again.lifetime, again.epoch) == (8080, 7200, opened.epoch + 1000)
        closed = read_map(await host.ask(map_request(A, 8000, lifetime=0)))
        assert (closed.result, closed.lifetime) == (0, 0)
        assert list(hall.table) == []
        assert hall.carrier.wanted == {}
        assert read_announce(await host.ask(announce(A))) == again.epoch


@virtual
async def test_another_nonce_is_another_program_and_a_description_is_kept(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host()
    described = b"\x80\0\0\x08my\x1b game\0"[:12]
    async with serving(hall):
        answer = await host.ask(map_request(A, 8000, suggested=8080, options=described))
        assert answer[60:] == b"\x80\0\0\x07my game\0"
        for lifetime in 3600, 0:
            thief = map_request(A, 8000, nonce=b"of a thief's", lifetime=lifetime)
            assert read_map(await host.ask(thief)).result == NOT_AUTHORIZED
        (row,) = await hall.listed()
        assert (row["ExternalPort"], row["PortMappingDescription"]) == ("8080", "my game")


@virtual
async def test_ipv6_is_not_served(tmp_path: Path, lan: PcpLan) -> None:
    async with serving(Hall(tmp_path), (Lan("lan", "br-lan", ip_interface("2600:1::1/64")), HOME)) as server:
        assert server.addresses == [HOME.address]
        assert lan.opened == ["br-lan"]


@virtual
async def test_a_host_asks_for_the_address_and_opens_and_closes_ports_in_nat_pmp(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host()
    async with serving(hall):
        assert read_address(await host.ask(NATPMP_ADDRESS))[::2] == (0, str(CARRIER))
        for port in 8000, 8001:
            opened = read_port(await host.ask(natpmp_map(port, suggested=port + 80, lifetime=600)))
            assert (opened.result, opened.port, opened.external_port, opened.lifetime) == (0, port, port + 80, 600)
        assert read_port(await host.ask(natpmp_map(8000, opcode=NATPMP_UDP))).result == 0
        assert {mapping.request.requester.owner for mapping in hall.table} == {Owner.NATPMP}
        all_of_tcp = read_port(await host.ask(natpmp_map(0, lifetime=0)))
        assert (all_of_tcp.result, all_of_tcp.external_port, all_of_tcp.lifetime) == (0, 0, 0)
        assert [mapping.request.protocol for mapping in hall.table] == [UDP]


@virtual
async def test_iwf_013_what_a_control_point_has_open_is_told_a_pcp_host_and_shared(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host()
    async with serving(hall):
        assert (await hall.add(6881, Protocol="UDP", InternalPort=6881)).code == 0
        told = read_map(await host.ask(map_request(A, 6881, protocol=UDP, nonce=b"of the LAN's")))
        assert (told.result, told.external, told.external_port) == (0, str(CARRIER), 6881)
        assert told.nonce == b"of the LAN's"
        assert len(hall.carrier.wanted) == 1
        assert len(hall.table) == 1


@virtual
async def test_a_refusal_says_which_and_for_how_long_and_is_logged(
    tmp_path: Path, lan: PcpLan, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "igdpcp")
    hall, host = Hall(tmp_path), lan.host()
    async with serving(hall):
        refused = read_map(await host.ask(map_request(A, 80, suggested=8080)))
        assert (refused.result, refused.port, refused.external_port) == (NOT_AUTHORIZED, 80, 8080)
        assert refused.lifetime == 1800
        assert read_port(await host.ask(natpmp_map(80))).result == NATPMP_REFUSED
        hall.carrier.refuses(NETWORK_FAILURE, 30)
        assert read_map(await host.ask(map_request(A, 8000))).result == NETWORK_FAILURE
        for n in range(3 * LINES_BURST):
            await host.ask(map_request(A, 80, nonce=b"%12d" % n))
    lines = [record.getMessage() for record in caplog.records if "event=refused" in record.getMessage()]
    assert f"client={A} action=pcp code=2" in lines[0]
    assert "protocol=TCP internal_port=80 external_port=8080" in lines[0]
    assert "action=natpmp" in lines[1]
    assert len(lines) <= LINES_BURST + 1


@virtual
async def test_with_prefer_failure_another_port_or_address_is_a_refusal(tmp_path: Path, lan: PcpLan) -> None:
    hall, host, other = Hall(tmp_path), lan.host(A), lan.host(B)
    async with serving(hall):
        assert read_map(await other.ask(map_request(B, 8000, suggested=8080))).external_port == 8080
        insisting = map_request(A, 8000, suggested=8080, options=PREFER_FAILURE)
        assert read_map(await host.ask(insisting)).result == CANNOT_PROVIDE_EXTERNAL
        assert read_map(await host.ask(map_request(A, 8000, suggested=8080))).external_port != 8080
        elsewhere = map_request(A, 8001, suggested=8081, address="62.0.0.2", options=PREFER_FAILURE)
        assert read_map(await host.ask(elsewhere)).result == CANNOT_PROVIDE_EXTERNAL
        assert read_map(await host.ask(map_request(A, 8001, suggested=8081, address="62.0.0.2"))).result == 0
        here = map_request(A, 8002, suggested=8082, address=str(CARRIER), options=PREFER_FAILURE)
        assert read_map(await host.ask(here)).external_port == 8082


@virtual
async def test_the_address_is_asked_for_at_the_carrier_when_it_is_not_known(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host()

    async def learns() -> None:
        await asyncio.sleep(0.1)
        hall.carrier.move(CARRIER)

    async with serving(hall):
        hall.carrier.move(None)
        assert read_address(await host.ask(NATPMP_ADDRESS))[::2] == (3, "0.0.0.0")
        hall.carrier.learns = learns
        host.send(NATPMP_ADDRESS)
        await asyncio.sleep(0.2)
        (answer,) = host.heard()
        assert read_address(answer)[::2] == (0, str(CARRIER))


@pytest.mark.parametrize(
    ("options", "routed", "pcp", "natpmp"),
    [
        ({}, False, "pcp", "nat-pmp"),
        ({}, True, "pcp", "refused in pcp"),
        ({"natpmp_server": False}, False, "pcp", "refused in pcp"),
        ({"pcp_server": False}, False, "refused in nat-pmp", "nat-pmp"),
        ({"pcp_server": False}, True, "silence", "silence"),
    ],
)
def test_what_is_not_spoken_is_refused_in_what_is(
    tmp_path: Path, lan: PcpLan, options: dict[str, bool], routed: bool, pcp: str, natpmp: str
) -> None:
    spoken = {
        bytes.fromhex("02 80 00 00"): "pcp",
        bytes.fromhex("00 80 00 00"): "nat-pmp",
        bytes.fromhex("02 80 00 01"): "refused in pcp",
        bytes.fromhex("00 00 00 01"): "refused in nat-pmp",
        b"": "silence",
    }

    @virtual
    async def run() -> None:
        hall, host = Hall(tmp_path, routed=routed, **options), lan.host()
        async with serving(hall):
            for octets, expected in ((announce(A), pcp), (NATPMP_ADDRESS, natpmp)):
                host.send(octets)
                await settle()
                assert spoken[b"".join(host.heard())[:4]] == expected

    run()


@virtual
async def test_nothing_is_opened_where_both_are_switched_off(tmp_path: Path, lan: PcpLan) -> None:
    hall = Hall(tmp_path, pcp_server=False, natpmp_server=False)
    async with serving(hall) as server:
        assert lan.opened == []
        assert server.languages == []


@virtual
async def test_who_is_not_of_that_lan_is_not_answered(tmp_path: Path, lan: PcpLan) -> None:
    hall = Hall(tmp_path)
    async with serving(hall) as server:
        for address in "192.168.1.1", "62.0.0.200":
            stranger = lan.host(address)
            stranger.send(map_request(address, 8000))
            stranger.send(NATPMP_ADDRESS)
            await settle()
            assert stranger.heard() == []
        assert server.counters.not_on_lan == 4
        assert list(hall.table) == []


@virtual
async def test_a_request_that_comes_again_while_it_waits_is_answered_once(tmp_path: Path, lan: PcpLan) -> None:
    hall, host, elsewhere = Hall(tmp_path), lan.host(), lan.host()
    async with serving(hall) as server:
        grants_after(hall, 3)
        request = map_request(A, 8000)
        for _ in range(3):
            host.send(request)
            await asyncio.sleep(0.5)
        assert len(hall.carrier.asked) == 1
        elsewhere.send(request)  # as after a restart of the program: its former socket is no more
        await asyncio.sleep(5)
        assert [read_map(octets).result for octets in host.heard()] == [0]
        assert [read_map(octets).result for octets in elsewhere.heard()] == [0]
        assert server.counters.repeated == 2
        assert (server.waiting, len(hall.table)) == (0, 1)


@virtual
async def test_one_host_does_not_take_the_places_of_others_and_gets_its_own_again(tmp_path: Path, lan: PcpLan) -> None:
    hall, greedy, modest = Hall(tmp_path), lan.host(A), lan.host(B)
    async with serving(hall) as server:
        grants_after(hall, 1)
        await greedy.flood(map_request(A, 8000 + n) for n in range(2 * WAITING_PER_HOST))
        modest.send(map_request(B, 9000))
        await asyncio.sleep(2)
        assert {read_map(octets).result for octets in modest.heard()} == {0}
        assert {read_map(octets).port for octets in greedy.heard()} == set(range(8000, 8000 + WAITING_PER_HOST))
        assert server.counters.over_limit == WAITING_PER_HOST
        greedy.send(map_request(A, 8000 + WAITING_PER_HOST))
        await asyncio.sleep(2)
        assert len(greedy.heard()) == 1


@virtual
async def test_many_hosts_together_have_a_ceiling_too(
    tmp_path: Path, lan: PcpLan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcp_server, "WAITING_LIMIT", 6)
    assert WAITING_LIMIT >= 4 * WAITING_PER_HOST
    hall = Hall(tmp_path)
    async with serving(hall) as server:
        grants_after(hall, 1)
        hosts = [lan.host(f"192.168.1.{50 + n}") for n in range(8)]
        for host in hosts:
            host.send(map_request(host.address, 8000))
        await settle()
        assert server.waiting == 6
        await asyncio.sleep(2)
        assert sum(len(host.heard()) for host in hosts) == 6
        assert server.counters.over_limit == 2


@virtual
async def test_a_host_that_floods_is_heard_again_in_the_next_second(tmp_path: Path, lan: PcpLan) -> None:
    hall, host, other = Hall(tmp_path), lan.host(A), lan.host(B)
    async with serving(hall) as server:
        await host.flood([announce(A)] * (2 * DATAGRAMS_PER_HOST))
        assert len(host.heard()) == DATAGRAMS_PER_HOST
        assert server.counters.flood == DATAGRAMS_PER_HOST
        assert read_announce(await other.ask(announce(B))) == 0
        await asyncio.sleep(1)
        assert read_announce(await host.ask(announce(A))) == 1


@virtual
async def test_a_fault_of_ours_leaves_one_request_without_answer_and_is_told(
    tmp_path: Path, lan: PcpLan, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall, host = Hall(tmp_path), lan.host()

    async def fail(request: object) -> None:
        raise ZeroDivisionError

    async with serving(hall) as server:
        with monkeypatch.context() as broken:
            broken.setattr(hall.tuples, "map", fail)
            host.send(map_request(A, 8000))
            await settle()
        assert host.heard() == []
        assert server.waiting == 0
        assert read_map(await host.ask(map_request(A, 8000))).result == 0
    assert "event=pcp_request_failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@virtual
async def test_nobody_waits_for_ever(tmp_path: Path, lan: PcpLan, monkeypatch: pytest.MonkeyPatch) -> None:
    hall, host = Hall(tmp_path), lan.host()

    async def never(request: object) -> None:
        await asyncio.get_running_loop().create_future()

    async with serving(hall) as server:
        monkeypatch.setattr(hall.tuples, "map", never)
        host.send(map_request(A, 8000))
        await asyncio.sleep(ANSWER_TIMEOUT - 1)
        assert server.waiting == 1
        await asyncio.sleep(2)
        assert (server.waiting, server.counters.late, host.heard()) == (0, 1, [])


@virtual
async def test_a_lan_that_goes_takes_its_requests_along_and_leaves_those_of_others(tmp_path: Path, lan: PcpLan) -> None:
    hall, host, guest = Hall(tmp_path), lan.host(A), lan.host("192.168.1.150")
    async with serving(hall, (HOME, GUEST)) as server:
        grants_after(hall, 3)
        host.send(map_request(A, 8000, suggested=8080))
        guest.send(map_request("192.168.1.150", 8000, suggested=8081), router="192.168.1.129")
        await asyncio.sleep(0.1)
        assert server.waiting == 2
        assert server.serve((HOME,)) == {}
        await asyncio.sleep(0.1)
        assert (server.waiting, server.addresses) == (1, [IPv4Address("192.168.1.1")])
        await asyncio.sleep(5)
        assert [read_map(octets).result for octets in host.heard()] == [0]
        assert guest.heard() == []


@virtual
async def test_the_end_waits_for_no_carrier(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host()
    hall.carrier.silent = True
    async with serving(hall) as server:
        host.send(map_request(A, 8000))
        await settle()
        assert server.waiting == 1
    assert server.waiting == 0
    assert host.heard() == []
    with pytest.raises(ConnectionRefusedError):
        host.send(NATPMP_ADDRESS)
