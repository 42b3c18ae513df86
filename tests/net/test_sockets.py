# SPDX-License-Identifier: Apache-2.0
"""Sockets as the kernel makes them, between a router and a host in network namespaces."""

from __future__ import annotations

import errno
import socket
import sys
from ipaddress import IPv4Address

import pytest

from igdpcp.errors import OurFault
from igdpcp.model import Protocol
from igdpcp.net.sockets import (
    SSDP_GROUP,
    SSDP_GROUP_LINK,
    SSDP_GROUP_SITE,
    SSDP_PORT,
    http_listener,
    pcp_announce_listener,
    pcp_listener,
    port_in_use,
    ssdp_group,
    ssdp_listener,
    ssdp_searcher,
    ssdp_speaker,
    udp_connected,
)
from igdpcp.net.source_filter import SOURCES_LIMIT, drop_sources
from tests.support.ssdp_lan import (
    CLIENT,
    CLIENT_DEVICE,
    CLIENT_GUA,
    CLIENT_LINK,
    CLIENT_TOO,
    CLIENT_ULA,
    DEVICE,
    ROUTER,
    ROUTER_GUA,
    ROUTER_LINK,
    ROUTER_ULA,
    client_socket,
    two_namespaces,
)

IP_RECVTTL = 12  # linux/in.h
pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def homes():
    with two_namespaces() as homes:
        yield homes


def test_announcements_travel_two_hops(homes):
    def scenario():
        with client_socket(homes, SSDP_PORT) as sock, ssdp_speaker(DEVICE, ROUTER) as sender:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            sender.sendto(b"x", (str(SSDP_GROUP), SSDP_PORT))
            sock.settimeout(5)
            _, ((_, _, ttl),), _, source = sock.recvmsg(100, 100)
        return int.from_bytes(ttl, sys.byteorder), source[0]

    assert homes.router.inside(scenario) == (2, str(ROUTER))


@pytest.mark.parametrize(("device", "outcome"), [(DEVICE, 0), ("lo", errno.ECONNREFUSED)])
@pytest.mark.parametrize("address", [ROUTER, ROUTER_ULA, ROUTER_GUA])
def test_the_http_port_is_open_to_its_device_only(homes, address, device, outcome):
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET

    def scenario():
        with http_listener(address, 5002, device), homes.client.socket(socket.SOCK_STREAM, family) as sock:
            sock.settimeout(5)
            return sock.connect_ex((str(address), 5002))

    assert homes.router.inside(scenario) == outcome


def test_sockets_say_what_to_do_when_they_cannot_be_made(homes):
    def failures():
        texts = []
        with http_listener(ROUTER, 5001, DEVICE):
            for make in (
                lambda: http_listener(ROUTER, 5001, DEVICE),
                lambda: http_listener(IPv4Address("192.168.78.1"), 5001, ""),
                lambda: ssdp_listener("br-none", socket.AF_INET),
                lambda: ssdp_listener("br-none", socket.AF_INET6),
                lambda: ssdp_speaker(DEVICE, IPv4Address("192.168.78.1")),
                lambda: ssdp_searcher(DEVICE, IPv4Address("192.168.78.1")),
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


def test_announcements_of_the_pcp_server_stay_on_their_link_and_come_from_its_port(homes):
    def scenario():
        with homes.client.socket(socket.SOCK_DGRAM) as sock, pcp_listener(DEVICE, ROUTER) as sender:
            sock.bind(("224.0.0.1", 5350))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.1") + CLIENT.packed)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            sender.sendto(b"x", ("224.0.0.1", 5350))
            sock.settimeout(5)
            _, ((_, _, ttl),), _, source = sock.recvmsg(100, 100)
        return int.from_bytes(ttl, sys.byteorder), source

    assert homes.router.inside(scenario) == (1, (str(ROUTER), 5351))


def test_another_pcp_server_on_the_port_is_named(homes):
    def attempt():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", 5351))
            with pytest.raises(OurFault) as fault:
                pcp_listener(DEVICE, ROUTER)
        return str(fault.value)

    text = homes.router.inside(attempt)
    assert text.startswith("cannot listen for PCP and NAT-PMP on 192.168.77.1 (br-lan) UDP port 5351")
    assert "miniupnpd" in text


def test_another_ssdp_program_on_the_port_is_named(homes):
    def attempt():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("", SSDP_PORT))
            with pytest.raises(OurFault) as fault:
                ssdp_listener(DEVICE, socket.AF_INET)
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


def test_the_http_port_of_a_link_local_address_is_open_on_its_link(homes):
    def scenario():
        with (
            http_listener(ROUTER_LINK, 5002, DEVICE),
            homes.client.socket(socket.SOCK_STREAM, socket.AF_INET6) as sock,
        ):
            sock.settimeout(5)
            scope = homes.client.inside(lambda: socket.if_nametoindex(CLIENT_DEVICE))
            return sock.connect_ex((str(ROUTER_LINK), 5002, 0, scope))

    assert homes.router.inside(scenario) == 0


@pytest.mark.parametrize(
    ("address", "group", "hops"),
    [(ROUTER_LINK, SSDP_GROUP_LINK, 10), (ROUTER_ULA, SSDP_GROUP_SITE, 10), (ROUTER_GUA, SSDP_GROUP_SITE, 10)],
)
def test_ipv6_announcements_go_to_the_group_that_reaches_as_far_as_their_address(homes, address, group, hops):
    def scenario():
        assert ssdp_group(address) == group
        with client_socket(homes, SSDP_PORT, CLIENT_LINK) as sock, ssdp_speaker(DEVICE, address) as speaker:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            speaker.sendto(b"x", (str(group), SSDP_PORT))
            sock.settimeout(5)
            _, ((_, _, limit),), _, source = sock.recvmsg(100, 100)
        return int.from_bytes(limit, sys.byteorder), source[0].partition("%")[0]

    assert homes.router.inside(scenario) == (hops, str(address))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_filter_drops_what_its_sources_send_and_nothing_else(homes, family):
    v6 = family == socket.AF_INET6
    own, barred, other = (ROUTER_ULA, CLIENT_ULA, CLIENT_GUA) if v6 else (ROUTER, CLIENT, CLIENT_TOO)

    def scenario():
        with (
            socket.socket(family, socket.SOCK_DGRAM) as sock,
            client_socket(homes, address=barred) as first,
            client_socket(homes, address=other) as second,
        ):
            sock.bind((str(own), 0))
            sock.settimeout(5)
            heard = []
            crowd = [own + 100 + number for number in range(SOURCES_LIMIT - 1)]
            for sources in ([], [barred], [*crowd, barred], []):
                drop_sources(sock, sources) if sources or heard else None
                for sender, data in ((first, b"barred"), (second, b"other")):
                    sender.sendto(data, sock.getsockname())
                heard.append([sock.recv(100)])
                while heard[-1][-1] != b"other":
                    heard[-1].append(sock.recv(100))
        return heard

    both = [b"barred", b"other"]
    assert homes.router.inside(scenario) == [both, [b"other"], [b"other"], both]
