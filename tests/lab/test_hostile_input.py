# SPDX-License-Identifier: Apache-2.0
"""Bytes that nobody sane would send, from the LAN and from the WAN: an error or silence, and nothing else happens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from igdpcp.upnp.ssdp import search_request
from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import HTTP_PORT, soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, poll
from tests.lab.rules import rules_for
from tests.lab.topology import Lab
from tests.support.soap_client import envelope

pytestmark = pytest.mark.lab

PORT = 8080
MANY = 150  # connections: more than the server and the queue of its listener hold
MANY_ADDRESSES = [f"2600:1:1::bad:{n:x}" for n in range(1, 41)]  # of one host
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
ADD = {"Content-Type": "text/xml", "SOAPAction": f'"{SERVICE}#AddPortMapping"'}
ARGUMENTS = {
    "NewRemoteHost": "",
    "NewExternalPort": PORT,
    "NewProtocol": "TCP",
    "NewInternalPort": PORT,
    "NewInternalClient": topology.LAN_ADDRESS,
    "NewEnabled": 1,
    "NewPortMappingDescription": "x",
    "NewLeaseDuration": 0,
}
SEARCH = search_request("urn:schemas-upnp-org:device:InternetGatewayDevice:1", 1)
GOOD = envelope(SERVICE, "AddPortMapping", ARGUMENTS)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"not xml at all", {400, 500}),
        (b"", {400, 500}),
        (b'<?xml version="1.0"?><!DOCTYPE e [<!ENTITY a "aaaa">]>' + GOOD.partition(b"?>")[2], {400, 500}),
        (GOOD.replace(b"<NewEnabled>", b"<x>" * 5000 + b"<NewEnabled>"), {400, 500}),
        (GOOD + b" " * 40000, {413}),
    ],
    ids=["no xml", "empty", "dtd", "deep", "too large"],
)
def test_a_soap_body_that_is_none_is_refused_and_nothing_happens(lab: Lab, body: bytes, statuses: set[int]) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, main={"external_ip_probe": "0"})
    daemon.wait_for_activation("active")
    client = soap_client(lab.lan)

    reply = client.post("/ctl/IPConn", ADD, body)

    assert reply.status in statuses
    assert carrier.maps() == []
    assert daemon.mappings() == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)
    assert client.post("/ctl/IPConn", ADD, GOOD)


def test_a_body_that_is_shorter_than_announced_is_taken_when_its_sender_ends(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab)
    daemon.wait_for_activation()
    head = f'POST /ctl/IPConn HTTP/1.1\r\nSOAPAction: "{SERVICE}#AddPortMapping"\r\nHost: 192.168.1.1:5000\r\n'
    with lab.lan.socket(socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect((topology.ROUTER_LAN_ADDRESS, HTTP_PORT))
        connection.sendall(f"{head}Content-Length: {len(GOOD) + 2}\r\n\r\n".encode() + GOOD)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert [mapping["external_port"] for mapping in daemon.mappings()] == [PORT]


def test_connections_that_say_nothing_keep_no_other_host_out(lab: Lab) -> None:
    """KTorrent opens one to learn its own address, and leaves it; here a host does so again and again."""
    ScriptedCarrier(lab)
    Igdpcpd(lab).wait_for_activation()
    with contextlib.ExitStack() as silent:
        for _ in range(MANY):
            connection = silent.enter_context(lab.lan.socket(socket.SOCK_STREAM))
            connection.settimeout(10)
            with contextlib.suppress(ConnectionResetError):  # one too many
                connection.connect((topology.ROUTER_LAN_ADDRESS, HTTP_PORT))
        assert soap_client(lab.lan2).external_address()


@pytest.fixture
def lab6() -> Iterator[Lab]:
    with Lab(ipv6=True) as lab:
        for address in MANY_ADDRESSES:
            lab.lan.run(["ip", "addr", "add", f"{address}/64", "dev", "eth0", "nodad"])
        yield lab


def socket_of(host: Host, address: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    sock = host.socket(kind, socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(5)
    sock.bind((address, 0))
    return sock


def search_from(host: Host, address: str) -> None:
    """Have the daemon meet an address that the router's kernel does not know yet, and does when this returns."""
    with socket_of(host, address, socket.SOCK_DGRAM) as sock:
        sock.sendto(SEARCH, (topology.ROUTER_LAN6_ADDRESS, 1900))
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_a_host_that_reads_no_response_keeps_no_other_host_out_however_many_addresses_it_has(lab6: Lab) -> None:
    daemon = Igdpcpd(lab6, upstream={"type": "none"}, main={"allow_private_external": "1"})
    daemon.wait_for_advertising()
    request = f"GET /v2/WANIPCn.xml HTTP/1.1\r\nHost: [{topology.ROUTER_LAN6_ADDRESS}]:5000\r\n\r\n".encode()
    with contextlib.ExitStack() as unread:
        for address in MANY_ADDRESSES[:9]:
            search_from(lab6.lan, address)
            for _ in range(16):
                connection = unread.enter_context(socket_of(lab6.lan, address))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                with contextlib.suppress(ConnectionResetError):  # one too many
                    connection.connect((topology.ROUTER_LAN6_ADDRESS, HTTP_PORT))
                    connection.send(request * 100)
        for _ in range(30):
            assert soap_client(lab6.lan2).external_address()
        assert daemon.status()["counters"]["http"]["over_limit"] > 100, "it has the places of one host"


