# SPDX-License-Identifier: Apache-2.0
"""Which ports the redirects of /etc/config/firewall take on the WAN."""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.errors import OurFault
from igdpcp.model import Protocol
from igdpcp.netfilter.taken_ports import PortIndex
from igdpcp.netfilter.uci_redirects import UciRedirects

WAN = IPv4Address("100.64.12.34")
ASKED = (53, 80, 443, 8000, 8005, 8010, 8080)
ZONES = """
config zone
	option name 'lan'
	list network 'lan'

config zone
	option name 'guest'
	option device 'br-guest wlan+'

config zone
	option name 'wan'
	list network 'wan'
	list network 'wan6'

config zone
	option name 'vpn'
	list network 'wg0'
"""
NETWORK = """
config interface 'lan'
	option proto 'static'
	option device 'br-lan'

config interface 'wan'
	option proto 'pppoe'
	option device 'eth1'

config interface 'wg0'
	option proto 'wireguard'
"""


def write(directory: Path, *options: str, section: str = "config redirect") -> None:
    text = "\n".join(f"\toption {option}" for option in options)
    (directory / "firewall").write_text(f"{ZONES}\n{section}\n{text}\n")
    (directory / "network").write_text(NETWORK)


def taken(directory: Path, device: str = "pppoe-wan") -> str:
    """The ports of ASKED that are taken, as "tcp 80 443, udp 53"."""
    index = PortIndex(UciRedirects(directory).taken(device, WAN))
    by_protocol = ((each, [str(port) for port in ASKED if (each, port) in index]) for each in Protocol)
    return ", ".join(f"{protocol.name.lower()} {' '.join(ports)}" for protocol, ports in by_protocol if ports)


BOTH = "tcp 8080, udp 8080"


@pytest.mark.parametrize(
    ("options", "ports"),
    [
        ([], BOTH),
        (["target DNAT"], BOTH),
        (["target SNAT"], ""),
        (["enabled 0"], ""),
        (["enabled 1"], BOTH),
        (["proto tcp"], "tcp 8080"),
        (["proto udp"], "udp 8080"),
        (["proto 'tcp udp'"], BOTH),
        (["proto tcpudp"], BOTH),
        (["proto all"], BOTH),
        (["proto icmp"], ""),
        (["proto 17"], "udp 8080"),
        (["src_dport 8000-8010", "proto tcp"], "tcp 8000 8005 8010"),
        (["src_dport 8000:8005", "proto tcp"], "tcp 8000 8005"),
        (["src_dport '80 443'", "proto tcp"], "tcp 80 443"),
        (["src_dport !80"], ""),
        (["src_dport 99999"], ""),
        (["src_dport ''"], ""),
        (["src lan"], ""),
        (["src guest"], ""),
        (["src vpn"], BOTH),
        (["src '*'"], BOTH),
        (["src ''"], ""),
        (["family ipv6"], ""),
        (["src_dip 100.64.12.34"], BOTH),
        (["src_dip 203.0.113.1"], ""),
    ],
)
def test_a_redirect_takes_its_ports_where_it_is_in_force_on_the_wan(
    tmp_path: Path, options: list[str], ports: str
) -> None:
    write(tmp_path, "src wan", "src_dport 8080", "dest_ip 192.168.1.6", *options)
    assert taken(tmp_path) == ports


def test_without_a_network_configuration_every_zone_may_be_the_wans(tmp_path: Path) -> None:
    write(tmp_path, "src lan", "src_dport 8080")
    (tmp_path / "network").unlink()
    assert taken(tmp_path) == BOTH
    assert taken(tmp_path, "br-lan") == BOTH


def test_a_redirect_is_named_as_its_administrator_knows_it(tmp_path: Path) -> None:
    for section, options, name in (
        ("config redirect", ["name 'My web'"], "'My web'"),
        ("config redirect web", [], "'web'"),
        ("config redirect", [], "@redirect[0]"),
    ):
        write(tmp_path, "src wan", "src_dport 8080", *options, section=section)
        index = PortIndex(UciRedirects(tmp_path).taken("pppoe-wan", WAN))
        assert index.by(Protocol.TCP, 8080) == f"redirect {name} of {tmp_path}/firewall"


def test_a_change_is_seen_and_no_file_is_no_redirect(tmp_path: Path) -> None:
    redirects = UciRedirects(tmp_path)
    assert redirects.taken("wan", WAN) == []
    write(tmp_path, "src wan", "src_dport 8080")
    assert len(redirects.taken("wan", WAN)) == 1
    write(tmp_path, "src wan", "src_dport 8080", "enabled 0")
    os.utime(tmp_path / "firewall", ns=(1, 1))
    assert redirects.taken("wan", WAN) == []


def test_a_file_that_is_no_uci_is_a_fault_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "firewall").write_text("config redirect\n\toption name 'open\n")
    with pytest.raises(OurFault, match="firewall: line 2"):
        UciRedirects(tmp_path).taken("wan", WAN)
