# SPDX-License-Identifier: Apache-2.0
"""What real packets experience, the same through every back-end and firewall."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

import pytest

from igdpcp.model import MOVED_PORTS, Endpoint, Mode, Protocol
from igdpcp.netfilter.base import Backend
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.netfilter.iptables_fw4 import Fw4IptablesBackend
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.openings import PcpPeer
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    CARRIER,
    COMES,
    OTHER,
    PCP_PORT,
    ROUTER,
    SERVER,
    STAYS_AWAY,
    SURROUNDINGS,
    WAN,
    A,
    B,
    Instance,
    Network,
    bound,
    command,
    network,
    opening,
    tcp,
    udp,
)

pytestmark = pytest.mark.lab


@dataclass
class Bench:
    """The network with one running instance; ``make`` makes back-ends for further ones."""

    net: Network
    kind: str
    make: Callable[[], Backend]
    instance: Instance


BACKENDS: dict[str, Callable[[], Backend]] = {
    "fw4": lambda: NftablesBackend("fw4"),
    "own": lambda: NftablesBackend("igdpcp"),
    "iptables": IptablesBackend,
    "mixed": Fw4IptablesBackend,
}


def load_firewall(kind: str, router: str) -> None:
    """Load the administrator's rules in place of everything that is there, as a restart of the firewall does."""
    if kind == "iptables":
        firewalls.load_legacy(router)
    else:
        command("nft", "flush", "ruleset", namespace=router)
        firewalls.load_nft(router, firewalls.PLAIN if kind == "own" else firewalls.fw4())


# An own table's accept is not final, and the plain router refuses nothing: nothing can be seen there.
refusing = pytest.mark.parametrize("built", ["fw4", "iptables", "mixed"], indirect=True)


@pytest.fixture(scope="module", params=list(BACKENDS))
def built(request: pytest.FixtureRequest) -> Iterator[Bench]:
    kind: str = request.param
    with network(kind[0]) as net:
        load_firewall(kind, net.router)
        instance = Instance(net.router, BACKENDS[kind]())
        instance.surroundings()
        yield Bench(net, kind, BACKENDS[kind], instance)
        instance.release()
        instance.call(instance.commits.close)
        instance.vanish()


@pytest.fixture
def bench(built: Bench) -> Iterator[Bench]:
    yield built
    built.instance.sync()


def test_inbound_tcp_reaches_the_client_until_the_mapping_goes(bench: Bench) -> None:
    bench.instance.put(opening(wan_port=4001, client=Endpoint(A, 80)))
    source = (SERVER, 30001)
    assert tcp(bench.net.outside, (WAN, 4001), bench.net.a, Endpoint(A, 80), source) == (str(SERVER), 30001)
    bench.instance.remove("m1")
    assert tcp(bench.net.outside, (WAN, 4001), bench.net.a, Endpoint(A, 80), (SERVER, 30002)) is None


def test_inbound_udp_reaches_the_client_until_the_mapping_goes(bench: Bench) -> None:
    bench.instance.put(opening(protocol=Protocol.UDP, wan_port=4002, client=Endpoint(A, 53)))
    source = (SERVER, 30003)
    assert udp(bench.net.outside, (WAN, 4002), bench.net.a, Endpoint(A, 53), source) == (str(SERVER), 30003)
    bench.instance.remove("m1")
    assert udp(bench.net.outside, (WAN, 4002), bench.net.a, Endpoint(A, 53), (SERVER, 30004), comes=False) is None


def test_only_the_mapped_protocol_is_open(bench: Bench) -> None:
    bench.instance.put(opening())
    assert udp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), comes=False) is None


def test_an_established_connection_survives_the_removal(bench: Bench) -> None:
    bench.instance.put(opening())
    with bound(bench.net.a, socket.SOCK_STREAM, A, 4000) as server:
        server.listen()
        with bound(bench.net.outside, socket.SOCK_STREAM, SERVER, 0) as client:
            client.settimeout(5)
            client.connect((str(WAN), 4000))
            accepted, _ = server.accept()
            bench.instance.remove("m1")
            with accepted:
                client.sendall(b"still here")
                accepted.settimeout(5)
                assert accepted.recv(20) == b"still here"