def test_a_host_has_one_share_of_subscriptions_however_many_addresses_it_has(lab6: Lab) -> None:
    daemon = Igdpcpd(lab6, upstream={"type": "none"}, main={"allow_private_external": "1"})
    daemon.wait_for_advertising()

    def subscribe(host: Host, address: str, gateway: str, port: int) -> bytes:
        """The status line; who subscribes listens at that port."""
        own, theirs = (f"[{literal}]" if ":" in literal else literal for literal in (address, gateway))
        with socket_of(host, address) as connection:
            connection.connect((gateway, HTTP_PORT))
            connection.sendall(
                f"SUBSCRIBE /evt/IPConn HTTP/1.1\r\nHost: {theirs}:5000\r\nCALLBACK: <http://{own}:{port}/>\r\n"
                "NT: upnp:event\r\nTIMEOUT: Second-86400\r\nConnection: close\r\n\r\n".encode()
            )
            return connection.recv(4096).partition(b"\r\n")[0]

    with lab6.lan.socket(socket.SOCK_STREAM, socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        listener.listen(64)
        own_port = listener.getsockname()[1]
        statuses = []
        for address in MANY_ADDRESSES[:12]:
            search_from(lab6.lan, address)
            statuses.append(subscribe(lab6.lan, address, topology.ROUTER_LAN6_ADDRESS, own_port))
        assert [b" 200 " in status for status in statuses] == [True] * 8 + [False] * 4
        nobody_listens = subscribe(lab6.lan2, topology.LAN2_ADDRESS, topology.ROUTER_LAN_ADDRESS, PORT)
        assert b" 200 " in nobody_listens
        poll(lambda: daemon.status()["counters"]["events"]["dropped"] == 1, 2, "the end of a subscription for nobody")


def test_a_host_has_one_share_of_searches_however_many_addresses_it_has(lab6: Lab) -> None:
    daemon = Igdpcpd(lab6, upstream={"type": "none"}, main={"allow_private_external": "1", "searches_per_second": "20"})
    daemon.wait_for_advertising()
    soap_client(lab6.lan2).external_address()  # the router knows this host, as one that uses it for anything
    with contextlib.ExitStack() as many:
        flooding = [many.enter_context(socket_of(lab6.lan, address, socket.SOCK_DGRAM)) for address in MANY_ADDRESSES]
        honest = many.enter_context(socket_of(lab6.lan2, topology.LAN2_ADDRESS, socket.SOCK_DGRAM))
        for _ in range(5):
            for _ in range(3):
                for sock in flooding:
                    sock.sendto(SEARCH, (topology.ROUTER_LAN6_ADDRESS, 1900))
            honest.sendto(SEARCH, (topology.ROUTER_LAN_ADDRESS, 1900))
            assert honest.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_what_the_lan_writes_into_the_log_is_escaped(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab)
    agent = "\x1b[31mred\x07 event=forged"
    client = soap_client(lab.lan2, agent=agent)

    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 718

    assert all(character.isprintable() or character == "\n" for character in daemon.log())
    assert not daemon.events("forged")
    assert "red" in daemon.events("refused")[-1]["agent"]


SEARCH = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ssdp:all\r\n\r\n'


def answered(lab: Lab, port: int, datagram: bytes) -> bool:
    """Whether the router answers the carrier at its WAN address."""
    with lab.carrier.socket(socket.SOCK_DGRAM) as sender:
        sender.settimeout(1.5)
        sender.sendto(datagram, (topology.ROUTER_WAN_ADDRESS, port))
        try:
            return bool(sender.recv(2048))
        except TimeoutError:
            return False


def test_iwf_186_nothing_is_served_on_the_wan(lab: Lab) -> None:
    ScriptedCarrier(lab)
    Igdpcpd(lab)

    assert not lab.tcp_probe(lab.carrier, topology.ROUTER_WAN_ADDRESS, HTTP_PORT)
    assert not lab.tcp_probe(lab.carrier, topology.ROUTER_LAN_ADDRESS, HTTP_PORT)
    assert not answered(lab, 1900, SEARCH)
    for port in (5350, 5351):
        assert not answered(lab, port, bytes([2, 0]) + bytes(22))
        assert not answered(lab, port, bytes(2))


def test_a_name_in_the_host_header_is_not_served(lab: Lab) -> None:
    """A page in a browser on the LAN could have its name rebound to the router's address."""
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab)

    reply = soap_client(lab.lan).post("/ctl/IPConn", {**ADD, "Host": "evil.example:5000"}, GOOD)

    assert reply.status == 404
    assert daemon.mappings() == []


