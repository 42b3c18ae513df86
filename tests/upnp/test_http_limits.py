# SPDX-License-Identifier: Apache-2.0
"""What a hostile LAN host cannot do to the HTTP server: its limits of time and bytes."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import tracemalloc

import pytest

from igdpcp.daemon import http_connection, http_parting, http_server
from igdpcp.daemon.http_server import HttpServer
from igdpcp.log import LINES_BURST
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.http import BODY_LIMIT, REQUEST_LIMIT, HttpResponse
from tests.support.http_exchange import (
    GET,
    HOSTS,
    LAST,
    LOOPBACK,
    at_once,
    connect,
    exchange,
    hold,
    let_go,
    serving,
)
from tests.support.waiting import until


@pytest.mark.parametrize("first", [b"", GET])
def test_a_request_that_trickles_in_is_cut_off(monkeypatch, first):
    monkeypatch.setattr(http_connection, "REQUEST_TIMEOUT", 0.1)

    async def scenario():
        async with serving() as (server, port):
            reader, writer = await connect(port)
            writer.write(first)
            if first:
                await reader.readuntil(b"/a")
            try:
                async with asyncio.timeout(http_connection.IDLE_TIMEOUT / 2):
                    while True:
                        writer.write(b"G")
                        await writer.drain()
                        await asyncio.sleep(0.01)
            except ConnectionError:
                return server.counters
            finally:
                writer.close()

    counters = asyncio.run(scenario())
    assert (counters.timeouts, counters.requests) == (1, len(first) > 0)


def test_an_idle_connection_is_ended_in_good_order(monkeypatch):
    monkeypatch.setattr(http_connection, "IDLE_TIMEOUT", 0.05)

    async def scenario():
        async with serving() as (server, port):
            return await exchange(port, GET), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.endswith(b"/a")
    assert (counters.requests, counters.timeouts) == (1, 1)


def test_a_handler_that_takes_too_long_is_cancelled_and_answered_for(monkeypatch, caplog):
    monkeypatch.setattr(http_connection, "HANDLER_TIMEOUT", 0.05)
    cancelled = asyncio.Event()

    async def handler(request, peer):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def scenario():
        async with serving(handler) as (server, port):
            return await exchange(port, LAST), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"<errorCode>501</errorCode>" in answer
    assert cancelled.is_set()
    assert counters.slow == 1


def test_a_response_that_is_not_read_does_not_hold_the_connection(monkeypatch):
    monkeypatch.setattr(http_connection, "RESPONSE_TIMEOUT", 0.05)
    monkeypatch.setattr(http_server, "UNSENT_LIMIT", 1 << 30)

    async def handler(request, peer):
        return HttpResponse(200, body=bytes(32 << 20))

    async def scenario():
        async with serving(handler) as (server, port):
            unread = await hold(port, HOSTS[0], LAST)
            unread[1].transport.pause_reading()
            await until(lambda: server.counters.timeouts)
            let_go([unread])
            return server.counters, server.open_connections

    counters, left = asyncio.run(scenario())
    assert (counters.timeouts, left) == (1, 0)


def test_the_kernel_too_keeps_what_is_not_read_for_a_while_only():
    async def scenario():
        server = HttpServer(at_once, lambda address, device: True)
        listener = http_listener(LOOPBACK, 0, "")
        await server.start([(listener, "br-lan")])
        limit = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)  # what is accepted inherits it
        await server.close()
        return limit

    assert asyncio.run(scenario()) == 10_000


def test_responses_that_nobody_reads_are_bounded_and_their_own_host_pays(monkeypatch):
    size = 24 << 20
    monkeypatch.setattr(http_server, "UNSENT_LIMIT", 2 * size)

    async def handler(request, peer):
        return HttpResponse(200, body=bytes(size))

    async def scenario():
        async with serving(handler) as (server, port):
            held = []
            for host in (HOSTS[0], HOSTS[1], HOSTS[1], HOSTS[1]):
                held.append(await hold(port, host, LAST))
                held[-1][1].transport.pause_reading()
                await until(lambda: server.counters.requests == len(held))
            await until(lambda: server.counters.unread)
            unsent = server.unsent
            held[0][1].transport.resume_reading()
            whole = await asyncio.wait_for(held[0][0].read(), 30)
            let_go(held)
            return unsent, len(whole), server.counters

    unsent, whole, counters = asyncio.run(scenario())
    assert unsent <= 2 * size
    assert whole > size
    assert counters.unread >= 1


def test_too_many_bytes_for_a_request_are_answered_and_forgotten():
    async def scenario():
        async with serving() as (server, port):
            answer = await exchange(port, GET.replace(b"\r\n\r\n", b"\r\nX: ") + b"x" * REQUEST_LIMIT)
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert (counters.malformed, counters.requests) == (1, 0)


def test_many_malformed_requests_write_few_lines_and_are_counted_exactly(caplog):
    async def scenario():
        async with serving() as (server, port):
            for _ in range(3 * LINES_BURST):
                await exchange(port, b"\x00\x01\r\n\r\n")
            return server.counters

    with caplog.at_level(logging.INFO, logger="igdpcp.http"):
        counters = asyncio.run(scenario())
    assert counters.malformed == 3 * LINES_BURST
    assert LINES_BURST <= caplog.text.count("event=http_malformed") < 2 * LINES_BURST


def test_others_have_their_turn_between_pipelined_requests():
    async def scenario():
        async with serving() as (server, port):
            reader, writer = await connect(port)
            writer.write(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 400)
            await reader.readuntil(b"/a")
            await exchange(port, LAST)
            seen = server.counters.requests
            writer.close()
            return seen

    assert asyncio.run(scenario()) < 400


def test_what_follows_a_refused_request_is_read_and_forgotten():
    async def scenario():
        async with serving() as (server, port):
            reader, writer = await connect(port)
            writer.write(b"\0\r\n\r\n")
            answer = await reader.read()
            writer.write(b"\0\r\n\r\n" + b"x" * BODY_LIMIT)
            await exchange(port, LAST)  # the server has had its turn to read it
            writer.close()
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert counters.malformed == 1


def test_hostile_connections_leave_no_memory_behind():
    async def attack(port, rounds):
        for n in range(rounds):
            await exchange(port, b"\0\r\n\r\n", source=HOSTS[n % len(HOSTS)])
            await exchange(port, GET[:20], end=True)
            reader, writer = await connect(port)
            writer.write(GET + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n" + b"x" * 9000)
            await reader.readuntil(b"/a")
            writer.transport.abort()

    async def scenario():
        async with serving() as (server, port):
            await attack(port, 2 * http_parting.PARTING_LIMIT)
            gc.collect()
            tracemalloc.start()
            try:
                await attack(port, 2 * http_parting.PARTING_LIMIT)
                await until(lambda: not server.open_connections)
                gc.collect()
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            return held

    assert asyncio.run(scenario()) < 150_000
