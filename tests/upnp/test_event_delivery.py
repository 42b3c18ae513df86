# SPDX-License-Identifier: Apache-2.0
"""Events over real sockets: what a subscriber receives, and what a hostile one cannot cost."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

import pytest

from igdpcp.daemon import event_delivery
from igdpcp.daemon.event_delivery import ANSWER_LIMIT, deliver
from igdpcp.daemon.event_publisher import EventPublisher
from igdpcp.daemon.http_server import HttpServer, Peer
from igdpcp.errors import MalformedRequest, OurFault
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.gena import Callback, notify_message, propertyset
from igdpcp.upnp.services import WAN_IP_CONNECTION
from tests.lab.namespaces import Host
from tests.support.events import Event

SUBSCRIBER, OURS = ip_address("127.0.0.1"), ip_address("127.0.0.2")
PEER = Peer(SUBSCRIBER, OURS, "")
DEVICES = ("br-lan", "br-guest")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
EVENT = notify_message(Callback(SUBSCRIBER, 1, "/cb"), "uuid:1", 0, propertyset({"ConnectionStatus": "Connected"}))


@asynccontextmanager
async def subscriber(behave):
    """A subscriber's port; ``behave`` gets reader and writer of each connection."""

    async def serve(reader, writer):
        with suppress(ConnectionError):
            await behave(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, str(SUBSCRIBER), 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answering(*pieces):
    async def behave(reader, writer):
        await reader.readexactly(len(EVENT))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return behave


def delivered_to(behave, peer=PEER):
    """What ``deliver`` makes of such a subscriber."""

    async def scenario():
        async with subscriber(behave) as port:
            return await bounded(deliver(peer, port, EVENT))

    return asyncio.run(scenario())


async def bounded(delivery):
    """The outcome of a delivery that ends by itself."""
    patience = asyncio.timeout(5)
    try:
        async with patience:
            return await delivery
    finally:
        assert not patience.expired()


def test_the_event_arrives_whole_from_the_address_that_the_subscriber_knows():
    seen = []

    async def behave(reader, writer):
        seen.append((await reader.readexactly(len(EVENT)), writer.get_extra_info("peername")[0]))
        writer.write(OK)

    assert delivered_to(behave) == 200
    assert seen == [(EVENT, str(OURS))]


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([OK], 200),
        ([b"HTTP/1.", b"1 412 Precondition", b" Failed\r\n\r\n"], 412),
        ([b"HTTP/1.0 200 OK"], 200),
        ([b"HTTP/1.1 200 OK\r\n", b"X: " + b"a" * 100_000], 200),
    ],
)
def test_only_the_status_line_of_the_answer_matters(pieces, status):
    assert delivered_to(answering(*pieces)) == status


@pytest.mark.parametrize("pieces", [[], [b"hello\r\n"], [b"HTTP/1.1\r\n"], [b"\0" * ANSWER_LIMIT]])
def test_what_is_no_answer_is_a_failure(pieces):
    with pytest.raises(MalformedRequest):
        delivered_to(answering(*pieces))


def test_of_a_subscriber_that_sends_without_end_only_so_much_is_read():
    received = []

    async def behave(reader, writer):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ANSWER_LIMIT)
        while True:
            writer.write(b"x" * 1024)
            await writer.drain()
            received.append(1024)

    with pytest.raises(MalformedRequest):
        delivered_to(behave)
    assert sum(received) < 10_000_000, "it ends soon after the limit; what is in between are the kernel's buffers"


def test_a_subscriber_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(event_delivery, "DELIVERY_TIMEOUT", 0.2)

    async def behave(reader, writer):
        await reader.read()  # until it is given up

    with pytest.raises(TimeoutError):
        delivered_to(behave)


def test_a_subscriber_that_answers_byte_by_byte_is_given_up(monkeypatch):
    monkeypatch.setattr(event_delivery, "DELIVERY_TIMEOUT", 0.2)

    async def behave(reader, writer):
        while True:
            writer.write(b"H")
            await writer.drain()
            await asyncio.sleep(0.01)

    with pytest.raises(TimeoutError):
        delivered_to(behave)


def test_a_subscriber_that_does_not_accept_is_given_up_sooner(monkeypatch):
    monkeypatch.setattr(event_delivery, "CONNECT_TIMEOUT", 0.2)
    with socket.socket() as full, socket.socket() as first:
        full.bind((str(SUBSCRIBER), 0))
        full.listen(0)
        first.connect(full.getsockname())

        with pytest.raises(TimeoutError):
            asyncio.run(bounded(deliver(PEER, full.getsockname()[1], EVENT)))


