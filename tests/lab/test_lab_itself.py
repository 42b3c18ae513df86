# SPDX-License-Identifier: Apache-2.0
"""The lab is what the other lab tests take it for."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.lab.namespaces import NETNS_DIRECTORY, LabError, poll, processes_in
from tests.lab.topology import (
    CARRIER_ADDRESS,
    EXTERNAL_ADDRESS,
    INTERNET6_ADDRESS,
    INTERNET_ADDRESS,
    LAN2_6_ADDRESS,
    LAN6_ADDRESS,
    LAN_ADDRESS,
    ROUTER_LAN_ADDRESS,
    ROUTER_WAN_ADDRESS,
    Lab,
)

pytestmark = pytest.mark.lab

OUT_OF_THE_LAB = "9.9.9.9"


def namespaces_of(lab: Lab) -> list[str]:
    return [path.name for path in NETNS_DIRECTORY.iterdir() if path.name.startswith(f"{lab.name}-")]


@pytest.mark.parametrize("firewall", ["nftables", "fw4", "iptables"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_lan_host_reaches_the_internet_through_both_nats(firewall: str, protocol: str) -> None:
    with Lab(firewall) as lab, lab.listen(lab.carrier, protocol, 7000), lab.listen(lab.internet, protocol, 7000):
        probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
        assert probe(lab.lan, CARRIER_ADDRESS, 7000).peer_address == ROUTER_WAN_ADDRESS
        assert probe(lab.lan2, INTERNET_ADDRESS, 7000).peer_address == EXTERNAL_ADDRESS


@pytest.mark.parametrize(("firewall", "inbound"), [("nftables", "answered"), ("fw4", "refused")])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_with_ipv6_only_the_routers_firewall_stands_between_a_lan_host_and_the_internet(
    firewall: str, inbound: str, protocol: str
) -> None:
    with Lab(firewall, ipv6=True) as lab:
        probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
        lab.listen(lab.internet, protocol, 7000, "::")
        lab.listen(lab.lan2, protocol, 7000, "::")
        assert probe(lab.lan, INTERNET6_ADDRESS, 7000).peer_address == LAN6_ADDRESS
        assert probe(lab.internet, LAN2_6_ADDRESS, 7000).outcome == inbound


@pytest.mark.parametrize("firewall", ["nftables", "fw4", "iptables"])
def test_without_nat_the_carrier_sees_the_lan_host_itself(firewall: str) -> None:
    with Lab(firewall, nat=False) as lab, lab.listen(lab.carrier, "tcp", 7000), lab.listen(lab.internet, "tcp", 7000):
        assert lab.tcp_probe(lab.lan, CARRIER_ADDRESS, 7000).peer_address == LAN_ADDRESS
        assert lab.tcp_probe(lab.lan, INTERNET_ADDRESS, 7000).peer_address == EXTERNAL_ADDRESS


def test_a_probe_keeps_the_source_port_it_was_given() -> None:
    with Lab() as lab, lab.listen(lab.router, "udp", 7000):
        assert lab.udp_probe(lab.lan, ROUTER_LAN_ADDRESS, 7000, source_port=4321).peer == f"{LAN_ADDRESS}:4321"


def test_a_port_where_nobody_listens_refuses() -> None:
    with Lab() as lab:
        assert lab.tcp_probe(lab.lan, ROUTER_LAN_ADDRESS, 7000).outcome == "refused"
        assert lab.udp_probe(lab.lan, ROUTER_LAN_ADDRESS, 7000).outcome == "refused"


@pytest.mark.parametrize(("firewall", "outcome"), [("fw4", "refused"), ("iptables", "silent")])
def test_the_routers_firewall_keeps_the_wan_out(firewall: str, outcome: str) -> None:
    with Lab(firewall, nat=False) as lab, lab.listen(lab.lan, "tcp", 80), lab.listen(lab.router, "tcp", 80):
        assert lab.tcp_probe(lab.lan2, LAN_ADDRESS, 80)
        assert lab.tcp_probe(lab.carrier, LAN_ADDRESS, 80, timeout=0.3).outcome == outcome
        assert lab.tcp_probe(lab.carrier, ROUTER_WAN_ADDRESS, 80, timeout=0.3).outcome == outcome


def test_the_internet_host_reaches_nothing_behind_the_carrier_by_itself() -> None:
    with Lab() as lab, lab.listen(lab.router, "tcp", 80):
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 80).outcome == "refused"
        assert not lab.tcp_probe(lab.internet, ROUTER_WAN_ADDRESS, 80)


def test_there_is_no_way_out() -> None:
    with Lab() as lab:
        for host in lab.hosts:
            assert not lab.tcp_probe(host, OUT_OF_THE_LAB, 53, timeout=0.3)


def test_the_machine_itself_gets_no_new_link() -> None:
    before = sorted(path.name for path in Path("/sys/class/net").iterdir())
    with Lab():
        assert sorted(path.name for path in Path("/sys/class/net").iterdir()) == before


def test_two_labs_stand_side_by_side() -> None:
    with Lab() as one, Lab("iptables") as other:
        with one.listen(one.internet, "tcp", 7000):
            assert one.tcp_probe(one.lan, INTERNET_ADDRESS, 7000)
            assert not other.tcp_probe(other.lan, INTERNET_ADDRESS, 7000)
        with other.listen(other.internet, "tcp", 7000):
            assert other.tcp_probe(other.lan, INTERNET_ADDRESS, 7000)


def test_closing_removes_namespaces_processes_and_files() -> None:
    with Lab() as lab:
        heedless = lab.lan.popen(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 60; done"])
        heedless.wait_for("deaf")
        assert len(namespaces_of(lab)) == len(lab.hosts)
        lab.lan.processes.remove(heedless)  # as a process that its parent left behind
    assert namespaces_of(lab) == []
    assert not heedless.alive
    assert not lab.directory.exists()


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_either(failure: type[BaseException]) -> None:
    lab = Lab()

    def use_it_and_fail() -> None:
        with lab:
            lab.internet.popen(["sleep", "60"])
            raise failure

    with pytest.raises(failure):
        use_it_and_fail()
    assert namespaces_of(lab) == []
    assert not lab.internet.processes[0].alive


def test_a_bring_up_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lab.topology.CARRIER_NAT", "this is no ruleset")
    lab = Lab()
    with pytest.raises(LabError, match="syntax error"):
        lab.__enter__()
    assert namespaces_of(lab) == []


def test_leftovers_names_what_is_left() -> None:
    lab = Lab()
    lab.__enter__()
    sleeper = lab.lan.popen(["sleep", "60"])
    poll(lambda: list(processes_in([lab.lan.namespace])), 2.0, "the sleeper in its namespace")
    lab._open.discard(lab.name)
    found = Lab.leftovers()
    lab.close()
    assert lab.lan.namespace in found
    assert f"process {sleeper.pid} in {lab.lan.namespace}" in found
    assert Lab.leftovers() == []


def test_orphans_of_dead_processes_are_removed_and_living_labs_are_not() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    orphan = f"igdpcp-{dead.pid}-1-lan"
    subprocess.run(["ip", "netns", "add", orphan], check=True)
    directory = Path(tempfile.mkdtemp(prefix=f"igdpcp-{dead.pid}-1-"))
    with Lab() as lab:
        assert orphan in Lab.remove_orphans()
        assert len(namespaces_of(lab)) == len(lab.hosts)
        assert lab.directory.exists()
    assert not (NETNS_DIRECTORY / orphan).exists()
    assert not directory.exists()


def test_a_program_that_fails_says_what_it_printed() -> None:
    with Lab() as lab, pytest.raises(LabError, match="exit 3\nwhy"):
        lab.lan.run(["sh", "-c", "echo why; exit 3"])


def test_a_socket_belongs_to_the_host_that_made_it() -> None:
    with Lab() as lab, lab.lan.socket(socket.SOCK_DGRAM) as mine, lab.lan2.socket(socket.SOCK_DGRAM) as theirs:
        mine.bind((LAN_ADDRESS, 0))
        with pytest.raises(OSError, match="assign"):
            theirs.bind((LAN_ADDRESS, 0))
