# SPDX-License-Identifier: Apache-2.0
"""SSDP on a LAN of two network namespaces: a router and one host."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import struct
import subprocess
import sys
from collections import namedtuple
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from types import SimpleNamespace

import pytest

from igdpcp.daemon import ssdp_server
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.ssdp_server import SsdpLan, SsdpServer
from igdpcp.errors import OurFault
from igdpcp.model import Protocol
from igdpcp.net.sockets import (
    SSDP_GROUP,
    SSDP_PORT,
    http_listener,
    pcp_announce_listener,
    port_in_use,
    ssdp_listener,
    ssdp_sender,
    udp_connected,
)
from igdpcp.upnp.description import DeviceIdentity, documents, udns_from, with_config_id
from igdpcp.upnp.http import HttpResponse, xml_response
from igdpcp.upnp.soap import encode_response, parse_call, soapaction_of
from igdpcp.upnp.ssdp import GATEWAY, Search, alive, answers, parse_search, search_request
from tests.lab.namespaces import Host

pytestmark = pytest.mark.lab

ROUTER, CLIENT = IPv4Address("192.168.77.1"), IPv4Address("192.168.77.2")
CLIENT_TOO = IPv4Address("192.168.77.3")
LAN = IPv4Network("192.168.77.0/24")
DEVICE = "br-lan"
IP_RECVTTL = 12  # linux/in.h
IDENTITY = with_config_id(DeviceIdentity("igdpcp", "1", udns_from("machine"), 7, "", "1.2.3"))
STRANGER = with_config_id(DeviceIdentity("other", "1", udns_from("another"), 7, "", "1.2.3"))
LOCATION = b"LOCATION: http://192.168.77.1:5000/rootDesc.xml\r\n"

Homes = namedtuple("Homes", "router client")


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    names = [f"ssdp{os.getpid()}{end}" for end in "rc"]
    hosts = [Host(n, n, str(a), tmp_path_factory.mktemp(n)) for n, a in zip(names, (ROUTER, CLIENT), strict=True)]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        link = ["ip", "-n", names[0], "link", "add", DEVICE, "type", "veth", "peer", "eth0", "netns", names[1]]
        subprocess.run(link, check=True)
        for host, device in zip(hosts, (DEVICE, "eth0"), strict=True):
            host.run(["ip", "addr", "add", f"{host.address}/24", "dev", device])
            host.run(["ip", "link", "set", device, "up"])
            host.run(["ip", "link", "set", "lo", "up"])
        hosts[1].run(["ip", "addr", "add", f"{CLIENT_TOO}/24", "dev", "eth0"])
        hosts[1].run(["ip", "route", "add", "default", "via", str(ROUTER)])
        yield Homes(*hosts)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def in_router(homes, scenario):
    """Run a coroutine in the router's namespace."""
    return homes.router.inside(lambda: asyncio.run(scenario()))


def client_socket(homes, port=0, address=CLIENT):
    """A socket of the host on the LAN; with port 1900 it hears the SSDP group."""
    sock = homes.client.socket(socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("" if port else str(address), port))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, CLIENT.packed)
    if port:
        membership = struct.pack("4s4si", SSDP_GROUP.packed, CLIENT.packed, 0)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    return sock


async def received(sock, wanted, seconds=5.0):
    """Datagrams until one of them holds ``wanted``; TimeoutError when none does."""
    loop = asyncio.get_running_loop()
    datagrams = []
    async with asyncio.timeout(seconds):
        while not any(wanted in data for data, _ in datagrams):
            datagrams.append(await loop.sock_recvfrom(sock, 4096))
    return datagrams


def search(sock, target=GATEWAY, to=str(SSDP_GROUP)):
    sock.sendto(search_request(target, 1), (to, SSDP_PORT))


