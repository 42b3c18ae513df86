# SPDX-License-Identifier: Apache-2.0
"""Hosts behind the router are kept from PCP servers on the WAN (option block_lan_pcp), through every back-end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from igdpcp.model import Endpoint, IPAddress
from igdpcp.openings import Surroundings
from tests.netfilter.test_packets import BACKENDS, Bench, load_firewall
from tests.netfilter.topology import (
    A6,
    COMES,
    OTHER,
    SERVER,
    SERVER6,
    STAYS_AWAY,
    SURROUNDINGS,
    WAN,
    WAN6,
    A,
    Instance,
    bound,
    network,
    udp,
)

pytestmark = pytest.mark.lab

PCP = 5351
SHUT = replace(SURROUNDINGS, blocks_lan_pcp=True)


@pytest.fixture(scope="module", params=list(BACKENDS))
def built(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind: str = request.param
    with network(f"g{kind}"[:3]) as net:
        load_firewall(kind, net.router)
        instance = Instance(net.router, BACKENDS[kind]())
        yield Bench(net, kind, BACKENDS[kind], instance)
        instance.release()
        instance.call(instance.commits.close)
        instance.vanish()


@pytest.fixture
def bench(built: Bench) -> Iterator[Bench]:
    built.instance.surroundings()
    yield built
    built.instance.surroundings()


def asked(bench: Bench, sender: str, source: tuple[IPAddress, int], server: IPAddress, *, comes: bool) -> bool:
    """Whether a datagram from there comes to the PCP port of the outside host."""
    with (
        bound(bench.net.outside, socket.SOCK_DGRAM, server, PCP) as receiver,
        bound(sender, socket.SOCK_DGRAM, *source) as client,
    ):
        client.sendto(b"map", (str(server), PCP))
        receiver.settimeout(COMES if comes else STAYS_AWAY)
        try:
            return receiver.recv(100) == b"map"
        except TimeoutError:
            return False


@pytest.mark.parametrize(("client", "server"), [(A, SERVER), (A, OTHER), (A6, SERVER6)])
@pytest.mark.parametrize("lans", [{"br-lan"}, {"br-other"}], ids=["served", "not-served"])
def test_iwf_187_a_host_behind_the_router_asks_no_pcp_server_while_that_is_blocked(
    bench: Bench, client: IPAddress, server: IPAddress, lans: set[str]
) -> None:
    source = (client, 33000)
    assert asked(bench, bench.net.a, source, server, comes=True)
    bench.instance.surroundings(replace(SHUT, lan_devices=frozenset(lans)))
    assert not asked(bench, bench.net.a, source, server, comes=False)
    bench.instance.surroundings()
    assert asked(bench, bench.net.a, source, server, comes=True)


def test_the_router_itself_asks_also_while_others_may_not(bench: Bench) -> None:
    bench.instance.surroundings(SHUT)
    assert asked(bench, bench.net.router, (WAN, 33001), SERVER, comes=True)
    assert asked(bench, bench.net.router, (WAN6, 33001), SERVER6, comes=True)


def test_other_ports_of_the_server_are_reached_while_its_pcp_port_is_blocked(bench: Bench) -> None:
    bench.instance.surroundings(SHUT)
    at = Endpoint(SERVER, PCP + 1)
    assert udp(bench.net.a, (SERVER, PCP + 1), bench.net.outside, at, (A, 33002)) is not None


@pytest.mark.parametrize("wan", ["wan_devices", "wan6_devices"])
def test_what_does_not_leave_by_the_wan_is_not_blocked(bench: Bench, wan: str) -> None:
    elsewhere = Surroundings(frozenset(), SHUT.lan_devices, SHUT.pcp_peers, blocks_lan_pcp=True)
    bench.instance.surroundings(replace(elsewhere, **{wan: frozenset({"ppp0"})}))
    assert asked(bench, bench.net.a, (A, 33003), SERVER, comes=True)


def test_the_block_is_put_back_with_the_rest_of_the_ruleset(bench: Bench) -> None:
    bench.instance.surroundings(SHUT)
    load_firewall(bench.kind, bench.net.router)
    bench.instance.sync()
    assert not asked(bench, bench.net.a, (A, 33004), SERVER, comes=False)
