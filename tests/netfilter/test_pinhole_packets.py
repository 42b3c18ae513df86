# SPDX-License-Identifier: Apache-2.0
"""What real IPv6 packets experience at pinholes, the same through every back-end; everything else is refused."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from igdpcp.model import Protocol
from igdpcp.netfilter.base import Backend
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.openings import PinholeOpening
from tests.lab.namespaces import poll
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    A6,
    B6,
    COMES,
    OTHER6,
    SERVER6,
    STAYS_AWAY,
    SURROUNDINGS,
    Instance,
    Network,
    bound,
    network,
    opening,
    pinhole,
)

pytestmark = pytest.mark.lab

TCP, UDP = Protocol.TCP, Protocol.UDP


BACKENDS: dict[str, Callable[[], Backend]] = {
    "fw4": lambda: NftablesBackend("fw4"),
    "iptables": IptablesBackend,
}


@dataclass
class Bench:
    """A firewall that was loaded, and the instance that opens pinholes in it."""

    kind: str
    net: Network
    instance: Instance


def load_firewall(kind: str, router: str) -> None:
    """What the administrator's firewall does when it is reloaded: fw4 keeps elements, iptables' keep our chains."""
    if kind == "fw4":
        firewalls.load_nft(router, firewalls.fw4())
    else:
        firewalls.load_legacy6(router)


@pytest.fixture(scope="module", params=list(BACKENDS))
def running(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind: str = request.param
    with network(f"p{kind[0]}") as net:
        load_firewall(kind, net.router)
        instance = Instance(net.router, BACKENDS[kind]())
        instance.surroundings()
        yield Bench(kind, net, instance)
        instance.call(instance.commits.close)
        instance.vanish()


@pytest.fixture
def fw(running: Bench) -> Iterator[Instance]:
    yield running.instance
    running.instance.surroundings()
    running.instance.sync()


@pytest.fixture
def net(running: Bench) -> Network:
    return running.net


def reached(
    net: Network, opened: PinholeOpening, source: tuple[IPv6Address, int] = (SERVER6, 0), *, comes: bool = True
) -> bool:
    """Whether what the outside host sends to this pinhole's client and port gets there and back."""
    receiver = net.a if opened.client == A6 else net.b
    ask = _connects if opened.protocol is TCP else _is_answered
    kind = socket.SOCK_STREAM if opened.protocol is TCP else socket.SOCK_DGRAM
    with (
        bound(receiver, kind, opened.client, opened.client_port) as server,
        bound(net.outside, kind, *source) as client,
    ):
        return ask(server, client, COMES if comes else STAYS_AWAY)


def _connects(server: socket.socket, client: socket.socket, seconds: float) -> bool:
    server.listen()
    client.settimeout(seconds)
    try:
        client.connect(server.getsockname())
    except OSError:
        return False
    # RST instead of TIME_WAIT, so that the same ports can be used again
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return True


def _is_answered(server: socket.socket, client: socket.socket, seconds: float) -> bool:
    client.sendto(b"ping", server.getsockname())
    server.settimeout(seconds)
    try:
        _, sender = server.recvfrom(100)
    except TimeoutError:
        return False
    server.sendto(b"pong", sender)
    client.settimeout(COMES)
    return client.recv(100) == b"pong"


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_pinhole_lets_in_until_it_goes(net: Network, fw: Instance, protocol: Protocol) -> None:
    open_ = pinhole(protocol=protocol)
    assert not reached(net, open_, comes=False)
    fw.put(open_)
    assert reached(net, open_)
    fw.remove(open_.id)
    assert not reached(net, open_, comes=False)


@pytest.mark.parametrize("other", [{"protocol": UDP}, {"client_port": 4001}, {"client": B6}])
def test_a_pinhole_opens_nothing_else(net: Network, fw: Instance, other: dict[str, Any]) -> None:
    fw.put(pinhole())
    assert not reached(net, pinhole(**other), comes=False)


RESTRICTED = [
    ({"remote_host": SERVER6}, (SERVER6, 0), (OTHER6, 0)),
    ({"remote_port": 30010}, (OTHER6, 30010), (OTHER6, 30011)),
    ({"remote_host": SERVER6, "remote_port": 30012}, (SERVER6, 30012), (OTHER6, 30012)),
    ({"remote_host": SERVER6, "remote_port": 30013}, (SERVER6, 30013), (SERVER6, 30014)),
]