def test_a_closed_port_and_an_address_that_is_no_longer_ours_are_failures():
    with socket.socket() as unused:
        unused.bind((str(SUBSCRIBER), 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(deliver(PEER, port, EVENT))
    with pytest.raises(OurFault, match="Cannot assign"):
        delivered_to(answering(OK), Peer(SUBSCRIBER, ip_address("192.0.2.1"), ""))
    with pytest.raises(OurFault, match="no such network device"):
        delivered_to(answering(OK), Peer(SUBSCRIBER, OURS, "br-gone"))


def test_a_subscription_over_tcp_is_answered_before_its_first_event_comes():
    events = []

    async def scenario():
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        client = socket.socket()

        async def behave(reader, writer):
            answered = client.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            events.append((answered, Event.parse(head + await reader.readexactly(length))))
            writer.write(OK)
            told.set()

        publisher = EventPublisher(
            read=lambda service, tree, asker: {"ExternalIPAddress": "203.0.113.7"},
            http_port=5000,
            max_subscriptions=64,
            max_subscriptions_per_host=8,
            rng=random.Random(1),
        )

        def handler(request, peer):
            answer = loop.create_future()
            answer.set_result(publisher.handle(request, peer, WAN_IP_CONNECTION, 1))
            return answer

        server = HttpServer(handler, lambda address, device: True, "tester/1")
        listener = http_listener(SUBSCRIBER, 0, "")
        gateway = listener.getsockname()
        await server.start([(listener, "")])
        async with subscriber(behave) as port, asyncio.timeout(5):
            client.setblocking(False)
            await loop.sock_connect(client, gateway)
            callback = f"CALLBACK: <http://{SUBSCRIBER}:{port}/cb>\r\nNT: upnp:event\r\nTIMEOUT: Second-1801\r\n"
            await loop.sock_sendall(client, f"SUBSCRIBE /evt/IPConn HTTP/1.1\r\nHost: a\r\n{callback}\r\n".encode())
            await told.wait()
        client.close()
        await publisher.close()
        await server.close()

    asyncio.run(scenario())
    ((answer, event),) = events
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"\r\nSID: {event.sid}\r\n".encode() in answer
    assert b"\r\nTIMEOUT: Second-1801\r\n" in answer
    assert b"\r\nContent-Length: 0\r\n" in answer
    assert (event.seq, event.values) == (0, {"ExternalIPAddress": "203.0.113.7"})


@pytest.mark.lab
def test_events_reach_a_link_local_subscriber_through_the_device_of_its_lan(tmp_path):
    """The same link-local address may be on every LAN: it is the device that tells which is meant."""
    names = [f"events{os.getpid()}{end}" for end in "rc"]
    router, client = (Host(name, name, "", tmp_path) for name in names)
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        for device in DEVICES:
            peer = ["peer", "name", "eth-" + device[3:], "netns", names[1]]
            subprocess.run(["ip", "-n", names[0], "link", "add", device, "type", "veth", *peer], check=True)
            for host, name, address in ((router, device, "fe80::1"), (client, "eth-" + device[3:], "fe80::2")):
                host.run(["ip", "addr", "add", f"{address}/64", "dev", name, "nodad"])
                host.run(["ip", "link", "set", name, "up"])
        listener = client.socket(socket.SOCK_STREAM, socket.AF_INET6)
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        listener.setblocking(False)

        async def scenario(device):
            loop = asyncio.get_running_loop()
            peer = Peer(ip_address("fe80::2"), ip_address("fe80::1"), device)
            delivery = loop.create_task(deliver(peer, port, EVENT))
            async with asyncio.timeout(5):
                connection, (address, *_, scope) = await loop.sock_accept(listener)
                with connection:
                    assert await loop.sock_recv(connection, 4096) == EVENT
                    await loop.sock_sendall(connection, OK)
                    assert await delivery == 200
            return address.partition("%")[0], scope

        with listener:
            seen = {device: router.inside(lambda device=device: asyncio.run(scenario(device))) for device in DEVICES}
        assert {address for address, _ in seen.values()} == {"fe80::1"}
        assert len({scope for _, scope in seen.values()}) == 2
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
