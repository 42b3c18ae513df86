# SPDX-License-Identifier: Apache-2.0
"""Our objects included in an administrator's own table, whose forward and input chains refuse what they do not know."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from igdpcp.errors import OurFault, RulesetError
from igdpcp.model import Endpoint, Mode, Protocol
from igdpcp.netfilter import layout, nftables_table
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.openings import PcpPeer
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    A6,
    CARRIER,
    PCP_PORT,
    SERVER,
    SERVER6,
    SURROUNDINGS,
    WAN,
    A,
    B,
    Instance,
    Network,
    bound,
    command,
    namespace,
    network,
    opening,
    pinhole,
    tcp,
    udp,
)

pytestmark = pytest.mark.lab

FILE = Path(__file__).parents[2] / "files" / nftables_table.INCLUDE_FILE.removeprefix("/")
JUMP_IN_FORWARD = "jump igdpcp1_fwd"
TABLE = f"""\
flush ruleset
table inet filter {{
	include "{FILE}"
	chain input {{
		type filter hook input priority filter; policy drop;
		iifname {{ "lo", "br-lan" }} accept
		ct state established,related accept
		meta l4proto ipv6-icmp accept
		jump igdpcp1_in
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname "br-lan" oifname "wan0" accept
		{JUMP_IN_FORWARD}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan0" meta nfproto ipv4 masquerade
	}}
}}
"""


def listed(router: str) -> str:
    return command("nft", "-s", "list", "ruleset", namespace=router)


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("i") as made:
        yield made


@pytest.fixture
def included(net: Network) -> Iterator[Instance]:
    firewalls.load_nft(net.router, TABLE)
    instance = Instance(net.router, NftablesBackend("filter"))
    instance.surroundings()
    yield instance
    instance.call(instance.commits.close)
    instance.vanish()


def test_the_shipped_file_is_what_the_layout_says() -> None:
    assert FILE.read_text() == layout.include()


@pytest.mark.parametrize("protocol", list(Protocol))
def test_mapped_packets_pass_a_forward_chain_that_drops_until_the_mapping_goes(
    net: Network, included: Instance, protocol: Protocol
) -> None:
    at = Endpoint(A, 4000)
    included.put(opening(protocol=protocol))
    if protocol is Protocol.TCP:
        assert tcp(net.outside, (WAN, 4000), net.a, at, (SERVER, 30001)) == (str(SERVER), 30001)
        assert tcp(net.b, (CARRIER, 4000), net.a, at) is not None
    else:
        assert udp(net.outside, (WAN, 4000), net.a, at, (SERVER, 30002)) == (str(SERVER), 30002)
        assert udp(net.a, (SERVER, 7000), net.outside, Endpoint(SERVER, 7000), (A, 4000)) == (str(WAN), 4000)
    assert udp(net.outside, (WAN, 4001), net.a, Endpoint(A, 4001), comes=False) is None
    included.remove("m1")
    assert udp(net.outside, (WAN, 4000), net.a, at, (SERVER, 30003), comes=False) is None


def test_routed_packets_and_pinholes_pass_it(net: Network, included: Instance) -> None:
    included.put(opening(mode=Mode.ROUTED, protocol=Protocol.UDP), pinhole(protocol=Protocol.UDP))
    assert udp(net.outside, (A, 4000), net.a, Endpoint(A, 4000)) is not None
    assert udp(net.outside, (B, 4000), net.b, Endpoint(B, 4000), comes=False) is None
    with (
        bound(net.a, socket.SOCK_DGRAM, A6, 4000) as server,
        bound(net.outside, socket.SOCK_DGRAM, SERVER6, 0) as client,
    ):
        client.sendto(b"in", (str(A6), 4000))
        server.settimeout(5)
        assert server.recv(10) == b"in"


def test_the_pcp_servers_packets_come_in(net: Network, included: Instance) -> None:
    ours = Endpoint(WAN, PCP_PORT)
    assert udp(net.outside, (WAN, PCP_PORT), net.router, ours, (SERVER, 5351)) is not None
    assert udp(net.outside, (WAN, PCP_PORT), net.router, ours, (SERVER, 5352), comes=False) is None


def test_what_the_administrator_loads_again_is_filled_again(net: Network, included: Instance) -> None:
    included.put(opening())
    firewalls.load_nft(net.router, TABLE)
    later = opening("m2", serial=2, wan_port=4001, client=Endpoint(B, 4001), external=Endpoint(CARRIER, 4001))
    assert included.put(later) == [None]
    assert tcp(net.outside, (WAN, 4000), net.a, Endpoint(A, 4000)) is not None
    assert tcp(net.outside, (WAN, 4001), net.b, Endpoint(B, 4001)) is not None


def test_the_table_is_never_made_or_deleted_by_us(net: Network, included: Instance) -> None:
    firewalls.load_nft(net.router, TABLE)
    before = listed(net.router)
    included.sync(opening())
    included.release()
    assert listed(net.router) == before
    command("nft", "flush", "ruleset", namespace=net.router)
    with pytest.raises(RulesetError, match="firewall not active, or without its include of /usr/share/igdpcp"):
        included.sync(opening())
    assert listed(net.router) == ""


def test_it_is_recognized_when_it_comes_after_the_start(router: str) -> None:
    instance = Instance(router, NftablesBackend("filter"))
    instance.surroundings()
    firewalls.load_nft(router, TABLE)
    before = listed(router)
    instance.sync()
    instance.release()
    instance.vanish()
    assert listed(router) == before


def test_a_forward_chain_that_does_not_lead_to_ours_is_named(router: str) -> None:
    for text, problem in ((TABLE, None), (TABLE.replace(JUMP_IN_FORWARD, ""), "chain inet filter forward")):
        firewalls.load_nft(router, text)
        instance = Instance(router, NftablesBackend("filter"))
        reason = instance.call(instance.commits.foreign_drop)
        instance.vanish()
        assert (problem or "") in (reason or "")
        assert (reason is None) is (problem is None)
    assert "it must 'jump igdpcp1_fwd'" in reason


def test_a_way_to_ours_by_another_chain_counts(router: str) -> None:
    indirect = TABLE.replace(JUMP_IN_FORWARD, 'iifname "wan0" jump from_wan')
    indirect = indirect.replace("chain forward {", f"chain from_wan {{\n{JUMP_IN_FORWARD}\n}}\nchain forward {{")
    firewalls.load_nft(router, indirect)
    instance = Instance(router, NftablesBackend("filter"))
    assert instance.call(instance.commits.foreign_drop) is None
    instance.vanish()


def test_somebody_elses_table_without_the_include_is_refused_with_both_ways_out(router: str) -> None:
    firewalls.load_nft(router, "table inet filter {\nchain forward {\naccept\n}\n}")
    with pytest.raises(OurFault, match=r"belongs to somebody else.*no table has, or include /usr/share/igdpcp/"):
        Instance(router, NftablesBackend("filter"))


def test_included_objects_keep_hosts_behind_the_router_from_pcp_servers(net: Network, included: Instance) -> None:
    peers = frozenset({PcpPeer(SERVER, PCP_PORT)})
    included.surroundings(replace(SURROUNDINGS, pcp_peers=peers, blocks_lan_pcp=True))
    assert udp(net.a, (SERVER, 5351), net.outside, Endpoint(SERVER, 5351), comes=False) is None
