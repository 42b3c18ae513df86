# SPDX-License-Identifier: Apache-2.0
"""The HTTP server on the loopback device: what a control point meets, and what a hostile host cannot do."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest

from igdpcp.daemon import http_server
from igdpcp.daemon.http_server import HttpServer
from igdpcp.errors import MalformedRequest, UpnpFault
from igdpcp.log import LINES_BURST
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.http import BODY_LIMIT, HttpResponse

LOOPBACK = IPv4Address("127.0.0.1")
GET = b"GET /a HTTP/1.1\r\nHost: a\r\nUser-Agent: tester\r\n\r\n"
LAST = b"GET /z HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def echo_path(request, peer):
    return HttpResponse(200, body=request.path.encode())


@asynccontextmanager
async def serving(handler=echo_path, admit=lambda address, device: True):
    server = HttpServer(handler, admit, "tester/1")
    listener = http_listener(LOOPBACK, 0, "")
    port = listener.getsockname()[1]
    await server.start([(listener, "br-lan")])
    try:
        yield server, port
    finally:
        await server.close()


async def exchange(port, *pieces, end=False):
    """Everything the server sends in return for these bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def test_a_request_reaches_the_handler_with_its_peer():
    seen = []

    async def handler(request, peer):
        seen.append((request.path, request.headers["user-agent"], peer))
        return HttpResponse(200, body=b"hello", close=True)

    async def scenario():
        async with serving(handler) as (_, port):
            return await exchange(port, GET)

    answer = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nServer: tester/1\r\n" in answer
    assert answer.endswith(b"\r\n\r\nhello")
    ((path, agent, peer),) = seen
    assert (path, agent) == ("/a", "tester")
    assert (peer.address, peer.local_address, peer.device) == (LOOPBACK, LOOPBACK, "br-lan")


def test_a_connection_serves_requests_until_one_says_close():
    async def scenario():
        async with serving() as (server, port):
            return await exchange(port, GET, GET, LAST, GET), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.count(b"200 OK") == 3
    assert answer.endswith(b"/z")
    assert counters.requests == 3
    assert counters.connections == 1


def test_a_client_that_ends_its_side_early_is_answered():
    async def scenario():
        async with serving() as (_, port):
            return await exchange(port, GET, end=True)

    assert asyncio.run(scenario()).endswith(b"/a")


def test_a_slow_handler_holds_up_only_its_own_connection():
    async def scenario():
        release = asyncio.Event()

        async def handler(request, peer):
            if request.path == "/a":
                await release.wait()
            return HttpResponse(200, body=request.path.encode(), close=True)

        async with serving(handler) as (_, port):
            slow = asyncio.create_task(exchange(port, GET))
            quick = await exchange(port, LAST)
            assert not slow.done()
            release.set()
            return quick, await slow

    quick, slow = asyncio.run(scenario())
    assert quick.endswith(b"/z")
    assert slow.endswith(b"/a")


def test_a_host_that_is_not_on_the_lan_gets_nothing():
    asked = []

    def admit(address, device):
        asked.append((address, device))
        return False

    async def scenario():
        async with serving(admit=admit) as (server, port):
            return await exchange(port, GET), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer == b""
    assert asked == [(LOOPBACK, "br-lan")]
    assert (counters.not_on_lan, counters.requests) == (1, 0)


@pytest.mark.parametrize("ceiling", ["CONNECTIONS_PER_HOST", "CONNECTIONS_LIMIT"])
def test_connections_beyond_a_ceiling_are_closed_at_once(monkeypatch, ceiling):
    monkeypatch.setattr(http_server, ceiling, 2)

    async def scenario():
        async with serving() as (server, port):
            open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for reader, writer in open_ones:
                writer.write(GET)
                await reader.readuntil(b"/a")
            refused = await exchange(port, GET)
            reader, writer = open_ones[0]
            writer.write(LAST)
            await reader.read()
            served = await exchange(port, LAST)
            for _, writer in open_ones:
                writer.close()
            return refused, served, server.counters

    refused, served, counters = asyncio.run(scenario())
    assert refused == b""
    assert served.endswith(b"/z")
    assert counters.over_limit == 1


def test_the_ceilings_are_those_that_control_points_need():
    assert (http_server.CONNECTIONS_LIMIT, http_server.CONNECTIONS_PER_HOST) == (128, 16)
    assert (http_server.REQUEST_TIMEOUT, http_server.IDLE_TIMEOUT) == (5.0, 10.0)


def test_a_request_that_trickles_in_is_cut_off(monkeypatch):
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT", 0.1)

    async def scenario():
        async with serving() as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(10):
                    while True:
                        writer.write(b"G")
                        await writer.drain()
                        await asyncio.sleep(0.01)
            except ConnectionError:
                return server.counters
            finally:
                writer.close()

    counters = asyncio.run(scenario())
    assert (counters.timeouts, counters.requests) == (1, 0)


def test_an_idle_connection_is_cut_off(monkeypatch):
    monkeypatch.setattr(http_server, "IDLE_TIMEOUT", 0.05)

    async def scenario():
        async with serving() as (server, port):
            await exchange(port, GET)
            return server.counters

    counters = asyncio.run(scenario())
    assert (counters.requests, counters.timeouts) == (1, 1)