@asynccontextmanager
async def advertising(force=False, igd_version="auto", admit=lambda address, device: address == CLIENT):
    server = SsdpServer(
        identity=IDENTITY,
        http_port=5000,
        igd_version=igd_version,
        notify_interval=900,
        force=force,
        admit=admit,
        rng=random.Random(1),
    )
    assert await server.start([SsdpLan(DEVICE, ROUTER)]) == {}
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def another_gateway(sock, web, address=CLIENT):
    """A gateway that answers every search with ``sock``; ``web`` is its TCP socket on ``address``."""
    loop = asyncio.get_running_loop()
    listen(web, address)

    def answer():
        data, sender = sock.recvfrom(4096)
        if wanted := parse_search(data):
            for reply in answers(wanted, STRANGER, f"http://{address}:80", "1"):
                sock.sendto(reply, sender)

    loop.add_reader(sock, answer)
    try:
        yield
    finally:
        loop.remove_reader(sock)
        sock.close()
        web.close()


def foreign_gateway(homes):
    return another_gateway(client_socket(homes, SSDP_PORT), homes.client.socket(socket.SOCK_STREAM))


def listen(web, address):
    web.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    web.bind((str(address), 80))
    web.listen()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside only
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("to", [str(SSDP_GROUP), str(ROUTER)])
def test_a_search_that_comes_at_the_start_is_answered_from_port_1900_within_a_third_of_a_second(homes, to):
    async def scenario():
        loop = asyncio.get_running_loop()
        with client_socket(homes) as sock:
            began = loop.time()
            async with advertising():
                search(sock, to=to)
                ((data, sender),) = await received(sock, b"200 OK")
                return data, sender, loop.time() - began

    data, sender, seconds = in_router(homes, scenario)
    assert LOCATION in data
    assert sender == (str(ROUTER), SSDP_PORT)
    assert seconds < 0.35


def test_later_searches_are_answered_at_once(homes):
    async def scenario():
        loop = asyncio.get_running_loop()
        with client_socket(homes) as sock:
            async with advertising(force=True) as server:
                await until(lambda: server.advertising)
                began = loop.time()
                search(sock, target="urn:schemas-upnp-org:device:InternetGatewayDevice:2")
                ((data, _),) = await received(sock, b"200 OK")
                return data, loop.time() - began, server.counters

    data, seconds, counters = in_router(homes, scenario)
    assert b"LOCATION: http://192.168.77.1:5000/v2/rootDesc.xml\r\n" in data
    assert seconds < 0.05
    assert (counters.searches, counters.answers) == (1, 1)