@pytest.mark.parametrize("protocol", list(Protocol))
def test_the_clients_own_packets_leave_with_the_wan_port(bench: Bench, protocol: Protocol) -> None:
    bench.instance.put(opening(protocol=protocol, wan_port=4003, client=Endpoint(A, 6881)))
    probe = tcp if protocol is Protocol.TCP else udp
    seen = probe(bench.net.a, (SERVER, 7000), bench.net.outside, Endpoint(SERVER, 7000), (A, 6881))
    assert seen == (str(WAN), 4003)


def test_another_hosts_packets_are_moved_off_a_mapped_port(bench: Bench) -> None:
    bench.instance.put(opening(protocol=Protocol.UDP))
    seen = udp(bench.net.b, (SERVER, 7001), bench.net.outside, Endpoint(SERVER, 7001), (B, 4000))
    assert seen is not None
    assert seen[0] == str(WAN)
    assert 49152 <= seen[1] <= 65535


@pytest.mark.parametrize("port", [49152, 51820, 57343, 57344, 65535])
def test_another_hosts_packets_are_moved_off_a_mapped_port_of_the_range_they_are_moved_to(
    bench: Bench, port: int
) -> None:
    bench.instance.put(opening(protocol=Protocol.UDP, wan_port=port))
    seen = udp(bench.net.b, (SERVER, 7005), bench.net.outside, Endpoint(SERVER, 7005), (B, port))
    assert seen is not None
    assert seen[1] in MOVED_PORTS
    assert seen[1] != port


def test_the_routers_own_packets_leave_from_the_port_that_it_chose(bench: Bench) -> None:
    bench.instance.put(opening(protocol=Protocol.UDP))
    seen = udp(bench.net.router, (SERVER, 7006), bench.net.outside, Endpoint(SERVER, 7006), (WAN, 4000))
    assert seen == (str(WAN), 4000)


def test_another_hosts_packets_from_ports_that_nobody_mapped_stay(bench: Bench) -> None:
    bench.instance.put(opening(protocol=Protocol.UDP))
    seen = udp(bench.net.b, (SERVER, 7002), bench.net.outside, Endpoint(SERVER, 7002), (B, 9000))
    assert seen == (str(WAN), 9000)


@pytest.mark.parametrize("address", [WAN, CARRIER])
@pytest.mark.parametrize("protocol", list(Protocol))
def test_a_lan_host_reaches_the_client_by_its_outer_addresses(
    bench: Bench, protocol: Protocol, address: IPv4Address
) -> None:
    bench.instance.put(opening(protocol=protocol, wan_port=4010, external=Endpoint(CARRIER, 4010)))
    probe = tcp if protocol is Protocol.TCP else udp
    assert probe(bench.net.b, (address, 4010), bench.net.a, Endpoint(A, 4000)) is not None


def test_a_hairpin_follows_an_external_port_that_is_not_the_wan_port(bench: Bench) -> None:
    bench.instance.put(opening(wan_port=4011, external=Endpoint(CARRIER, 5011)))
    assert tcp(bench.net.b, (CARRIER, 5011), bench.net.a, Endpoint(A, 4000)) is not None
    assert tcp(bench.net.b, (WAN, 4011), bench.net.a, Endpoint(A, 4000)) is not None


@pytest.mark.parametrize("wan_port", [4012, 4013])
def test_a_hairpin_follows_the_port_that_is_shown_and_the_real_one(bench: Bench, wan_port: int) -> None:
    bench.instance.put(opening(wan_port=wan_port, external=Endpoint(CARRIER, 5012), shown_port=4012))
    for port in (4012, 5012):
        assert tcp(bench.net.b, (CARRIER, port), bench.net.a, Endpoint(A, 4000)) is not None
    bench.instance.remove("m1")
    for port in (4012, 5012):
        assert tcp(bench.net.b, (CARRIER, port), bench.net.a, Endpoint(A, 4000)) is None


def test_a_hairpin_by_a_shown_port_gives_way_to_who_really_has_it_and_comes_back(bench: Bench) -> None:
    bench.instance.put(opening(wan_port=4014, external=Endpoint(CARRIER, 5014), shown_port=4014))
    theirs = opening("m2", serial=2, wan_port=4015, client=Endpoint(B, 4000), external=Endpoint(CARRIER, 4014))
    bench.instance.put(theirs)
    assert tcp(bench.net.a, (CARRIER, 4014), bench.net.b, Endpoint(B, 4000)) is not None
    bench.instance.remove("m2")
    assert tcp(bench.net.b, (CARRIER, 4014), bench.net.a, Endpoint(A, 4000)) is not None


