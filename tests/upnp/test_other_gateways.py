# SPDX-License-Identifier: Apache-2.0
"""Beside another gateway the SSDP server keeps silent; whoever only says that it is one changes nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace
from types import SimpleNamespace

import pytest

from igdpcp.daemon import flood_guard, other_gateways, ssdp_server
from igdpcp.net.sockets import SSDP_GROUP, SSDP_PORT, ssdp_listener
from igdpcp.upnp.ssdp import GATEWAY, Search, alive, answers
from tests.support.ssdp_lan import (
    CLIENT,
    CLIENT_TOO,
    DEVICE,
    IDENTITY,
    IGD2,
    ROUTER,
    advertising,
    another_gateway,
    client_socket,
    everybody,
    in_router,
    listen,
    received,
    search,
    stranger_at,
    two_namespaces,
    until,
)

LOCATION = b"LOCATION: http://192.168.77.1:5000/rootDesc.xml\r\n"
SET = 18  # messages that announce both trees
pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def homes():
    with two_namespaces() as homes:
        yield homes


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
    assert (counters.announcements, counters.answers) == (SET, 0)  # goodbye, and nothing more
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
                await until(lambda: server.counters.announcements == 3 * SET)
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
            listen(web, CLIENT)
            async with advertising() as server:
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
            listen(web, CLIENT_TOO)
            async with advertising() as server:
                await until(lambda: server.advertising)
                sock.sendto(
                    alive(replace(stranger_at(CLIENT), location_base=location))[0], (str(SSDP_GROUP), SSDP_PORT)
                )
                await until(lambda: server.counters.unconfirmed)
                search(sock)
                await received(sock, LOCATION)
                return server.conflict

    assert in_router(homes, scenario) is None
    assert f"event=ssdp_no_gateway client={CLIENT} location={location}" in caplog.text


def test_what_is_being_checked_at_the_start_is_waited_for(homes, monkeypatch):
    async def scenario():
        async def slow_to_accept(*args):
            await asyncio.sleep(0.4)
            return SimpleNamespace(abort=lambda: None), None

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", slow_to_accept)
        with client_socket(homes) as sock:
            async with advertising() as server:
                sock.sendto(alive(stranger_at(CLIENT))[0], (str(ROUTER), SSDP_PORT))
                await until(lambda: server.conflict)
                return server.counters

    assert in_router(homes, scenario).announcements == SET  # goodbye, and nothing more


def test_an_unconfirmed_answer_delays_the_start_by_the_time_of_one_check(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECK_TIMEOUT", 0.1)

    async def scenario():
        loop = asyncio.get_running_loop()

        async def nobody_answers(*args):
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "create_connection", nobody_answers)
        with client_socket(homes) as sock:
            async with advertising() as server:
                began = loop.time()
                sock.sendto(alive(stranger_at(CLIENT))[0], (str(ROUTER), SSDP_PORT))
                await until(lambda: server.advertising)
                return loop.time() - began, server.counters

    seconds, counters = in_router(homes, scenario)
    assert seconds < 0.5
    assert counters.unconfirmed == 1


def test_few_addresses_are_checked_at_a_time(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECKS_LIMIT", 1)
    attempts = []

    async def scenario():
        async def nobody_answers(protocol, host, port):
            attempts.append(host)
            await asyncio.Event().wait()

        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", nobody_answers)
        with client_socket(homes) as first, client_socket(homes, address=CLIENT_TOO) as second:
            async with advertising(admit=everybody) as server:
                await until(lambda: server.advertising)
                for sock, address in ((first, CLIENT), (second, CLIENT_TOO)):
                    sock.sendto(alive(stranger_at(address))[0], (str(ROUTER), SSDP_PORT))
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