def test_goodbye_comes_first_then_everything_twice_and_goodbye_at_the_end(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising() as server:
                await until(lambda: server.counters.announcements == 20 + 10 + 10)
            heard = []
            while True:
                try:
                    heard.append(sock.recv(4096))
                except BlockingIOError:
                    return heard

    heard = in_router(homes, scenario)
    kinds = ["byebye" if b"ssdp:byebye" in data else "alive" for data in heard if data.startswith(b"NOTIFY")]
    assert kinds == ["byebye"] * 20 + ["alive"] * 20 + ["byebye"] * 20


def test_a_search_from_outside_the_lan_is_not_answered(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True, admit=lambda address, device: False) as server:
                search(sock)
                await until(lambda: server.counters.not_on_lan)
                return server.counters

    counters = in_router(homes, scenario)
    assert (counters.searches, counters.answers) == (0, 0)


def test_beside_another_gateway_it_stays_silent_and_says_so(homes, caplog):
    async def scenario():
        async with foreign_gateway(homes), advertising() as server:
            await until(lambda: server.conflict)
            with client_socket(homes) as sock:
                search(sock, target="urn:schemas-upnp-org:device:InternetGatewayDevice:2", to=str(ROUTER))
                with pytest.raises(TimeoutError):
                    await received(sock, b"", seconds=0.4)
            return server.conflict, server.advertising, server.counters

    conflict, is_advertising, counters = in_router(homes, scenario)
    assert conflict.startswith(f"{CLIENT} ({DEVICE}) http://{CLIENT}:80/rootDesc.xml")
    assert not is_advertising
    assert (counters.announcements, counters.answers) == (0, 0)
    (record,) = [record for record in caplog.records if "event=ssdp_conflict" in record.message]
    assert "option force 1" in record.message


def test_another_gateway_on_the_router_itself_counts(homes):
    async def scenario():
        here = another_gateway(ssdp_listener(DEVICE, ROUTER), socket.socket(), ROUTER)
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
                await until(lambda: server.counters.announcements == 20 + 10 + 10)
                before = server.counters.not_on_lan
                sock.sendto(alive(STRANGER, "http://192.168.77.2:80", "1")[0], (str(ROUTER), SSDP_PORT))
                await until(lambda: server.counters.not_on_lan > before)
                return server.conflict

    assert in_router(homes, scenario) is None


def test_searches_that_wait_have_a_ceiling(homes, monkeypatch):
    monkeypatch.setattr(ssdp_server, "WAITING_SEARCHES_LIMIT", 2)

    async def scenario():
        with client_socket(homes) as sock:
            async with advertising() as server:
                for _ in range(5):
                    search(sock)
                await until(lambda: server.advertising)
                return server.counters

    counters = in_router(homes, scenario)
    assert (counters.answers, counters.over_limit) == (2, 3)


def test_announcements_travel_two_hops(homes):
    def scenario():
        with client_socket(homes, SSDP_PORT) as sock, ssdp_sender(DEVICE, ROUTER) as sender:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            sender.sendto(b"x", (str(SSDP_GROUP), SSDP_PORT))
            sock.settimeout(5)
            _, ((_, _, ttl),), _, source = sock.recvmsg(100, 100)
        return int.from_bytes(ttl, sys.byteorder), source[0]

    assert homes.router.inside(scenario) == (2, str(ROUTER))


@pytest.mark.parametrize(("device", "outcome"), [(DEVICE, 0), ("lo", errno.ECONNREFUSED)])
def test_the_http_port_is_open_to_its_device_only(homes, device, outcome):
    def scenario():
        with http_listener(ROUTER, 5002, device), homes.client.socket(socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            return sock.connect_ex((str(ROUTER), 5002))

    assert homes.router.inside(scenario) == outcome


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
                sock.sendto(alive(STRANGER, "http://192.168.77.2:80", "1")[0], (str(SSDP_GROUP), SSDP_PORT))
                await received(sock, b"ssdp:byebye")
                return server.conflict, server.advertising

    conflict, is_advertising = in_router(homes, scenario)
    assert str(CLIENT) in conflict
    assert not is_advertising


def test_it_advertises_again_when_the_other_gateway_is_gone(homes, monkeypatch):
    monkeypatch.setattr(ssdp_server, "CONFLICT_RECHECK", 0.05)
    monkeypatch.setattr(ssdp_server, "RECHECK_SPACING", 0.1)

    async def scenario():
        async with advertising() as server:
            async with foreign_gateway(homes):
                await until(lambda: server.conflict)
            await until(lambda: server.advertising)
            return server.conflict

    assert in_router(homes, scenario) is None


def test_our_own_announcements_and_answers_are_no_conflict(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising() as server:
                await until(lambda: server.advertising)
                (reply,) = answers(Search(GATEWAY, 1), IDENTITY, "http://192.168.77.2:80", "1")
                before = server.counters.malformed
                sock.sendto(reply, (str(ROUTER), SSDP_PORT))
                sock.sendto(alive(IDENTITY, "http://192.168.77.2:80", "1")[0], (str(SSDP_GROUP), SSDP_PORT))
                sock.sendto(b"nonsense", (str(ROUTER), SSDP_PORT))
                await until(lambda: server.counters.malformed > before)
                return server.conflict

    assert in_router(homes, scenario) is None


def test_more_searches_than_the_ceiling_are_dropped(homes, monkeypatch):
    monkeypatch.setattr(ssdp_server, "SEARCHES_PER_SECOND", 3)

    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True) as server:
                await until(lambda: server.advertising)
                for _ in range(10):
                    search(sock)
                await until(lambda: server.counters.searches == 10)
                return server.counters

    counters = in_router(homes, scenario)
    assert 3 <= counters.answers <= 6
    assert counters.answers + counters.over_limit == 10


def test_searches_for_other_things_are_free(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True) as server:
                await until(lambda: server.advertising)
                for _ in range(2 * ssdp_server.SEARCHES_PER_SECOND):
                    search(sock, target="urn:dial-multiscreen-org:service:dial:1")
                search(sock)
                await received(sock, LOCATION)
                return server.counters

    assert in_router(homes, scenario).over_limit == 0


def test_one_hosts_searches_do_not_keep_another_from_its_answer(homes, monkeypatch):
    monkeypatch.setattr(ssdp_server, "SEARCHES_PER_SECOND", 4)
    monkeypatch.setattr(ssdp_server, "SEARCHES_PER_HOST", 2)

    async def scenario():
        with client_socket(homes) as flooding, client_socket(homes, address=CLIENT_TOO) as sock:
            async with advertising(force=True, admit=lambda address, device: True) as server:
                await until(lambda: server.advertising)
                for _ in range(20):
                    search(flooding)
                await until(lambda: server.counters.searches == 20)
                search(sock)
                await received(sock, LOCATION)
                return server.counters

    assert in_router(homes, scenario).over_limit >= 16


@pytest.mark.parametrize("location", [f"http://{CLIENT_TOO}:80", f"http://{CLIENT}:80", "http://gateway.example:80"])
def test_a_gateway_that_is_not_where_it_says_does_not_count(homes, location, caplog):
    """CLIENT_TOO is another address than the sender's; nobody listens at CLIENT."""
    caplog.set_level(logging.INFO, logger="igdpcp.ssdp")

    async def scenario():
        with homes.client.socket(socket.SOCK_STREAM) as web, client_socket(homes) as sock:
            listen(web, CLIENT_TOO)
            async with advertising() as server:
                await until(lambda: server.advertising)
                sock.sendto(alive(STRANGER, location, "1")[0], (str(SSDP_GROUP), SSDP_PORT))
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
                sock.sendto(alive(STRANGER, f"http://{CLIENT}:80", "1")[0], (str(ROUTER), SSDP_PORT))
                await until(lambda: server.conflict)
                return server.counters

    assert in_router(homes, scenario).announcements == 0


def test_an_unconfirmed_answer_delays_the_start_by_the_time_of_one_check(homes, monkeypatch):
    monkeypatch.setattr(ssdp_server, "CHECK_TIMEOUT", 0.1)

    async def scenario():
        loop = asyncio.get_running_loop()

        async def nobody_answers(*args):
            await asyncio.Event().wait()

        monkeypatch.setattr(loop, "create_connection", nobody_answers)
        with client_socket(homes) as sock:
            async with advertising() as server:
                began = loop.time()
                sock.sendto(alive(STRANGER, f"http://{CLIENT}:80", "1")[0], (str(ROUTER), SSDP_PORT))
                await until(lambda: server.advertising)
                return loop.time() - began, server.counters

    seconds, counters = in_router(homes, scenario)
    assert seconds < 0.5
    assert counters.unconfirmed == 1


def test_a_lan_that_cannot_be_opened_takes_nothing_from_the_others(homes):
    async def scenario():
        missing = SsdpLan("br-none", IPv4Address("192.168.78.1"))
        with client_socket(homes) as sock:
            async with advertising() as server:
                faults = await server.start([missing, SsdpLan(DEVICE, ROUTER)])
                search(sock)
                await received(sock, LOCATION)
                return [(lan.device, str(fault)) for lan, fault in faults.items()]

    ((device, text),) = in_router(homes, scenario)
    assert device == "br-none"
    assert "no such network device" in text


def test_upnpc_finds_a_connected_gateway_with_a_public_address(homes):
    outputs = {
        "NewConnectionStatus": "Connected",
        "NewLastConnectionError": "ERROR_NONE",
        "NewUptime": 60,
        "NewExternalIPAddress": "1.2.3.4",
        "NewConnectionType": "IP_Routed",
        "NewPossibleConnectionTypes": "IP_Routed",
        "NewWANAccessType": "Ethernet",
        "NewLayer1UpstreamMaxBitRate": 0,
        "NewLayer1DownstreamMaxBitRate": 0,
        "NewPhysicalLinkStatus": "Up",
        **{f"NewTotal{total}": 1 for total in ("BytesSent", "BytesReceived", "PacketsSent", "PacketsReceived")},
    }

    async def handler(request, peer):
        if request.method == "GET":
            document = documents(IDENTITY).get(request.path)
            return xml_response(200, document) if document else HttpResponse(404)
        call = parse_call(soapaction_of(request.headers), request.body)
        return xml_response(200, encode_response(call, outputs))

    async def scenario():
        http = HttpServer(handler, lambda address, device: address in LAN and device == DEVICE)
        await http.start([(http_listener(ROUTER, 5000, DEVICE), DEVICE)])
        try:
            async with advertising():
                return await asyncio.to_thread(homes.client.run, ["upnpc", "-s"])
        finally:
            await http.close()

    printed = in_router(homes, scenario).stdout
    assert "Found valid IGD : http://192.168.77.1:5000/ctl/IPConn" in printed
    assert "ExternalIPAddress = 1.2.3.4" in printed
    assert "Status : Connected" in printed


def test_sockets_say_what_to_do_when_they_cannot_be_made(homes):
    def failures():
        texts = []
        with http_listener(ROUTER, 5001, DEVICE):
            for make in (
                lambda: http_listener(ROUTER, 5001, DEVICE),
                lambda: http_listener(IPv4Address("192.168.78.1"), 5001, ""),
                lambda: ssdp_listener("br-none", ROUTER),
                lambda: ssdp_sender(DEVICE, IPv4Address("192.168.78.1")),
                lambda: pcp_announce_listener("br-none"),
                lambda: udp_connected("br-none", CLIENT, 5351),
                lambda: port_in_use(Protocol.TCP, IPv4Address("192.168.78.1"), 1),
            ):
                with pytest.raises(OurFault) as fault:
                    make()
                texts.append(str(fault.value))
        return texts

    texts = homes.router.inside(failures)
    assert texts[0].startswith("cannot listen on 192.168.77.1 TCP port 5001")
    assert "miniupnpd" in texts[0]
    assert "no such network device" in texts[2]
    assert all(texts)


def test_another_ssdp_program_on_the_port_is_named(homes):
    def attempt():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", SSDP_PORT))
            with pytest.raises(OurFault) as fault:
                ssdp_listener(DEVICE, ROUTER)
        return str(fault.value)

    text = homes.router.inside(attempt)
    assert "1900" in text
    assert "miniupnpd" in text


@pytest.mark.parametrize("protocol", Protocol)
def test_ports_that_a_program_holds_are_in_use(homes, protocol):
    def ask():
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.bind(("", 0))
            port = sock.getsockname()[1]
            held = port_in_use(protocol, ROUTER, port)
        return held, port_in_use(protocol, ROUTER, port)

    assert homes.router.inside(ask) == (True, False)


def test_a_connected_socket_hears_only_its_peer(homes):
    def scenario():
        with udp_connected(DEVICE, CLIENT, 5351) as sock:
            address = sock.getsockname()
            with client_socket(homes) as stranger:
                stranger.sendto(b"stranger", address)
            with homes.client.socket(socket.SOCK_DGRAM) as peer:
                peer.bind((str(CLIENT), 5351))
                peer.sendto(b"peer", address)
            sock.settimeout(5)
            return address[0], sock.recv(100)

    assert homes.router.inside(scenario) == (str(ROUTER), b"peer")


def test_announcements_of_a_pcp_server_are_heard(homes):
    def scenario():
        with pcp_announce_listener(DEVICE) as sock:
            with client_socket(homes) as server:
                server.sendto(b"announce", ("224.0.0.1", 5350))
            sock.settimeout(5)
            return sock.recvfrom(100)[0]

    assert homes.router.inside(scenario) == b"announce"
