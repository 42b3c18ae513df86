# SPDX-License-Identifier: Apache-2.0
"""Which ports of the WAN other people's rules redirect, as the kernel's tools list them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.errors import RulesetError
from igdpcp.model import Endpoint, Protocol
from igdpcp.netfilter import detect
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.netfilter.redirects import redirects_by_rules
from igdpcp.netfilter.taken_ports import PortIndex
from tests.netfilter import firewalls
from tests.netfilter.topology import WAN, Instance, inside, namespace, opening

pytestmark = pytest.mark.lab
ASKED = (22, 80, 443, 4000, 4060, 8000, 8005, 8010, 8080, 9000)
TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


def taken(router: str, address: IPv4Address = WAN) -> str:
    """The ports of ASKED that are taken, as "tcp 80 443, udp 9000"."""
    index = PortIndex(inside(router, lambda: redirects_by_rules("wan0", address)))
    by_protocol = ((each, [str(port) for port in ASKED if (each, port) in index]) for each in Protocol)
    return ", ".join(f"{protocol.name.lower()} {' '.join(ports)}" for protocol, ports in by_protocol if ports)


def dstnat(rule: str, more: str = "", family: str = "inet") -> str:
    hook = "type nat hook prerouting priority dstnat; policy accept;"
    return f"table {family} t {{\n{more}\nchain in {{\n{hook}\n{rule}\n}}\n}}"


@pytest.mark.parametrize(
    ("rule", "ports"),
    [
        ("tcp dport 8080 dnat ip to 192.168.1.6:80", "tcp 8080"),
        ("udp dport 8080 redirect to :53", "udp 8080"),
        ("meta l4proto { tcp, udp } th dport 8080 dnat ip to 192.168.1.6", "tcp 8080, udp 8080"),
        ("ip protocol udp th dport 8080 dnat ip to 192.168.1.6", "udp 8080"),
        ('iifname "wan0" tcp dport 8000-8010 dnat ip to 192.168.1.6', "tcp 8000 8005 8010"),
        ('iifname { "wan0", "wan1" } tcp dport { 80, 443, 8000-8005 } dnat ip to 192.168.1.6', "tcp 80 443 8000 8005"),
        ('iifname "br-lan" tcp dport 8080 dnat ip to 192.168.1.6', ""),
        ('iifname != "wan0" tcp dport 8080 dnat ip to 192.168.1.6', ""),
        ("tcp dport != 22 dnat ip to 192.168.1.6", ""),
        ('iifname "wan0" dnat ip to 192.168.1.6', ""),
        ("ip daddr 198.51.100.2 tcp dport 8080 dnat ip to 192.168.1.6", "tcp 8080"),
        ("ip daddr 198.51.100.9 tcp dport 8080 dnat ip to 192.168.1.6", ""),
        ("ip daddr 198.51.100.0/24 tcp dport 8080 dnat ip to 192.168.1.6", "tcp 8080"),
        ("ip saddr 203.0.113.0/24 tcp dport 8080 dnat ip to 192.168.1.6", "tcp 8080"),
        ("ether daddr 02:00:00:00:00:01 tcp dport 8080 redirect to :1", "tcp 8080"),
        ("ip6 daddr ::1 tcp dport 8080 redirect to :1", ""),
        ("tcp dport 8080 dnat ip6 to [2600:1::5]:80", ""),
        ("tcp dport 8080 accept", ""),
        ("dnat ip to tcp dport map { 80 : 192.168.1.6, 8000-8010 : 192.168.1.7 }", "tcp 80 8000 8005 8010"),
        ("dnat ip to ip daddr . udp dport map { 198.51.100.2 . 9000 : 192.168.1.6 }", "udp 9000"),
        ("meta l4proto tcp redirect to :tcp dport map { 8080 : 80 }", "tcp 8080"),
        ("tcp dport vmap { 8080 : accept }", ""),
    ],
)
def test_ports_that_a_rule_redirects_are_taken_as_far_as_it_shows_them(router: str, rule: str, ports: str) -> None:
    firewalls.load_nft(router, dstnat(rule))
    assert taken(router) == ports


def test_named_sets_and_maps_are_looked_into(router: str) -> None:
    named = """