def test_a_handler_that_fails_is_answered_with_a_fault_and_logged(caplog):
    async def handler(request, peer):
        raise RuntimeError("broken")

    async def scenario():
        async with serving(handler) as (server, port):
            return await exchange(port, LAST), server.counters

    with caplog.at_level(logging.ERROR, logger="igdpcp.http"):
        answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"<errorCode>501</errorCode>" in answer
    assert counters.failures == 1
    assert "client=127.0.0.1" in caplog.text
    assert "broken" in caplog.text


@pytest.mark.parametrize(
    ("error", "start", "part"),
    [
        (UpnpFault(402, "NewProtocol is missing"), b"HTTP/1.1 500 ", b"<errorCode>402</errorCode>"),
        (MalformedRequest("no XML"), b"HTTP/1.1 400 ", b"Content-Length: 0"),
    ],
)
def test_peer_errors_of_the_handler_are_answered(error, start, part):
    async def handler(request, peer):
        raise error

    async def scenario():
        async with serving(handler) as (server, port):
            return await exchange(port, LAST), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(start)
    assert part in answer
    assert counters.failures == 0


def test_malformed_bytes_are_answered_and_the_connection_ends():
    async def scenario():
        async with serving() as (server, port):
            return await exchange(port, b"\x00\x01\r\n\r\n"), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert counters.malformed == 1


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


def at_once(request, peer):
    answer = asyncio.get_running_loop().create_future()
    answer.set_result(HttpResponse(200, body=request.path.encode()))
    return answer


def test_many_pipelined_requests_that_are_answered_at_once_are_all_answered():
    count = 1000  # fits into the limit of what is pipelined, and is deeper than the interpreter's stack

    async def scenario():
        async with serving(at_once) as (_, port):
            return await exchange(port, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * count + LAST)

    assert asyncio.run(scenario()).count(b"200 OK") == count + 1


def test_others_have_their_turn_between_pipelined_requests():
    async def scenario():
        async with serving(at_once) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
            await reader.readuntil(b"/a")
            await exchange(port, LAST)
            seen = server.counters.requests
            writer.close()
            return seen

    assert asyncio.run(scenario()) < 1000


def test_a_handler_that_fails_at_once_is_answered():
    def handler(request, peer):
        raise MalformedRequest("no XML")

    async def scenario():
        async with serving(handler) as (server, port):
            return await exchange(port, LAST), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert counters.malformed == 1


def test_what_follows_a_refused_request_is_read_and_forgotten():
    async def scenario():
        async with serving() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\0\r\n\r\n")
            answer = await reader.read()
            writer.write(b"\0\r\n\r\n")
            await exchange(port, LAST)  # the server has had its turn to read it
            writer.close()
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert counters.malformed == 1


def test_the_refusal_of_a_long_body_can_be_read_by_who_still_sends_it():
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT * 4)

    async def scenario():
        async with serving() as (_, port):
            return await exchange(port, head, b"x" * BODY_LIMIT * 2, b"x" * BODY_LIMIT * 2)

    assert asyncio.run(scenario()).startswith(b"HTTP/1.1 413 ")


def test_closing_ends_handlers_and_connections():
    async def scenario():
        entered, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(request, peer):
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(handler) as (server, port):
            waiting = asyncio.create_task(exchange(port, GET))
            await entered.wait()
            await server.close()
            assert cancelled.is_set()
            assert await waiting == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(scenario())


def test_a_closed_server_can_serve_the_same_port_again():
    async def scenario():
        async with serving() as (server, port):
            await exchange(port, GET, end=True)
            await server.close()
            await server.start([(http_listener(LOOPBACK, port, ""), "br-lan")])
            return await exchange(port, LAST)

    assert asyncio.run(scenario()).endswith(b"/z")


def test_a_second_request_that_trickles_in_is_cut_off(monkeypatch):
    monkeypatch.setattr(http_server, "REQUEST_TIMEOUT", 0.05)

    async def scenario():
        async with serving() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            await reader.readuntil(b"/a")
            writer.write(b"G")
            await asyncio.wait_for(reader.read(), http_server.IDLE_TIMEOUT / 2)
            writer.close()
            return server.counters

    assert asyncio.run(scenario()).timeouts == 1


def test_what_is_sent_behind_a_request_waits_until_that_is_answered():
    async def scenario():
        entered, release = asyncio.Event(), asyncio.Event()

        async def handler(request, peer):
            entered.set()
            await release.wait()
            return HttpResponse(200, body=b"answered")

        async with serving(handler) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET)
            await entered.wait()
            writer.write(b"x" * BODY_LIMIT * 4)
            await exchange(port, b"\0\r\n\r\n")  # the server has had its turn to read both
            release.set()
            answer = await reader.readuntil(b"\r\n")
            writer.close()
            return answer

    assert asyncio.run(scenario()) == b"HTTP/1.1 200 OK\r\n"


def test_a_response_that_is_not_read_does_not_hold_the_connection(monkeypatch):
    monkeypatch.setattr(http_server, "IDLE_TIMEOUT", 0.0)
    size = 32 << 20

    async def handler(request, peer):
        return HttpResponse(200, body=bytes(size))

    async def scenario():
        async with serving(handler) as (server, port):
            return await exchange(port, LAST), server.counters

    answer, counters = asyncio.run(scenario())
    assert len(answer) < size
    assert counters.timeouts == 1
