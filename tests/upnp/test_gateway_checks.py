# SPDX-License-Identifier: Apache-2.0
"""Who only says that it is another gateway is checked, silences nobody, and can make us do little."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress

import pytest

from igdpcp.daemon import flood_guard, other_gateways
from igdpcp.daemon.other_gateways import DESCRIPTION_LIMIT
from igdpcp.upnp.ssdp import GATEWAY, Search, answers
from tests.support.ssdp_lan import (
    CLIENT,
    CLIENT_TOO,
    LOCATION,
    ROUTER,
    advertising,
    announce,
    client_socket,
    described,
    everybody,
    in_router,
    received,
    search,
    stranger_at,
)
from tests.support.waiting import until

pytestmark = pytest.mark.lab


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


def test_a_description_is_read_to_a_limit(homes):
    async def verbose(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n".ljust(DESCRIPTION_LIMIT) + GATEWAY.encode())
        writer.close()

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, verbose), advertising() as server:
                await until(lambda: server.advertising)
                announce(sock, CLIENT)
                await until(lambda: server.counters.unconfirmed)
                return server.conflict

    assert in_router(homes, scenario) is None


def test_the_connection_of_a_check_is_closed_when_enough_was_read(homes, recwarn):
    closed = asyncio.Event()

    async def lingering(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + GATEWAY.encode())
        with suppress(ConnectionError):
            await reader.read()
        closed.set()

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, lingering), advertising() as server:
                announce(sock, CLIENT)
                await until(lambda: server.conflict)
                await until(closed.is_set)

    in_router(homes, scenario)
    assert "StreamWriter" not in str([warning.message for warning in recwarn]), "it was not left to be garbage"


def test_stopping_ends_a_check_with_its_connection(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECK_TIMEOUT", 60.0)
    asked, closed = asyncio.Event(), asyncio.Event()

    async def slow(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        with suppress(ConnectionError):
            await reader.read()
        closed.set()

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, slow):
                async with advertising() as server:
                    announce(sock, CLIENT)
                    await asked.wait()
                assert not server._others._checks
                await until(closed.is_set)

    in_router(homes, scenario)


def test_one_address_is_checked_now_and_then_however_often_it_announces(homes, monkeypatch):
    monkeypatch.setattr(other_gateways, "CHECKS_PER_SECOND", 0.001)
    checks = []

    async def counting(reader, writer):
        checks.append(await reader.readline())
        writer.close()

    async def scenario():
        with client_socket(homes) as sock, homes.client.socket(socket.SOCK_STREAM) as web:
            async with described(web, CLIENT, counting), advertising() as server:
                await until(lambda: server.advertising)
                for _ in range(20):
                    announce(sock, CLIENT)
                    search(sock, to=ROUTER)
                    await received(sock, LOCATION)  # so that the announcement was heard too
                    await until(lambda: not server._others._checks)

    in_router(homes, scenario)
    assert len(checks) == other_gateways.CHECKS_BURST


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
    monkeypatch.setattr(flood_guard, "WINDOW", 60.0)

    async def scenario():
        with client_socket(homes) as flooding, client_socket(homes, address=CLIENT_TOO) as other:
            async with advertising(admit=everybody) as server:
                await until(lambda: server.advertising)
                (searcher,) = server._others._searchers.values()

                async def flood():
                    for _ in range(30):
                        flooding.sendto(b"HTTP/1.1 200 OK\r\n\r\n", searcher.getsockname())
                    before = server.counters.unconfirmed
                    (elsewhere,) = answers(Search(GATEWAY, 1), stranger_at(CLIENT))
                    other.sendto(elsewhere, searcher.getsockname())  # what was sent earlier has been read by then
                    await until(lambda: server.counters.unconfirmed > before)
                    return server._guard._counts[str(CLIENT)]

                return await flood(), await flood()

    assert in_router(homes, scenario) == (30, 30), "the kernel drops what else comes"
