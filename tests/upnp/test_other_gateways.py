# SPDX-License-Identifier: Apache-2.0
"""Beside another gateway the SSDP server keeps silent; whoever only says that it is one changes nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_interface
from itertools import pairwise

import pytest

from igdpcp.daemon import flood_guard, other_gateways, ssdp_server, ssdp_sockets
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
    SET,
    advertising,
    another_gateway,
    client_socket,
    describe,
    described,
    everybody,
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


@pytest.mark.parametrize("location", [f"http://{CLIENT_TOO}:80", f"http://{CLIENT}:80", "http://gateway.example:80"])
def test_a_gateway_that_is_not_where_it_says_does_not_count(homes, location, caplog):
    """CLIENT_TOO is another address than the sender's; nobody listens at CLIENT."""
    caplog.set_level(logging.INFO, logger="igdpcp.ssdp")

    async def scenario():
        with homes.client.socket(socket.SOCK_STREAM) as web, client_socket(homes) as sock:
            async with described(web, CLIENT_TOO), advertising() as server:
                await until(lambda: server.advertising)
                announce(sock, CLIENT, location)
                await until(lambda: server.counters.unconfirmed)
                search(sock)
                await received(sock, LOCATION)
                return server.conflict

    assert in_router(homes, scenario) is None
    assert f"event=ssdp_no_gateway client={CLIENT} location={location}" in caplog.text


def announce(sock, address, location=None):
    """Say from there that another gateway is at that URL."""
    stranger = stranger_at(address)
    presence = replace(stranger, location_base=location) if location else stranger
    sock.sendto(alive(presence)[0], (str(ROUTER), SSDP_PORT))


async def silent(reader, writer):
    await reader.read()


async def endless(reader, writer):
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    with suppress(ConnectionError):
        while True:
            writer.write(b"x" * 4096)
            await writer.drain()


async def echoing(reader, writer):
    writer.write(b"HTTP/1.1 404 Not Found\r\n\r\nno such file: " + await reader.readline() + GATEWAY.encode())
    writer.close()


async def printing(reader, writer):
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n<root><deviceType>urn:schemas-upnp-org:device:Printer:1</deviceType></root>")
    writer.close()


async def dying(reader, writer):
    writer.transport.abort()


@pytest.mark.parametrize("serve", [silent, endless, echoing, printing, dying])
def test_who_serves_no_description_of_a_gateway_does_not_count(homes, monkeypatch, serve):
    monkeypatch.setattr(other_gateways, "CHECK_TIMEOUT", 0.5)

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, serve), advertising() as server:
                await until(lambda: server.advertising)
                announce(sock, CLIENT)
                await until(lambda: server.counters.unconfirmed)
                return server.conflict, server.advertising

    assert in_router(homes, scenario) == (None, True)


def test_what_a_stranger_says_of_its_place_cannot_add_to_the_request(homes):
    asked = []

    async def keep(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, keep), advertising() as server:
                await until(lambda: server.advertising)
                announce(sock, CLIENT, f"http://{CLIENT}/a b HTTP/1.1\x0bX: y\xa0")
                await until(lambda: server.counters.unconfirmed)

    in_router(homes, scenario)
    ((line, *fields),) = [request.decode().split("\r\n") for request in asked]
    assert line.count(" ") == 2
    assert line.startswith("GET /a%20b%20HTTP/1.1")
    assert fields == [f"Host: {CLIENT}:80", "", ""]


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


def test_what_is_being_checked_at_the_start_is_waited_for(homes):
    async def slow(reader, writer):
        await asyncio.sleep(0.4)
        await describe(reader, writer)

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, slow), advertising() as server:
                announce(sock, CLIENT)
                await until(lambda: server.conflict)
                return server.counters

    assert in_router(homes, scenario).announcements == GOODBYE  # and nothing more


def test_an_unconfirmed_answer_delays_the_start_by_the_time_of_one_check(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECK_TIMEOUT", 0.1)

    async def scenario():
        loop = asyncio.get_running_loop()
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, silent), advertising() as server:
                began = loop.time()
                announce(sock, CLIENT)
                await until(lambda: server.advertising)
                return loop.time() - began, server.counters

    seconds, counters = in_router(homes, scenario)
    assert seconds < 0.5
    assert counters.unconfirmed == 1


def test_few_addresses_are_checked_at_a_time(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECKS_LIMIT", 1)
    attempts = []

    async def scenario():
        async def nobody_answers(protocol, host, port, **_):
            attempts.append(host)
            await asyncio.Event().wait()

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", nobody_answers)
        with client_socket(homes) as first, client_socket(homes, address=CLIENT_TOO) as second:
            async with advertising(admit=everybody) as server:
                await until(lambda: server.advertising)
                for sock, address in ((first, CLIENT), (second, CLIENT_TOO)):
                    announce(sock, address)
                search(second)
                await received(second, LOCATION)

    in_router(homes, scenario)
    assert attempts == [str(CLIENT)]


def test_answers_to_our_search_count_as_a_flood_too(homes, monkeypatch):
    monkeypatch.setattr(flood_guard, "DATAGRAMS_PER_HOST", 20)

    async def scenario():
        with client_socket(homes) as sock:
            async with advertising() as server:
                await until(lambda: server.advertising)
                (searcher,) = server._others._searchers.values()
                for _ in range(30):
                    sock.sendto(b"HTTP/1.1 200 OK\r\n\r\n", searcher.getsockname())
                await until(lambda: CLIENT in server._guard._barred)

    in_router(homes, scenario)