def test_a_client_reaches_itself_by_its_external_address(bench: Bench) -> None:
    bench.instance.put(opening())
    assert tcp(bench.net.a, (CARRIER, 4000), bench.net.a, Endpoint(A, 4000)) is not None


def test_a_hairpin_shows_its_mapped_sender_with_its_external_endpoint(bench: Bench) -> None:
    theirs = opening("m2", serial=2, wan_port=4021, client=Endpoint(B, 6000), external=Endpoint(CARRIER, 4021))
    bench.instance.put(opening(), theirs)
    seen = tcp(bench.net.b, (CARRIER, 4000), bench.net.a, Endpoint(A, 4000), (B, 6000))
    assert seen == (str(CARRIER), 4021)


def test_hairpins_end_with_the_mapping(bench: Bench) -> None:
    bench.instance.put(opening())
    bench.instance.remove("m1")
    assert tcp(bench.net.b, (WAN, 4000), bench.net.a, Endpoint(A, 4000)) is None


def test_a_mapped_port_does_not_take_the_routers_lan_address(bench: Bench) -> None:
    bench.instance.put(opening(wan_port=4030))
    assert tcp(bench.net.b, (ROUTER, 4030), bench.net.a, Endpoint(A, 4000)) is None


@refusing
def test_routed_packets_are_let_through_to_the_client_until_the_mapping_goes(bench: Bench) -> None:
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000)) is None
    bench.instance.put(opening(mode=Mode.ROUTED, external=Endpoint(CARRIER, 5000)))
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000)) is not None
    assert tcp(bench.net.b, (CARRIER, 5000), bench.net.a, Endpoint(A, 4000)) is not None
    assert tcp(bench.net.outside, (A, 4001), bench.net.a, Endpoint(A, 4001)) is None
    bench.instance.remove("m1")
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000)) is None


def test_a_remote_host_is_let_in_and_nobody_else(bench: Bench) -> None:
    bench.instance.put(opening(remote_hosts=(SERVER,)))
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), (SERVER, 30010)) is not None
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), (OTHER, 30011)) is None
    assert tcp(bench.net.b, (WAN, 4000), bench.net.a, Endpoint(A, 4000)) is None


@refusing
def test_a_remote_host_is_let_in_and_nobody_else_where_the_client_is_routed(bench: Bench) -> None:
    bench.instance.put(opening(mode=Mode.ROUTED, remote_hosts=(SERVER,)))
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000), (SERVER, 30014)) is not None
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000), (OTHER, 30015)) is None


def test_iwf_097_each_remote_host_of_a_mapping_is_let_in_until_it_is_none_any_more(bench: Bench) -> None:
    def comes_in(source: str, port: int) -> bool:
        return tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), (source, port)) is not None

    bench.instance.put(opening(remote_hosts=(SERVER, OTHER)))
    assert comes_in(SERVER, 30020)
    assert comes_in(OTHER, 30021)
    bench.instance.put(opening(remote_hosts=(OTHER,)))
    assert comes_in(OTHER, 30022)
    assert not comes_in(SERVER, 30023)
    bench.instance.remove("m1")
    assert not comes_in(OTHER, 30024)


def test_two_remote_hosts_of_one_port_reach_different_clients(bench: Bench) -> None:
    bench.instance.put(
        opening("m1", remote_hosts=(SERVER,)), opening("m2", serial=2, remote_hosts=(OTHER,), client=Endpoint(B, 4000))
    )
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), (SERVER, 30012)) is not None
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.b, Endpoint(B, 4000), (OTHER, 30013)) is not None


def test_a_remote_hosts_mapping_goes_before_one_for_everybody(bench: Bench) -> None:
    bench.instance.put(opening("m1", client=Endpoint(B, 4000)))
    bench.instance.put(opening("m2", serial=2, remote_hosts=(SERVER,)))
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), (SERVER, 30016)) is not None
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.b, Endpoint(B, 4000), (OTHER, 30017)) is not None


