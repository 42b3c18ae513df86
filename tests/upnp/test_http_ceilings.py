# SPDX-License-Identifier: Apache-2.0
"""What a hostile LAN host cannot do to the HTTP server: its ceilings, its time limits, and who gives way to whom."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import tracemalloc

import pytest

from igdpcp.config import MainConfig
from igdpcp.daemon import http_connection, http_parting, http_server
from igdpcp.daemon.http_server import HttpServer
from igdpcp.log import LINES_BURST
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.http import BODY_LIMIT, REQUEST_LIMIT, HttpResponse
from tests.support.http_exchange import GET, LAST, LOOPBACK, at_once, connect, exchange, serving
from tests.support.waiting import until

HOSTS = [f"127.0.0.{n}" for n in range(2, 20)]


async def hold(port, source, sent=b"G"):
    """A connection that has sent the beginning of a request, and stays so."""
    reader, writer = await connect(port, source)
    writer.write(sent)
    return reader, writer


async def is_reset(reader):
    try:
        return not await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return True


def let_go(connections):
    for _, writer in connections:
        writer.close()


# -- connections -------------------------------------------------------------------------------------------------------


def test_the_ceilings_are_those_that_control_points_need():
    main = MainConfig()
    assert (http_server.CONNECTIONS_LIMIT, http_server.CONNECTIONS_PER_HOST) == (128, 16)
    assert (main.max_connections, main.max_connections_per_host) == (128, 16)
    assert (http_connection.REQUEST_TIMEOUT, http_connection.IDLE_TIMEOUT) == (5.0, 10.0)
    assert http_connection.HANDLER_TIMEOUT < 30  # UPnP Device Architecture 1.1 section 3.2.2
    assert http_connection.RESPONSE_TIMEOUT == 10.0


def test_a_host_that_has_its_share_is_refused_by_reset_and_others_are_served():
    async def scenario():
        async with serving(max_connections_per_host=2) as (server, port):
            held = [await hold(port, HOSTS[0]) for _ in range(2)]
            await until(lambda: server.counters.connections == 2)
            reader, writer = await connect(port, HOSTS[0])
            writer.write(GET)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            other = await exchange(port, LAST, source=HOSTS[1])
            let_go(held[:1])
            await until(lambda: server.open_connections == 1)
            again = await exchange(port, LAST, source=HOSTS[0])
            let_go(held[1:])
            return other, again, server.counters

    other, again, counters = asyncio.run(scenario())
    assert other.endswith(b"/z")
    assert again.endswith(b"/z")
    assert (counters.over_limit, counters.gave_way) == (1, 0)


def test_the_same_address_on_another_lan_is_another_host():
    """Link-local addresses of IPv6 can be chosen to be those of a host on another LAN."""

    async def scenario():
        async with serving(max_connections_per_host=1) as (server, port):
            guest = http_listener(LOOPBACK, 0, "")
            await server.start([(guest, "br-guest")])
            held = await hold(guest.getsockname()[1], HOSTS[0])
            await until(lambda: server.open_connections)
            answer = await exchange(port, LAST, source=HOSTS[0])
            let_go([held])
            return answer

    assert asyncio.run(scenario()).endswith(b"/z")


def test_hosts_that_fill_the_server_cannot_lock_out_one_that_holds_fewer():
    async def scenario():
        async with serving(max_connections=6, max_connections_per_host=3) as (server, port):
            few = await hold(port, HOSTS[0])
            many = [await hold(port, HOSTS[1]) for _ in range(3)]
            some = [await hold(port, HOSTS[2]) for _ in range(2)]
            await until(lambda: server.counters.connections == 6)
            answer = await exchange(port, LAST, source=HOSTS[3])
            assert await is_reset(many[0][0])
            for reader, writer in [few, *many[1:], *some]:
                writer.write(LAST[1:])
                assert (await reader.read()).endswith(b"/z")
            let_go([few, *many, *some])
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.endswith(b"/z")
    assert (counters.gave_way, counters.over_limit) == (1, 0)


def test_one_machine_with_many_addresses_cannot_lock_out_others_either():
    async def scenario():
        async with serving(max_connections=4) as (server, port):
            held = [await hold(port, host) for host in HOSTS[:12]]
            answers = [await exchange(port, LAST, source=host) for host in HOSTS[12:16]]
            let_go(held)
            return answers, server.counters

    answers, counters = asyncio.run(scenario())
    assert all(answer.endswith(b"/z") for answer in answers)
    assert counters.over_limit == 0


def test_a_host_that_holds_as_many_as_any_other_is_refused_when_the_server_is_full():
    async def scenario():
        async with serving(max_connections=4, max_connections_per_host=3) as (server, port):
            held = [await hold(port, host) for host in HOSTS[:2] for _ in range(2)]
            await until(lambda: server.counters.connections == 4)
            answer = await exchange(port, LAST, source=HOSTS[0])
            let_go(held)
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer == b""
    assert (counters.gave_way, counters.over_limit) == (0, 1)


def test_who_waits_for_an_answer_never_gives_way():
    async def scenario():
        release = asyncio.Event()

        async def handler(request, peer):
            await release.wait()
            return HttpResponse(200, body=b"answered", close=True)

        async with serving(handler, max_connections=2) as (server, port):
            waiting = [asyncio.create_task(exchange(port, GET, source=HOSTS[0])) for _ in range(2)]
            await until(lambda: server.counters.requests == 2)
            refused = await exchange(port, GET, source=HOSTS[1])
            release.set()
            return refused, [await task for task in waiting], server.counters

    refused, answers, counters = asyncio.run(scenario())
    assert refused == b""
    assert all(answer.endswith(b"answered") for answer in answers)
    assert (counters.gave_way, counters.over_limit) == (0, 1)


def test_who_does_not_read_its_response_gives_way(monkeypatch):
    monkeypatch.setattr(http_server, "UNSENT_LIMIT", 1 << 30)

    async def handler(request, peer):
        return HttpResponse(200, body=bytes(16 << 20) if request.path == "/z" else b"answered", close=True)

    async def scenario():
        async with serving(handler, max_connections=2) as (server, port):
            unread = [await hold(port, HOSTS[0], LAST) for _ in range(2)]
            for _, writer in unread:
                writer.transport.pause_reading()
            await until(lambda: server.counters.requests == 2 and server.unsent)
            answer = await exchange(port, GET, source=HOSTS[1])
            let_go(unread)
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.endswith(b"answered")
    assert (counters.gave_way, counters.over_limit) == (1, 0)


def test_who_sends_request_upon_request_gives_way_between_them():
    async def scenario():
        async with serving(max_connections=1) as (server, port):
            reader, writer = await connect(port, HOSTS[0])
            writer.write(GET * 400)
            await reader.readuntil(b"/a")
            answer = await exchange(port, LAST, source=HOSTS[1])
            writer.close()
            return answer, server.counters

    answer, counters = asyncio.run(scenario())
    assert answer.endswith(b"/z")
    assert counters.requests < 400


def test_the_addresses_of_one_host_have_one_share_together():
    def host_of(address, device):
        return "twofold" if str(address) in HOSTS[:2] else address

    async def scenario():
        async with serving(max_connections_per_host=2, host_of=host_of) as (server, port):
            held = [await hold(port, host) for host in HOSTS[:2]]
            await until(lambda: server.counters.connections == 2)
            answers = [await exchange(port, LAST, source=host) for host in HOSTS[:3]]
            let_go(held)
            return answers, server.counters.over_limit

    (first, second, other), over_limit = asyncio.run(scenario())
    assert (first, second, over_limit) == (b"", b"", 2)
    assert other.endswith(b"/z")


def test_a_connection_that_sends_nothing_takes_no_place():
    """KTorrent opens one to learn its own address."""

    async def scenario():
        async with serving(max_connections_per_host=1) as (_, port):
            _, silent = await connect(port)
            answer = await exchange(port, LAST)
            silent.close()
            return answer

    assert asyncio.run(scenario()).endswith(b"/z")


def test_a_connection_that_sends_nothing_is_ended(monkeypatch):
    monkeypatch.setattr(http_connection, "REQUEST_TIMEOUT", 0.05)

    async def scenario():
        async with serving() as (server, port):
            reader, writer = await connect(port)
            ended = await is_reset(reader)
            writer.close()
            return ended, server.counters.timeouts

    assert asyncio.run(scenario()) == (True, 1)


def test_a_connection_that_is_refused_before_it_sends_anything_is_reset_too():
    async def scenario():
        async with serving(admit=lambda address, device: False) as (_, port):
            reader, writer = await connect(port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    asyncio.run(scenario())


def test_a_connection_that_was_answered_for_the_last_time_takes_no_place():
    async def scenario():
        async with serving(max_connections_per_host=1) as (server, port):
            held = []
            for _ in range(5):
                reader, writer = await connect(port)
                writer.write(LAST)
                assert (await reader.read()).endswith(b"/z")
                held.append((reader, writer))
            let_go(held)
            return server.counters.over_limit

    assert asyncio.run(scenario()) == 0


def test_others_have_their_turn_between_the_connections_of_a_burst(monkeypatch):
    monkeypatch.setattr(http_server, "ACCEPT_BATCH", 4)
    monkeypatch.setattr(http_server, "ACCEPT_TURN", 60.0)
    assert turns_of_a_burst() == [4, 8, 10]


def test_others_have_their_turn_when_the_connections_of_a_burst_take_long(monkeypatch):
    monkeypatch.setattr(http_server, "ACCEPT_TURN", 0.0)
    assert turns_of_a_burst() == list(range(1, 11))


def turns_of_a_burst():
    """How many of ten waiting connections were answered when the loop came to something else, each time."""
    seen = []

    async def scenario():
        loop = asyncio.get_running_loop()

        def handler(request, peer):
            if server.counters.requests - (seen[-1] if seen else 0) == 1:
                loop.call_soon(lambda: seen.append(server.counters.requests))
            return at_once(request, peer)

        async with serving(handler) as (server, port):
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
            for client in clients:
                client.sendall(LAST)
            await until(lambda: seen and seen[-1] == 10)
            for client in clients:
                client.close()

    asyncio.run(scenario())
    return seen


class _Full(socket.socket):
    """A listener of a process that has too many files open, for a while."""

    full = True

    def accept(self):
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_a_router_that_has_no_room_for_a_connection_is_asked_again_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(http_server, "ACCEPT_PAUSE", 0.05)

    async def scenario():
        loop = asyncio.get_running_loop()
        server = HttpServer(at_once, lambda address, device: True)
        listener = _Full(fileno=http_listener(LOOPBACK, 0, "").detach())
        await server.start([(listener, "br-lan")])
        began = loop.time()
        waiting = asyncio.create_task(exchange(listener.getsockname()[1], LAST))
        await until(lambda: server.counters.accept_errors == 3)
        took = loop.time() - began
        listener.full = False
        answer = await waiting
        await server.close()
        return answer, took

    answer, took = asyncio.run(scenario())
    assert answer.endswith(b"/z")
    assert took >= 2 * 0.05
    assert "Too many open files" in caplog.text


# -- time --------------------------------------------------------------------------------------------------------------


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


# -- bytes -------------------------------------------------------------------------------------------------------------


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
