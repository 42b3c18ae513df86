# SPDX-License-Identifier: Apache-2.0
"""Beside another gateway the SSDP server keeps silent while it is there. Whether it is one: test_gateway_checks.py."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from dataclasses import replace
from ipaddress import IPv4Address, ip_interface
from itertools import pairwise

import pytest

from igdpcp.daemon import other_gateways, ssdp_server, ssdp_sockets
from igdpcp.daemon.flood_guard import FloodGuard
from igdpcp.errors import OurFault
from igdpcp.log import SparingLog
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_GROUP, SSDP_PORT, ssdp_listener
from igdpcp.upnp.ssdp import GATEWAY, Search, alive, answers, parse_announcement
from tests.support.ssdp_lan import (
    CLIENT,
    CLIENT_TOO,
    DEVICE,
    GOODBYE,
    IDENTITY,
    IGD2,
    LOCATION,
    ROUTER,
    ROUTER_ULA,
    SET,
    add_address,
    advertising,
    announce,
    another_gateway,
    client_socket,
    describe,
    described,
    everybody,
    everything_heard,
    in_router,
    lan,
    received,
    search,
    stranger_at,
)
from tests.support.virtual_time import virtual
from tests.support.waiting import until

pytestmark = pytest.mark.lab


def foreign_gateway(homes):
    return another_gateway(client_socket(homes, SSDP_PORT), homes.client.socket(socket.SOCK_STREAM))


def test_beside_another_gateway_it_stays_silent_and_says_so(homes, caplog):
    async def scenario():
        async with foreign_gateway(homes), advertising() as server:
            await until(lambda: server.conflict)
            with client_socket(homes) as sock:
                search(sock, target=IGD2, to=ROUTER)
                with pytest.raises(TimeoutError):
                    await received(sock, b"", seconds=0.4)
            return server.conflict, server.advertising, server.counters

    conflict, is_advertising, counters = in_router(homes, scenario)
    assert conflict.startswith(f"{CLIENT} ({DEVICE}) http://{CLIENT}:80/rootDesc.xml")
    assert not is_advertising
    assert (counters.announcements, counters.answers) == (GOODBYE, 0)  # goodbye, and nothing more
    (record,) = [record for record in caplog.records if "event=ssdp_conflict" in record.message]
    assert "option force 1" in record.message


def searches_among(datagrams):
    return [data for data in datagrams if data.startswith(b"M-SEARCH")]


def test_what_was_searched_before_it_serves_is_not_searched_again(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising(ahead=[lan(ROUTER)]):
                return [data for data, _ in await received(sock, b"ssdp:alive")]

    assert len(searches_among(in_router(homes, scenario))) == other_gateways.SEARCHES


def test_a_lan_that_was_not_searched_ahead_is_searched_when_it_is_served(homes):
    elsewhere = lan(IPv4Address("192.168.77.9"))

    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising(ahead=[elsewhere]):
                return [data for data, _ in await received(sock, b"ssdp:alive")]

    assert len(searches_among(in_router(homes, scenario))) == other_gateways.SEARCHES


def test_a_lan_that_could_not_be_searched_ahead_is_searched_when_it_is_served(homes, monkeypatch):
    def fails(*_):
        monkeypatch.undo()
        raise OurFault("not yet")

    monkeypatch.setattr(other_gateways, "ssdp_searcher", fails)

    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising(ahead=[lan(ROUTER)]):
                return [data for data, _ in await received(sock, b"ssdp:alive")]

    assert len(searches_among(in_router(homes, scenario))) == other_gateways.SEARCHES


def test_a_lan_that_was_searched_ahead_but_not_served_then_is_searched_again(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising() as server:
                await server.serve([])
                server.look_around([lan(ROUTER)])
                await until(lambda: searches_among(everything_heard(sock)))
                await server.serve([])
                await server.serve([lan(ROUTER)])
                return [data for data, _ in await received(sock, b"ssdp:alive")]

    assert len(searches_among(in_router(homes, scenario))) >= other_gateways.SEARCHES


@pytest.mark.parametrize("lans", [[], [lan(ROUTER)]], ids=["gone", "cannot be opened"])
def test_what_was_opened_to_search_ahead_is_closed_where_nothing_is_served(homes, monkeypatch, lans):
    def fails(*_):
        raise OurFault("no such device")

    async def scenario():
        async with advertising() as server:
            await server.serve([])
            before = os.listdir("/proc/self/fd")
            server.look_around([lan(ROUTER)])
            during = os.listdir("/proc/self/fd")
            monkeypatch.setattr(ssdp_sockets, "ssdp_speaker", fails)
            await server.serve(lans)
            return before, during, os.listdir("/proc/self/fd")

    before, during, after = in_router(homes, scenario)
    assert len(before) < len(during)
    assert after == before


@pytest.mark.parametrize("addresses", [[ROUTER], [ROUTER, ROUTER_ULA]], ids=["IPv4", "IPv6 too"])
def test_another_gateway_found_before_it_serves_silences_it(homes, addresses):
    lans = [lan(address) for address in addresses]

    async def scenario():
        async with foreign_gateway(homes), advertising(*lans, ahead=lans) as server:
            with client_socket(homes) as sock:
                search(sock, target=IGD2, to=ROUTER)
                await until(lambda: server.conflict)
                with pytest.raises(TimeoutError):
                    await received(sock, b"", seconds=0.4)
            return server.advertising

    assert not in_router(homes, scenario)


@pytest.mark.parametrize("awaited", [False, True], ids=["before it has served", "while it waits for the search ahead"])
def test_stopped_it_leaves_nothing_running(homes, awaited):
    def running():
        return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))

    async def scenario():
        guard, log = FloodGuard(), SparingLog(logging.getLogger("igdpcp"))
        others = other_gateways.OtherGateways(IDENTITY, everybody, guard, log)
        before = running()
        others.open(lan(ROUTER))
        others.search_ahead(30.0)
        during = running()
        if awaited:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(others.search([lan(ROUTER)], 30.0), 0.01)
        await others.stop()
        guard.close()
        return before, during, running()

    before, during, after = in_router(homes, scenario)
    assert before < during
    assert after == before


def test_another_gateway_on_the_router_itself_counts(homes):
    async def scenario():
        here = another_gateway(ssdp_listener(DEVICE, socket.AF_INET), socket.socket(), ROUTER)
        async with here, advertising() as server:
            await until(lambda: server.conflict)
            return server.conflict, server.advertising

    conflict, is_advertising = in_router(homes, scenario)
    assert conflict.startswith(str(ROUTER))
    assert not is_advertising


def test_a_gateway_outside_the_lan_does_not_count(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(admit=lambda address, device: False) as server:
                await until(lambda: server.counters.announcements == GOODBYE + 2 * SET)
                before = server.counters.not_on_lan
                sock.sendto(alive(stranger_at(CLIENT))[0], (str(ROUTER), SSDP_PORT))
                await until(lambda: server.counters.not_on_lan > before)
                return server.conflict

    assert in_router(homes, scenario) is None


def test_force_advertises_beside_another_gateway(homes):
    async def scenario():
        async with foreign_gateway(homes), advertising(force=True) as server:
            with client_socket(homes) as sock:
                search(sock)
                await received(sock, LOCATION)
            return server.conflict

    assert in_router(homes, scenario) is None


def test_another_gateway_that_appears_later_silences_it(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT), advertising() as server:
                await received(sock, b"ssdp:alive")
                sock.sendto(alive(stranger_at(CLIENT))[0], (str(SSDP_GROUP), SSDP_PORT))
                await received(sock, b"ssdp:byebye")
                return server.conflict, server.advertising

    conflict, is_advertising = in_router(homes, scenario)
    assert str(CLIENT) in conflict
    assert not is_advertising


def test_it_advertises_again_when_the_other_gateway_is_gone(homes, monkeypatch):
    monkeypatch.setattr(ssdp_server, "CONFLICT_RECHECK", 0.05)
    monkeypatch.setattr(ssdp_server, "RECHECK_SPACING", 0.1)

    async def scenario():
        with client_socket(homes, address=CLIENT_TOO) as asking:
            async with advertising(admit=everybody) as server:
                await until(lambda: server.advertising)
                async with foreign_gateway(homes) as announce:
                    announce()
                    await until(lambda: server.conflict)
                    await until(lambda: not server.advertising)
                await until(lambda: server.advertising)
                search(asking)
                return server.conflict, (await received(asking, LOCATION))[-1][0]

    conflict, answer = in_router(homes, scenario)
    assert conflict is None
    assert b"BOOTID.UPNP.ORG: 8\r\n" in answer  # another life for control points, which were told goodbye


def test_our_own_announcements_and_answers_are_no_conflict(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising() as server:
                await until(lambda: server.advertising)
                (reply,) = answers(Search(GATEWAY, 1), replace(stranger_at(CLIENT), identity=IDENTITY))
                before = server.counters.malformed
                sock.sendto(reply, (str(ROUTER), SSDP_PORT))
                sock.sendto(alive(replace(stranger_at(CLIENT), identity=IDENTITY))[0], (str(SSDP_GROUP), SSDP_PORT))
                sock.sendto(b"nonsense", (str(ROUTER), SSDP_PORT))
                await until(lambda: server.counters.malformed > before)
                return server.conflict

    assert in_router(homes, scenario) is None


def test_another_gateway_silences_us_on_its_own_lan_only(homes):
    guest = Lan("guest", "br-guest", ip_interface("192.168.79.1/24"), 9)
    homes.router.run(["ip", "link", "add", "br-guest", "type", "veth", "peer", "name", "guest"])
    homes.router.run(["ip", "addr", "add", "192.168.79.1/24", "dev", "br-guest"])
    homes.router.run(["ip", "link", "set", "br-guest", "up"])

    async def scenario():
        async with advertising(guest, lan(ROUTER), admit=everybody) as server:
            await until(lambda: server.advertising)
            with client_socket(homes) as asking, homes.client.socket(socket.SOCK_STREAM) as web:
                async with described(web, CLIENT):
                    server._others.heard("br-guest", alive(stranger_at(CLIENT))[0], CLIENT)
                    await until(lambda: [door.lan.device for door in server._doors if door.shown] == [DEVICE])
                    search(asking)
                    return server.conflict, (await received(asking, LOCATION))[-1][0]

    try:
        conflict, answer = in_router(homes, scenario)
    finally:
        homes.router.run(["ip", "link", "del", "br-guest"])
    assert "(br-guest)" in conflict
    assert b"BOOTID.UPNP.ORG: 7\r\n" in answer, "it never said goodbye there"


def test_a_conflict_ends_with_the_lan_that_it_was_on(homes):
    async def scenario():
        async with foreign_gateway(homes), advertising() as server:
            await until(lambda: server.conflict)
            await server.serve([])
            return server.conflict

    assert in_router(homes, scenario) is None


def test_a_conflict_stays_when_another_address_of_its_lan_goes(homes):
    also = IPv4Address("192.168.77.9")

    async def scenario():
        async with foreign_gateway(homes), advertising(lan(ROUTER), lan(also)) as server:
            await until(lambda: server.conflict)
            await server.serve([lan(ROUTER)])
            return server.conflict

    add_address(homes.router, DEVICE, also)
    try:
        assert in_router(homes, scenario).startswith(str(CLIENT))
    finally:
        homes.router.run(["ip", "addr", "del", f"{also}/24", "dev", DEVICE])


def test_a_gateway_that_is_found_when_its_lan_is_gone_is_no_conflict(homes):
    asked, lan_is_gone = asyncio.Event(), asyncio.Event()

    async def slow(reader, writer):
        asked.set()
        await lan_is_gone.wait()
        await describe(reader, writer)

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, slow), advertising() as server:
                await until(lambda: server.advertising)
                announce(sock, CLIENT)
                await asked.wait()
                await server.serve([])
                lan_is_gone.set()
                await until(lambda: not server._others._checks)
                return server.conflict

    assert in_router(homes, scenario) is None


@virtual
async def test_a_lan_where_we_keep_silent_takes_no_announcement_from_another(monkeypatch):
    loop = asyncio.get_running_loop()
    said = []

    class Nowhere(socket.socket):
        def __init__(self, device, *_):
            super().__init__(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.device = device

        def sendto(self, data, to):
            if b"ssdp:alive" in data and b"NT: upnp:rootdevice" in data:
                said.append((self.device, loop.time()))

    for module, name in (
        (ssdp_sockets, "ssdp_listener"),
        (ssdp_sockets, "ssdp_speaker"),
        (other_gateways, "ssdp_searcher"),
    ):
        monkeypatch.setattr(module, name, Nowhere)
    guest = Lan("guest", "br-guest", ip_interface("192.168.79.1/24"), 9)
    async with advertising(lan(ROUTER), guest) as server:
        await asyncio.sleep(10)
        said.clear()
        for _ in range(5000):  # it answers every search
            await asyncio.sleep(1)
            server._others._confirm("br-guest", parse_announcement(alive(stranger_at(CLIENT))[0]), CLIENT)
    assert {device for device, _ in said} == {DEVICE}
    assert len(said) >= 5
    assert all(later - earlier < 900 for (_, earlier), (_, later) in pairwise(said))


def test_what_is_being_checked_at_the_start_is_waited_for(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECK_TIMEOUT", 60.0)
    may_answer = asyncio.Event()

    async def slow(reader, writer):
        await may_answer.wait()
        await describe(reader, writer)

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, slow), advertising() as server:
                announce(sock, CLIENT)
                with pytest.raises(TimeoutError):
                    await until(lambda: server.advertising, 2 * other_gateways.SEARCHES * ssdp_server.PROBE_SPACING)
                may_answer.set()
                await until(lambda: server.conflict)
                return server.counters

    assert in_router(homes, scenario).announcements == GOODBYE  # and nothing more
