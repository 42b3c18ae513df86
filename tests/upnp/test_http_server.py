# SPDX-License-Identifier: Apache-2.0
"""The HTTP server on the loopback device: what a control point meets. Its ceilings and limits have their own files."""

from __future__ import annotations

import asyncio
import logging
import socket
from ipaddress import IPv6Address

import pytest

from igdpcp.daemon import http_connection
from igdpcp.daemon.http_server import HttpServer
from igdpcp.errors import MalformedRequest, UpnpFault
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.http import BODY_LIMIT, HttpResponse
from tests.support.http_exchange import GET, LAST, LOOPBACK, at_once, connect, exchange, serving
from tests.support.waiting import until


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


def test_many_pipelined_requests_that_are_answered_at_once_are_all_answered():
    count = 1000  # fits into the limit of what is pipelined, and is deeper than the interpreter's stack

    async def scenario():
        async with serving() as (_, port):
            return await exchange(port, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * count + LAST)

    assert asyncio.run(scenario()).count(b"200 OK") == count + 1


def refusing(request, peer):
    raise MalformedRequest("no XML")


def breaking(request, peer):
    raise RuntimeError("broken")


def cancelling(request, peer):
    answer = asyncio.get_running_loop().create_future()
    answer.cancel()
    return answer


@pytest.mark.parametrize(
    ("handler", "status", "malformed", "failures"),
    [(refusing, b"400", 1, 0), (breaking, b"500", 0, 1), (cancelling, b"500", 0, 1)],
)
def test_a_handler_that_fails_at_once_is_answered(handler, status, malformed, failures):
    async def scenario():
        async with serving(handler) as (server, port):
            return await exchange(port, LAST), server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert (counters.malformed, counters.failures) == (malformed, failures)


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
                await connect(port)

    asyncio.run(scenario())


def test_a_closed_server_can_serve_the_same_port_again():
    async def scenario():
        async with serving() as (server, port):
            await exchange(port, GET, end=True)
            await server.close()
            await server.start([(http_listener(LOOPBACK, port, ""), "br-lan")])
            return await exchange(port, LAST)

    assert asyncio.run(scenario()).endswith(b"/z")


def test_what_is_sent_behind_a_request_waits_until_that_is_answered(monkeypatch):
    monkeypatch.setattr(http_connection, "REQUEST_TIMEOUT", 0.1)

    async def scenario():
        loop = asyncio.get_running_loop()
        entered, release = asyncio.Event(), asyncio.Event()

        async def handler(request, peer):
            entered.set()
            await release.wait()
            return HttpResponse(200, body=b"answered")

        async with serving(handler) as (server, port):
            reader, writer = await connect(port)
            writer.write(GET[:9])
            await until(lambda: server.open_connections)
            writer.write(GET[9:])
            await entered.wait()
            writer.write(b"x" * BODY_LIMIT * 4)
            end = loop.time() + 2 * http_connection.REQUEST_TIMEOUT
            await until(lambda: loop.time() > end)
            release.set()
            answer = await reader.readuntil(b"\r\n")
            writer.close()
            return answer, server.counters.timeouts

    assert asyncio.run(scenario()) == (b"HTTP/1.1 200 OK\r\n", 0)


def test_a_control_point_may_come_by_ipv6():
    seen = []

    def handler(request, peer):
        seen.append(peer)
        return at_once(request, peer)

    async def scenario():
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        server = HttpServer(handler, lambda address, device: True)
        await server.start([(listener, "br-lan")])
        reader, writer = await asyncio.open_connection("::1", listener.getsockname()[1])
        writer.write(LAST)
        answer = await reader.read()
        writer.close()
        await server.close()
        return answer

    assert asyncio.run(scenario()).endswith(b"/z")
    assert [(peer.address, peer.local_address) for peer in seen] == [(IPv6Address("::1"),) * 2]


def test_a_body_that_is_shorter_than_announced_is_answered_when_the_client_ends_its_side():
    async def handler(request, peer):
        return HttpResponse(200, body=request.body)

    async def scenario():
        async with serving(handler) as (_, port):
            return await exchange(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nbody", end=True)

    assert asyncio.run(scenario()).endswith(b"\r\n\r\nbody")


def test_everything_that_was_pipelined_before_the_client_ended_its_side_is_answered():
    async def scenario():
        async with serving() as (_, port):
            return await exchange(port, GET * 5, end=True)

    assert asyncio.run(scenario()).count(b"200 OK") == 5


def test_a_client_that_waits_for_100_continue_is_told_to_go_on():
    async def scenario():
        async with serving() as (_, port):
            reader, writer = await connect(port)
            writer.write(
                LAST.replace(b"GET", b"POST").replace(b"Host", b"Expect: 100-continue\r\nContent-Length: 1\r\nHost")
            )
            told = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"x")
            answer = await reader.read()
            writer.close()
            return told, answer

    told, answer = asyncio.run(scenario())
    assert told == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert answer.endswith(b"/z")


def test_what_comes_after_the_last_response_does_not_take_that_away():
    """Some clients end a body with a line end that they do not count; it may come late."""

    async def scenario():
        async with serving() as (_, port):
            reader, writer = await connect(port)
            writer.write(LAST)
            start = await reader.readexactly(1)
            writer.write(b"\r\n")
            await exchange(port, LAST)  # both sides have had their turn
            answer = start + await reader.read()
            writer.close()
            return answer

    assert asyncio.run(scenario()).endswith(b"/z")


def test_a_response_longer_than_what_the_kernel_takes_arrives_whole():
    size = 3 << 20

    async def handler(request, peer):
        return HttpResponse(200, body=bytes(size))

    async def scenario():
        async with serving(handler) as (_, port):
            return await exchange(port, GET, LAST)

    assert len(asyncio.run(scenario())) > 2 * size


@pytest.mark.parametrize(
    ("now", "date"), [(1704067199.0, None), (1704067200.5, b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n")]
)
def test_responses_have_the_date_once_the_clock_was_set(now, date):
    async def scenario():
        async with serving(wall_clock=lambda: now) as (_, port):
            return await exchange(port, LAST)

    answer = asyncio.run(scenario())
    assert b"\r\nServer: tester/1\r\n" in answer
    assert date in answer if date else b"Date" not in answer


def test_the_date_goes_on():
    now = 1704067200.0

    async def scenario():
        nonlocal now
        async with serving(wall_clock=lambda: now) as (_, port):
            await exchange(port, LAST)
            now += 61
            return await exchange(port, LAST)

    assert b"Date: Mon, 01 Jan 2024 00:01:01 GMT\r\n" in asyncio.run(scenario())


def test_one_lan_can_be_left_while_another_stays():
    async def scenario():
        entered, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(request, peer):
            if request.path == "/z" or peer.device == "br-lan":
                return HttpResponse(200, body=peer.device.encode())
            try:
                entered.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with serving(handler) as (server, port):
            guest = http_listener(LOOPBACK, 0, "")
            guest_port = guest.getsockname()[1]
            await server.start([(guest, "br-guest")])
            reader, writer = await connect(port)
            writer.write(GET)
            await reader.readuntil(b"br-lan")
            waiting = asyncio.create_task(exchange(guest_port, GET))
            await entered.wait()
            await server.close_listener(guest)
            assert cancelled.is_set()
            assert await waiting == b""
            with pytest.raises(ConnectionRefusedError):
                await connect(guest_port)
            writer.write(LAST)
            answer = await reader.read()
            writer.close()
            await server.close_listener(guest)
            return answer

    assert asyncio.run(scenario()).endswith(b"br-lan")
