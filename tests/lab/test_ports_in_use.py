# SPDX-License-Identifier: Apache-2.0
"""WAN ports that the router's programs or the administrator's redirects have are not mapped, and conflicts are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import topology
from tests.lab.altered import altered
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
USED = 718  # ConflictInMappingEntry
PATIENCE = 15.0
QUICK_AUDIT = """
from pathlib import Path
from igdpcp.daemon import ruleset_watch
from igdpcp.netfilter import uci_redirects

ruleset_watch.AUDIT_SECONDS = 0.5
uci_redirects.DIRECTORY = Path({directory!r})
"""
REDIRECT = """
table ip administrator {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan" tcp dport 8080 dnat to 192.168.1.60:80
	}
}
"""
UCI_REDIRECT = """
config redirect
	option name 'Web'
	option src 'wan'
	option src_dport '8080'
	option proto 'tcp'
	option dest_ip '192.168.1.60'
"""
LEGACY_REDIRECT = ["iptables-legacy", "-t", "nat", "-I", "PREROUTING", "-i", "wan", "-p", "tcp", "--dport", "8080",
                   "-j", "DNAT", "--to-destination", "192.168.1.60:80"]  # fmt: skip


WITHOUT_SOCK_DIAG = """
from igdpcp.net import listeners

listeners.NETLINK_SOCK_DIAG = 31
"""


LASTS_SOON = """
from igdpcp.daemon import ports_in_use

ports_in_use.LASTING_SECONDS = 2.0
"""


def started(lab: Lab, alteration: str = "", **options: str) -> Igdpcpd:
    """A daemon that audits often, and reads the firewall's configuration in the lab's directory."""
    backend = "iptables" if lab.firewall == "iptables" else "nftables"
    quick = altered(lab, QUICK_AUDIT.format(directory=str(lab.directory)) + alteration)
    return Igdpcpd(lab, backend, env=quick, upstream=options)


def take(lab: Lab, who: str) -> None:
    """Let somebody else have TCP port 8080 of the WAN."""
    if who == "service":
        lab.listen(lab.router, "tcp", PORT)
    elif who == "uci":
        Path(lab.directory, "firewall").write_text(UCI_REDIRECT)
    elif lab.firewall == "iptables":
        lab.router.run(LEGACY_REDIRECT)
    else:
        lab.router.nft(REDIRECT)


@pytest.mark.parametrize("firewall", ["fw4", "iptables"])
@pytest.mark.parametrize("who", ["service", "uci", "rule"])
def test_iwf_065_a_port_that_somebody_has_is_not_mapped(firewall: str, who: str) -> None:
    with Lab(firewall=firewall) as lab:
        carrier = ScriptedCarrier(lab)
        take(lab, who)
        started(lab)
        client = soap_client(lab.lan)
        lab.listen(lab.lan, "tcp", PORT)

        assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

        [mapping] = carrier.table()
        assert mapping.external_port == PORT
        assert mapping.port != PORT
        assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
        assert client.add("udp", PORT, topology.LAN_ADDRESS, PORT)
        assert {each.port for each in carrier.table() if each.protocol == "udp"} == {PORT}


def test_iwf_065_the_port_to_which_the_carrier_answers_is_not_mapped() -> None:
    """The kernel would not name it: its socket hears nobody but the carrier."""
    with Lab() as lab:
        carrier = ScriptedCarrier(lab)
        started(lab)
        [line] = lab.router.run(["ss", "-Hun", "dport", "=", ":5351"]).stdout.splitlines()
        port = int(line.split()[-2].rpartition(":")[2])

        assert soap_client(lab.lan).add("udp", port, topology.LAN_ADDRESS, PORT)

        [mapping] = carrier.table()
        assert mapping.external_port == port
        assert mapping.port != port


@pytest.mark.parametrize("who", ["service", "uci", "rule"])
def test_iwf_065_a_router_that_serves_alone_refuses_a_port_that_somebody_has(who: str) -> None:
    with Lab(firewall="fw4") as lab:
        take(lab, who)
        started(lab, type="none")
        client = soap_client(lab.lan)
        assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == USED
        assert client.add("udp", PORT, topology.LAN_ADDRESS, PORT)
        assert client.add("tcp", PORT + 1, topology.LAN_ADDRESS, PORT)


def test_a_kernel_that_does_not_tell_listeners_is_told_of_and_ports_are_tried() -> None:
    with Lab() as lab:
        take(lab, "service")
        daemon = started(lab, WITHOUT_SOCK_DIAG, type="none")
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == USED
        assert soap_client(lab.lan).add("tcp", PORT + 1, topology.LAN_ADDRESS, PORT)
        [line] = daemon.events("ports_in_use_unknown")
        assert "kmod-inet-diag" in line["reason"]


@pytest.mark.parametrize(
    ("firewall", "who", "named"),
    [
        ("fw4", "service", "a program of this router"),
        ("fw4", "uci", "redirect 'Web' of"),
        ("fw4", "rule", "a rule of nftables chain ip administrator prerouting"),
        ("iptables", "rule", "a rule of iptables chain PREROUTING"),
    ],
)
def test_a_mapping_whose_port_somebody_takes_later_is_told_once(firewall: str, who: str, named: str) -> None:
    with Lab(firewall=firewall) as lab:
        daemon = started(lab, type="none")
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, 8000)
        assert daemon.status()["port_conflicts"] == []
        take(lab, who)

        [told] = poll(lambda: daemon.status()["port_conflicts"], PATIENCE, f"a conflict:\n{daemon.log()}")

        assert told.startswith(f"tcp {PORT}, mapped to {topology.LAN_ADDRESS}:8000, is also used by {named}")
        assert f"Ports     tcp {PORT}, mapped to" in daemon.cli("status").stdout
        [line] = daemon.events("wan_port_taken")
        assert (line["wan_port"], line["client"]) == (str(PORT), f"{topology.LAN_ADDRESS}:8000")
        assert line["by"].startswith(named)
        assert soap_client(lab.lan).delete("tcp", PORT)
        assert daemon.status()["port_conflicts"] == []
        assert len(daemon.events("wan_port_taken")) == 1


def test_a_datagram_socket_is_a_conflict_when_it_lasts() -> None:
    with Lab() as lab:
        daemon = started(lab, LASTS_SOON, type="none")
        assert soap_client(lab.lan).add("udp", PORT, topology.LAN_ADDRESS, 8000)
        lab.listen(lab.router, "udp", PORT)
        poll(lambda: daemon.status()["port_conflicts"], PATIENCE, f"a conflict:\n{daemon.log()}")


def test_rules_that_cannot_be_read_are_told_once_and_what_was_known_stays() -> None:
    with Lab(firewall="fw4") as lab:
        take(lab, "uci")
        daemon = started(lab, type="none")
        Path(lab.directory, "firewall").write_text("config redirect\n\toption name 'open\n")
        poll(lambda: daemon.events("ports_in_use_unknown"), PATIENCE, "a line that it cannot be read")
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == USED
        Path(lab.directory, "firewall").write_text("")
        poll(
            lambda: bool(soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)),
            PATIENCE,
            "the port is free",
        )
        assert len(daemon.events("ports_in_use_unknown")) == 1
