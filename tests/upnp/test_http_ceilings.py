# SPDX-License-Identifier: Apache-2.0
"""What a hostile LAN host cannot do to the HTTP server: its ceilings for connections, and who gives way to whom."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from igdpcp.config import MainConfig
from igdpcp.daemon import http_connection, http_server
from igdpcp.daemon.http_server import HttpServer
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.http import HttpResponse
from tests.support.http_exchange import (
    GET,
    HOSTS,
    LAST,
    LOOPBACK,
    at_once,
    connect,
    exchange,
    hold,
    is_reset,
    let_go,
    serving,
)
from tests.support.waiting import until


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