def test_the_oldest_mapping_of_a_client_port_owns_its_source_port_and_the_next_inherits_it(bench: Bench) -> None:
    young = opening("m2", serial=2, wan_port=4041, external=Endpoint(CARRIER, 4041))
    bench.instance.put(young)
    bench.instance.put(opening("m1", serial=1, wan_port=4040, external=Endpoint(CARRIER, 4040)))
    at = Endpoint(SERVER, 7003)
    assert tcp(bench.net.a, (SERVER, 7003), bench.net.outside, at, (A, 4000)) == (str(WAN), 4040)
    bench.instance.remove("m1")
    at = Endpoint(SERVER, 7004)
    assert tcp(bench.net.a, (SERVER, 7004), bench.net.outside, at, (A, 4000)) == (str(WAN), 4041)
    assert tcp(bench.net.outside, (WAN, 4041), bench.net.a, Endpoint(A, 4000)) is not None


def test_a_mapping_put_again_with_another_client_moves(bench: Bench) -> None:
    bench.instance.put(opening())
    bench.instance.put(opening(client=Endpoint(B, 4000)))
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.b, Endpoint(B, 4000)) is not None
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000)) is None


@refusing
def test_only_translated_packets_pass_to_the_client_of_a_cascaded_mapping(bench: Bench) -> None:
    bench.instance.put(opening())
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000)) is None


@pytest.mark.parametrize("built", ["fw4", "own", "iptables"], indirect=True)  # see iptables_fw4.py for the fourth
def test_the_administrators_redirect_wins_over_a_mapping_of_the_same_port(bench: Bench) -> None:
    bench.instance.put(opening(wan_port=4060))
    assert tcp(bench.net.outside, (WAN, 4060), bench.net.b, Endpoint(B, 4060)) is not None


def test_a_mapped_port_does_not_take_packets_for_a_host_behind_the_router(bench: Bench) -> None:
    routed = opening("m2", serial=2, mode=Mode.ROUTED, external=Endpoint(CARRIER, 5000))
    bench.instance.put(opening("m1", client=Endpoint(B, 4000), external=Endpoint(CARRIER, 4001)), routed)
    assert tcp(bench.net.outside, (A, 4000), bench.net.a, Endpoint(A, 4000)) is not None
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.b, Endpoint(B, 4000)) is not None


@refusing
def test_the_pcp_servers_packets_come_in_and_others_do_not(bench: Bench) -> None:
    ours = Endpoint(WAN, PCP_PORT)
    net = bench.net
    assert udp(net.outside, (WAN, PCP_PORT), net.router, ours, (SERVER, 5351)) == (str(SERVER), 5351)
    assert udp(net.outside, (WAN, PCP_PORT), net.router, ours, (SERVER, 5352), comes=False) is None
    assert udp(net.outside, (WAN, PCP_PORT), net.router, ours, (OTHER, 5351), comes=False) is None
    for port in (PCP_PORT + 1, 1900, 5350, 500):
        assert udp(net.outside, (WAN, port), net.router, Endpoint(WAN, port), (SERVER, 5351), comes=False) is None


@refusing
def test_the_pcp_servers_packets_come_in_by_a_wan_device_only(bench: Bench) -> None:
    ours = Endpoint(WAN, PCP_PORT + 2)  # no answers of an earlier test went from here: those are let in in any case
    peers = frozenset({PcpPeer(SERVER, ours.port)})
    bench.instance.surroundings(replace(SURROUNDINGS, wan_devices=frozenset({"ppp0"}), pcp_peers=peers))
    try:
        target = (WAN, ours.port)
        assert udp(bench.net.outside, target, bench.net.router, ours, (SERVER, 5351), comes=False) is None
    finally:
        bench.instance.surroundings()


@refusing
@pytest.mark.parametrize(("sender", "comes"), [(SERVER, True), (OTHER, False)])
def test_a_restart_announcement_by_multicast_comes_in_from_a_known_server(
    bench: Bench, sender: IPv4Address, comes: bool
) -> None:
    with bound(bench.net.router, socket.SOCK_DGRAM, IPv4Address("224.0.0.1"), 5350) as listener:
        member = socket.inet_aton("224.0.0.1") + socket.inet_aton(str(WAN))
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        listener.settimeout(COMES if comes else STAYS_AWAY)
        with bound(bench.net.outside, socket.SOCK_DGRAM, sender, 5351) as server:
            server.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(str(sender)))
            server.sendto(b"announce", ("224.0.0.1", 5350))
            if comes:
                assert listener.recvfrom(100) == (b"announce", (str(sender), 5351))
            else:
                with pytest.raises(TimeoutError):
                    listener.recvfrom(100)