def pcp_answer(request: bytes, *, nonce: bytes | None = None, port: int = PORT) -> bytes:
    """A SUCCESS for a MAP request, written by octet positions (RFC 6887 sections 7.2 and 11.1)."""
    head = bytes([2, 0x81, 0, 0]) + (3600).to_bytes(4) + (5).to_bytes(4) + bytes(12)
    external = bytes(10) + b"\xff\xff" + socket.inet_aton("62.0.0.66")
    data = (nonce or request[24:36]) + request[36:42] + port.to_bytes(2) + external
    return head + data


def test_pcp_packets_that_are_not_the_servers_answer_are_counted_and_ignored(lab: Lab) -> None:
    """Short, long, from another source, with another nonce; the mapping and its renewals do not notice."""
    server = lab.carrier.socket(socket.SOCK_DGRAM)
    server.bind((topology.CARRIER_ADDRESS, 5351))
    server.settimeout(5)
    stranger = lab.carrier.socket(socket.SOCK_DGRAM)
    stranger.bind((topology.CARRIER_ADDRESS, 5352))
    with server, stranger:
        daemon = Igdpcpd(lab, main={"external_ip_probe": "0", "soap_deadline": "3"})
        _, router = server.recvfrom(2048)
        server.sendto(bytes([2, 0x80, 0, 0]) + bytes(4) + (5).to_bytes(4) + bytes(12), router)
        daemon.wait_for_activation("active")
        asked = lab.lan.popen(["upnpc", "-u", f"http://{topology.ROUTER_LAN_ADDRESS}:{HTTP_PORT}/rootDesc.xml",
                               "-a", topology.LAN_ADDRESS, str(PORT), str(PORT), "TCP"], name="upnpc")  # fmt: skip
        request = b"\2\0"
        while request[1] != 1:  # an ANNOUNCE may have been sent once more
            request, router = server.recvfrom(2048)
        good = pcp_answer(request)

        server.sendto(good[:3], router)
        server.sendto(good[:26], router)
        server.sendto(good + bytes(1100), router)
        server.sendto(pcp_answer(request, nonce=bytes(12)), router)
        stranger.sendto(good, router)

        def ignored() -> bool:
            counters = daemon.status()["upstream"]["counters"]
            return (
                counters.get("wrong_nonce") == 1
                and sum(counters.get(k, 0) for k in ("short", "long", "malformed")) == 3
            )

        poll(ignored, 2, f"the counters: {daemon.status()['upstream']['counters']}")
        assert [m["state"] for m in daemon.mappings()] == ["planned"]
        assert not rules_for(lab, topology.LAN_ADDRESS, PORT)

        server.sendto(good, router)

        poll(lambda: [m["external_address"] for m in daemon.mappings()] == ["62.0.0.66"], 5, "the real answer")
        asked.wait_for("is redirected to internal")