@pytest.mark.parametrize(("restriction", "friend", "stranger"), RESTRICTED)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_restricted_pinhole_lets_in_whom_it_names(
    net: Network,
    fw: Instance,
    protocol: Protocol,
    restriction: dict[str, Any],
    friend: tuple[IPv6Address, int],
    stranger: tuple[IPv6Address, int],
) -> None:
    open_ = pinhole(protocol=protocol, **restriction)
    fw.put(open_)
    assert reached(net, open_, friend)
    assert not reached(net, open_, stranger, comes=False)


def test_two_pinholes_of_one_port_are_independent(net: Network, fw: Instance) -> None:
    anyone, one = pinhole(), pinhole("pinhole-2", serial=2, remote_host=SERVER6)
    fw.put(anyone, one)
    fw.remove(anyone.id)
    assert reached(net, one, (SERVER6, 0))
    assert not reached(net, one, (OTHER6, 0), comes=False)


def test_a_connection_outlives_its_pinhole(net: Network, fw: Instance) -> None:
    fw.put(pinhole())
    with (
        bound(net.a, socket.SOCK_STREAM, A6, 4000) as server,
        bound(net.outside, socket.SOCK_STREAM, SERVER6, 0) as client,
    ):
        server.listen()
        client.settimeout(COMES)
        client.connect((str(A6), 4000))
        accepted, _ = server.accept()
        with accepted:
            fw.remove("pinhole-1")
            client.sendall(b"still there")
            accepted.settimeout(COMES)
            assert accepted.recv(100) == b"still there"


@pytest.mark.parametrize("running", ["fw4"], indirect=True)
def test_a_pinhole_expires_in_the_kernel(net: Network, fw: Instance) -> None:
    fw.put(pinhole(lifetime=1))
    poll(lambda: not reached(net, pinhole(), comes=False), COMES, "the end of the pinhole")


def test_a_pinhole_leads_to_no_network_that_is_not_served(net: Network, fw: Instance) -> None:
    fw.put(pinhole())
    fw.surroundings(replace(SURROUNDINGS, lan_devices=frozenset({"br-guest"})))
    assert not reached(net, pinhole(), comes=False)


def test_a_pinhole_is_open_to_the_internet_only_and_not_to_a_network_that_is_not_served(
    net: Network, fw: Instance
) -> None:
    fw.put(pinhole())
    fw.surroundings(replace(SURROUNDINGS, wan6_devices=frozenset({"wwan0"})))
    assert not reached(net, pinhole(), comes=False)


def test_the_first_packets_of_connections_are_counted(net: Network, fw: Instance) -> None:
    opened = pinhole(protocol=UDP, remote_host=SERVER6)  # TCP may send a first packet again before it is answered
    fw.put(opened)
    assert fw.packets() == 0
    assert not reached(net, opened, (OTHER6, 0), comes=False)
    assert fw.packets() == 0
    assert reached(net, opened)
    counted = fw.packets()  # a first packet is sent again while the LAN host's neighbour is looked for
    assert counted
    assert reached(net, opened)
    assert fw.packets() == counted + 1


def test_a_new_lease_a_sync_and_a_reload_go_on_counting(running: Bench, net: Network, fw: Instance) -> None:
    opened = pinhole()
    fw.put(opened)
    assert reached(net, opened)
    counted = fw.packets()
    assert counted
    fw.put(pinhole(lifetime=900))
    assert fw.packets() == counted
    fw.sync(pinhole(lifetime=800), opening())
    assert fw.packets() == counted
    load_firewall(running.kind, net.router)
    assert fw.packets() == counted
    fw.sync(pinhole(lifetime=800), opening())
    assert fw.packets() == counted
    assert reached(net, pinhole())
    assert fw.packets() == counted + 1


def test_a_pinhole_that_comes_again_counts_from_nought(net: Network, fw: Instance) -> None:
    fw.put(pinhole(protocol=UDP))
    assert reached(net, pinhole(protocol=UDP))
    fw.remove("pinhole-1")
    fw.put(pinhole(protocol=UDP))
    assert fw.packets() == 0


@pytest.mark.parametrize("running", ["fw4"], indirect=True)
def test_an_own_table_counts_the_first_packets_too(net: Network, fw: Instance) -> None:
    own = Instance(net.router, NftablesBackend("igdpcp"))
    own.surroundings()
    try:
        fw.put(pinhole())
        own.put(pinhole())
        assert reached(net, pinhole())
        counted = own.packets()  # a first packet is sent again while the LAN host's neighbour is looked for
        assert counted
        assert reached(net, pinhole())
        assert own.packets() == counted + 1
    finally:
        own.release()
        own.call(own.commits.close)
        own.vanish()