def test_all_mappings_lead_to_their_clients_again_after_one_was_put_into_a_firewall_loaded_anew(bench: Bench) -> None:
    bench.instance.put(opening())
    load_firewall(bench.kind, bench.net.router)
    later = opening("m2", serial=2, wan_port=4070, client=Endpoint(B, 4070), external=Endpoint(CARRIER, 4070))
    assert bench.instance.put(later) == [None]
    assert tcp(bench.net.outside, (WAN, 4070), bench.net.b, Endpoint(B, 4070), (SERVER, 30020)) is not None
    assert tcp(bench.net.outside, (WAN, 4000), bench.net.a, Endpoint(A, 4000), (SERVER, 30021)) is not None


def test_after_a_restart_of_the_firewall_packets_leave_with_the_wan_port_again(bench: Bench) -> None:
    mapping = opening(protocol=Protocol.UDP, wan_port=4071, client=Endpoint(A, 6881))
    bench.instance.put(mapping)
    load_firewall(bench.kind, bench.net.router)
    bench.instance.sync(mapping)
    probe = (bench.net.outside, Endpoint(SERVER, 7010))
    assert udp(bench.net.a, (SERVER, 7010), *probe, (A, 6881)) == (str(WAN), 4071)
    moved = udp(bench.net.b, (SERVER, 7010), *probe, (B, 4071))
    assert moved is not None
    assert moved[1] in MOVED_PORTS


BANS = {
    "fw4": ("nft", "insert", "rule", "inet", "fw4", "forward", "ip", "saddr", str(OTHER), "drop"),
    "iptables": ("iptables-legacy", "-I", "FORWARD", "-s", str(OTHER), "-j", "DROP"),
}


@pytest.mark.parametrize("kind", BANS)
def test_the_administrators_ban_wins_over_a_mapping(kind: str) -> None:
    with network(f"b{kind[0]}") as net:
        load_firewall(kind, net.router)
        command(*BANS[kind], namespace=net.router)
        instance = Instance(net.router, BACKENDS[kind]())
        instance.surroundings()
        instance.put(opening())
        assert tcp(net.outside, (WAN, 4000), net.a, Endpoint(A, 4000), (OTHER, 30030)) is None
        assert tcp(net.outside, (WAN, 4000), net.a, Endpoint(A, 4000), (SERVER, 30031)) is not None
        instance.vanish()


@pytest.mark.parametrize(
    ("kind", "firewall"),
    [
        ("fw4", firewalls.fw4().replace("meta nfproto ipv4 masquerade", f"ip saddr {A} masquerade")),
        ("own", firewalls.PLAIN.replace("masquerade", f"ip saddr {A} masquerade")),
    ],
)
def test_a_host_that_is_neither_served_nor_translated_keeps_its_address_also_on_a_mapped_port(
    kind: str, firewall: str
) -> None:
    with network(f"u{kind[0]}") as net:
        firewalls.load_nft(net.router, firewall)
        instance = Instance(net.router, BACKENDS[kind]())
        instance.surroundings(replace(SURROUNDINGS, lan_devices=frozenset({"br-served"})))
        instance.put(opening(protocol=Protocol.UDP))
        assert udp(net.b, (SERVER, 7007), net.outside, Endpoint(SERVER, 7007), (B, 4000)) == (str(B), 4000)
        instance.surroundings()
        moved = udp(net.b, (SERVER, 7008), net.outside, Endpoint(SERVER, 7008), (B, 4000))
        assert moved is not None
        assert moved[0] == str(WAN)
        instance.vanish()


def test_a_new_instance_takes_over_what_a_killed_one_left(bench: Bench) -> None:
    killed = Instance(bench.net.router, bench.make())
    killed.put(opening("old", wan_port=4050), opening("kept", serial=2, wan_port=4051, client=Endpoint(B, 4000)))
    killed.vanish()
    bench.instance.sync(opening("kept", serial=2, wan_port=4051, client=Endpoint(B, 4000)))
    assert tcp(bench.net.outside, (WAN, 4050), bench.net.a, Endpoint(A, 4000)) is None
    assert tcp(bench.net.outside, (WAN, 4051), bench.net.b, Endpoint(B, 4000)) is not None