set web { type inet_service; flags interval; elements = { 80, 8000-8005 } }
map games { type inet_service : ipv4_addr; elements = { 9000 : 192.168.1.6 } }
"""
    rules = "tcp dport @web dnat ip to 192.168.1.6\ndnat ip to udp dport map @games"
    firewalls.load_nft(router, dstnat(rules, named))
    assert taken(router) == "tcp 80 8000 8005, udp 9000"


def test_what_leads_to_a_chain_counts_for_the_rules_in_it(router: str) -> None:
    chains = (
        "chain games {\nmeta l4proto udp redirect to :1\n}\nchain lan {\ntcp dport 22 redirect to :1\n}\n"
        "chain lost {\ntcp dport 22 redirect to :2\n}"
    )
    rules = 'iifname "wan0" udp dport 9000 jump games\niifname "br-lan" jump lan'
    firewalls.load_nft(router, dstnat(rules, chains, "ip"))
    assert taken(router) == "udp 9000"


def test_chains_that_lead_to_one_another_in_very_many_ways_are_left_after_a_while(router: str) -> None:
    last, six_ways = "chain c13 {\naccept\n}\n", "jump c{next}\n" * 6
    levels = [f"chain c{level} {{\n{six_ways.format(next=level + 1)}}}\n" for level in range(12, -1, -1)]
    firewalls.load_nft(router, dstnat("tcp dport 80 redirect to :1\njump c0", last + "".join(levels)))
    assert taken(router) == "tcp 80"


LEGACY = [
    ("-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination 192.168.1.6:80", "tcp 8080"),
    ("-A PREROUTING -i wan0 -p udp --dport 8000:8010 -j REDIRECT --to-ports 1", "udp 8000 8005 8010"),
    ("-A PREROUTING -p tcp -m multiport --dports 80,443,8000:8005 -j REDIRECT --to-ports 1", "tcp 80 443 8000 8005"),
    ("-A PREROUTING -i br-lan -p tcp --dport 8080 -j REDIRECT --to-ports 1", ""),
    ("-A PREROUTING ! -i br-lan -p tcp --dport 8080 -j REDIRECT --to-ports 1", "tcp 8080"),
    ("-A PREROUTING -p tcp ! --dport 22 -j REDIRECT --to-ports 1", ""),
    ("-A PREROUTING -p tcp -j REDIRECT --to-ports 1", ""),
    ("-A PREROUTING -d 198.51.100.9 -p tcp --dport 8080 -j REDIRECT --to-ports 1", ""),
    ("-A PREROUTING -d 198.51.100.2 -p tcp --dport 8080 -j REDIRECT --to-ports 1", "tcp 8080"),
    (":zone -\n-A PREROUTING -i wan+ -j zone\n-A zone -p udp --dport 9000 -j REDIRECT --to-ports 1", "udp 9000"),
    (":zone -\n-A PREROUTING -p tcp --dport 443 -j zone\n-A zone -p tcp -j REDIRECT --to-ports 1", "tcp 443"),
    (":lost -\n-A lost -p tcp --dport 443 -j REDIRECT --to-ports 1", ""),
    ("-A PREROUTING -p tcp -m comment --comment \"--dport 80\" --dport 443 -j REDIRECT --to-ports 1", "tcp 443"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "ports"), LEGACY)
def test_legacy_iptables_rules_count_in_the_same_way(router: str, rules: str, ports: str) -> None:
    firewalls.load_legacy(router, f"*nat\n{rules}\nCOMMIT\n")
    assert taken(router) == ports


def test_our_own_rules_do_not_count_in_either(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    for backend in (NftablesBackend("fw4"), NftablesBackend("igdpcp"), IptablesBackend()):
        instance = Instance(router, backend)
        instance.surroundings()
        instance.put(opening(client=Endpoint(IPv4Address("192.168.1.5"), 80)))
        instance.vanish()
    assert taken(router) == "tcp 4060"


def test_the_chain_of_a_rule_is_named(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    index = PortIndex(inside(router, lambda: redirects_by_rules("wan0", WAN)))
    assert index.by(TCP, 4060) == "a rule of nftables chain inet fw4 dstnat"


def test_a_program_that_fails_half_way_is_not_believed(
    router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firewalls.load_legacy(router)
    program = tmp_path / "save"
    program.write_text(
        "#!/bin/sh\necho '-A PREROUTING -p tcp --dport 4000 -j DNAT --to-destination 192.168.1.9'\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(detect, "_LEGACY_SAVE", (str(program),))
    with pytest.raises(RulesetError, match=str(program)):
        taken(router)


def test_a_program_that_does_not_end_is_not_waited_for(
    router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    firewalls.load_legacy(router)
    program = tmp_path / "save"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(detect, "_SAVE_SECONDS", 0.05)
    monkeypatch.setattr(detect, "_LEGACY_SAVE", (str(program), "iptables-legacy-save"))
    assert taken(router) == "tcp 4060"


def test_rules_that_cannot_be_read_are_not_taken_for_none(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    firewalls.load_legacy(router)
    monkeypatch.setattr(detect, "_LEGACY_SAVE", ("iptables-none-save",))
    with pytest.raises(RulesetError, match="iptables-none-save"):
        taken(router)
