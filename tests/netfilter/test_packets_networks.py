# SPDX-License-Identifier: Apache-2.0
"""Several LANs, a guest network that is not served, and a WAN device that vanishes and returns: on every back-end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest

from igdpcp.model import Endpoint, Mode, Protocol
from tests.netfilter.test_packets import BACKENDS, load_firewall
from tests.netfilter.topology import (
    CARRIER,
    OTHER,
    SERVER,
    SURROUNDINGS,
    WAN,
    A,
    B,
    Instance,
    Network,
    command,
    namespace,
    network,
    opening,
    tcp,
    udp,
)

pytestmark = pytest.mark.lab

ATTIC, GUEST = IPv4Address("192.168.2.5"), IPv4Address("192.168.3.5")  # one host in each further network
LANS = replace(SURROUNDINGS, lan_devices=frozenset({"br-lan", "br-attic"}))
UDP = Protocol.UDP

# What the administrator lets the further networks do: everything towards the WAN, nothing among themselves
OUTWARD = {
    "fw4": ("nft", "insert rule inet fw4 forward iifname { br-attic, br-guest } oifname wan0 accept"),
    "own": ("nft", "add table inet nothing"),
    "iptables": ("iptables-legacy", "-I", "FORWARD", "!", "-i", "wan0", "-o", "wan0", "-j", "ACCEPT"),
}


@dataclass
class Place:
    """The network with two further hosts, and an instance that serves br-lan and br-attic."""

    net: Network
    kind: str
    attic: str
    guest: str
    instance: Instance


def attach(router: str, host: str, device: str, address: IPv4Address) -> None:
    """Connect a host to a network of its own behind the router."""
    gateway = IPv4Address(int(address) - 4)
    for where, line in (
        (router, f"link add {device} type veth peer name eth0 netns {host}"),
        (router, f"addr add {gateway}/24 dev {device}"),
        (router, f"link set {device} up"),
        (host, f"addr add {address}/24 dev eth0"),
        (host, "link set lo up"),
        (host, "link set eth0 up"),
        (host, f"route add default via {gateway}"),
    ):
        command("ip", "-n", where, *line.split())


def load(kind: str, router: str) -> None:
    load_firewall(kind, router)
    command(*OUTWARD[kind], namespace=router)


@pytest.fixture(scope="module", params=list(OUTWARD))
def built(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind: str = request.param
    with network(f"n{kind[0]}") as net, namespace() as attic, namespace() as guest:
        attach(net.router, attic, "br-attic", ATTIC)
        attach(net.router, guest, "br-guest", GUEST)
        load(kind, net.router)
        instance = Instance(net.router, BACKENDS[kind]())
        instance.surroundings(LANS)
        yield Place(net, kind, attic, guest, instance)
        instance.release()
        instance.call(instance.commits.close)
        instance.vanish()


@pytest.fixture
def place(built: Place) -> Iterator[Place]:
    yield built
    built.instance.sync()


@pytest.mark.parametrize("protocol", list(Protocol))
def test_hosts_of_both_lans_are_reached_from_outside(place: Place, protocol: Protocol) -> None:
    upstairs = opening("m2", serial=2, protocol=protocol, wan_port=4100, client=Endpoint(ATTIC, 80))
    place.instance.put(opening(protocol=protocol), upstairs)
    probe = tcp if protocol is Protocol.TCP else udp
    assert probe(place.net.outside, (WAN, 4000), place.net.a, Endpoint(A, 4000), (SERVER, 31001)) is not None
    assert probe(place.net.outside, (WAN, 4100), place.attic, Endpoint(ATTIC, 80), (SERVER, 31002)) is not None
    place.instance.remove("m2")
    assert udp(place.net.outside, (WAN, 4100), place.attic, Endpoint(ATTIC, 80), comes=False) is None


@pytest.mark.parametrize("address", [WAN, CARRIER])
def test_a_host_of_one_lan_reaches_a_mapping_of_the_other_by_its_outer_addresses(
    place: Place, address: IPv4Address
) -> None:
    upstairs = opening("m2", serial=2, wan_port=4101, client=Endpoint(ATTIC, 4101), external=Endpoint(CARRIER, 4101))
    place.instance.put(opening(), upstairs)
    assert tcp(place.attic, (address, 4000), place.net.a, Endpoint(A, 4000)) is not None
    assert tcp(place.net.b, (address, 4101), place.attic, Endpoint(ATTIC, 4101)) is not None


def test_a_host_of_another_lan_is_moved_off_a_mapped_port_and_its_own_mapping_names_its_packets(place: Place) -> None:
    upstairs = opening("m2", serial=2, protocol=UDP, wan_port=4102, client=Endpoint(ATTIC, 6881))
    place.instance.put(opening(protocol=UDP), upstairs)
    moved = udp(place.attic, (SERVER, 7100), place.net.outside, Endpoint(SERVER, 7100), (ATTIC, 4000))
    assert moved is not None
    assert moved[0] == str(WAN)
    assert moved[1] != 4000
    named = udp(place.attic, (SERVER, 7101), place.net.outside, Endpoint(SERVER, 7101), (ATTIC, 6881))
    assert named == (str(WAN), 4102)


def test_a_guest_goes_to_the_internet_as_before(place: Place) -> None:
    place.instance.put(opening(protocol=UDP))
    seen = udp(place.guest, (SERVER, 7102), place.net.outside, Endpoint(SERVER, 7102), (GUEST, 9000))
    assert seen == (str(WAN), 9000)
    assert tcp(place.guest, (OTHER, 7103), place.net.outside, Endpoint(OTHER, 7103)) is not None


def test_a_guest_keeps_a_source_port_that_somebody_mapped_where_the_ruleset_can_tell_who_it_is(place: Place) -> None:
    place.instance.put(opening(protocol=UDP, wan_port=4103))
    seen = udp(place.guest, (SERVER, 7104), place.net.outside, Endpoint(SERVER, 7104), (GUEST, 4103))
    assert seen is not None
    assert (seen == (str(WAN), 4103)) is (place.kind != "iptables")  # see iptables_rules.py


@pytest.mark.parametrize("address", [WAN, CARRIER])
def test_a_guest_does_not_get_into_a_lan_by_its_mappings(place: Place, address: IPv4Address) -> None:
    routed = opening("m2", serial=2, mode=Mode.ROUTED, protocol=UDP, client=Endpoint(B, 4104))
    place.instance.put(opening(protocol=UDP), routed)
    assert udp(place.guest, (address, 4000), place.net.a, Endpoint(A, 4000), comes=False) is None
    if place.kind != "own":  # the plain router lets networks talk to one another, with or without us
        assert udp(place.guest, (A, 4000), place.net.a, Endpoint(A, 4000), comes=False) is None
        assert udp(place.guest, (B, 4104), place.net.b, Endpoint(B, 4104), comes=False) is None


def index_of(router: str, device: str) -> int:
    return int(command("cat", f"/sys/class/net/{device}/ifindex", namespace=router))


def dial_in_again(net: Network) -> None:
    """The WAN device goes, and comes back under its name and with its address, as PPPoE's does."""
    before = index_of(net.router, "wan0")
    command("ip", "-n", net.router, "link", "del", "wan0")
    for where, line in (
        (net.router, f"link add wan0 type veth peer name eth0 netns {net.outside}"),
        (net.router, f"addr add {WAN}/24 dev wan0"),
        (net.router, "link set wan0 up"),
        (net.router, f"route add default via {SERVER}"),
        (net.outside, f"addr add {SERVER}/24 dev eth0"),
        (net.outside, f"addr add {OTHER}/24 dev eth0"),
        (net.outside, "link set eth0 up"),
    ):
        command("ip", "-n", where, *line.split())
    assert index_of(net.router, "wan0") != before


@pytest.mark.parametrize("kind", list(OUTWARD))
def test_mappings_go_on_when_the_wan_device_returns_with_another_index(kind: str) -> None:
    with network(f"d{kind[0]}") as net:
        load_firewall(kind, net.router)
        instance = Instance(net.router, BACKENDS[kind]())
        instance.surroundings()
        instance.put(opening(), opening("m2", serial=2, protocol=UDP, wan_port=4105, client=Endpoint(B, 4105)))
        dial_in_again(net)
        assert tcp(net.outside, (WAN, 4000), net.a, Endpoint(A, 4000), (SERVER, 31010)) is not None
        assert udp(net.outside, (WAN, 4105), net.b, Endpoint(B, 4105), (OTHER, 31011)) is not None
        assert udp(net.b, (SERVER, 7105), net.outside, Endpoint(SERVER, 7105), (B, 4105)) == (str(WAN), 4105)
        assert tcp(net.b, (CARRIER, 4000), net.a, Endpoint(A, 4000)) is not None
        assert instance.call(instance.commits.intact)
        instance.vanish()
