# SPDX-License-Identifier: Apache-2.0
"""A LAN host's DHCP lease ends: what led to it is closed on the whole path, and what leads to others is not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from igdpcp.net.leases import GRACE_SECONDS, LOOK_SECONDS
from tests.lab import topology
from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import ROOT, Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import LAN2_ADDRESS, LAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

HOOK = ROOT / "files/etc/hotplug.d/dhcp/90-igdpcp"
MACS = {LAN_ADDRESS: "02:00:00:00:00:50", LAN2_ADDRESS: "02:00:00:00:00:60"}
WITHIN = GRACE_SECONDS + 3 * LOOK_SECONDS
PORTS = (8080, 8081)
OTHERS_PORT, OPERATORS_PORT = 9090, 9443


@pytest.fixture(params=["nftables", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(firewall=request.param) as lab:
        yield lab


class Home:
    """Two hosts with mappings, the first one with an operator's too, and what their DHCP server says."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.carrier = SimulatedCarrier(lab)
        self.file = lab.directory / "dhcp.leases"
        self.file.write_text("")
        self.daemon = Igdpcpd(lab, lab.firewall, main={"dhcp_leases": str(self.file), "external_ip_probe": "0"})
        self.daemon.wait_for_activation()
        self.client = soap_client(lab.lan)
        for port in PORTS:
            assert self.client.add("tcp", port, LAN_ADDRESS, port)
        assert soap_client(lab.lan2).add("tcp", OTHERS_PORT, LAN2_ADDRESS, OTHERS_PORT)
        self.daemon.result(
            "add", protocol="tcp", external_port=OPERATORS_PORT, client=LAN_ADDRESS, client_port=OPERATORS_PORT
        )
        uci = lab.directory / "bin" / "uci"
        uci.parent.mkdir()
        uci.write_text(f"#!/bin/sh\necho {self.daemon.run_dir}\n")
        uci.chmod(0o755)

    def hotplug(self, action: str, address: str = LAN_ADDRESS) -> None:
        """What dnsmasq's event does on OpenWrt."""
        variables = {"ACTION": action, "IPADDR": address, "MACADDR": MACS[address], "HOSTNAME": "$(reboot)"}
        path = f"{self.lab.directory}/bin:/usr/bin:/bin"
        self.lab.router.run(["busybox", "ash", "-c", f". {HOOK}"], env={"PATH": path, **variables})

    @property
    def open_ports(self) -> list[int]:
        return [mapping.external_port for mapping in self.carrier.table()]

    def wait_for_the_end(self) -> None:
        left = [OTHERS_PORT, OPERATORS_PORT]
        poll(lambda: self.open_ports == left, WITHIN, f"the end of the host's mappings:\n{self.daemon.log()}")
        assert sorted(row["external_port"] for row in self.daemon.mappings()) == left
        for port in PORTS:
            poll(lambda port=port: not rules_for(self.lab, LAN_ADDRESS, port), WITHIN, f"the rules' end for {port}")  # type: ignore[misc]
            assert not self.lab.tcp_probe(self.lab.internet, topology.EXTERNAL_ADDRESS, port)
        deletions = [asked for asked in self.carrier.maps() if not asked["lifetime"]]
        assert {asked["internal_port"] for asked in deletions} == {*PORTS}


def test_iwf_190_a_released_lease_ends_the_hosts_mappings_on_the_whole_path(lab: Lab) -> None:
    home = Home(lab)
    home.hotplug("remove")
    home.wait_for_the_end()


def test_iwf_190_a_lease_that_runs_out_in_the_file_ends_the_hosts_mappings(lab: Lab) -> None:
    home = Home(lab)
    now = int(time.time())
    lines = [
        f"{now + 3} {MACS[LAN_ADDRESS]} {LAN_ADDRESS} pc *",
        f"{now + 900} {MACS[LAN2_ADDRESS]} {LAN2_ADDRESS} * *",
    ]
    home.file.write_text("\n".join(lines) + "\n")
    home.wait_for_the_end()


def test_iwf_190_a_lease_that_is_released_while_the_daemon_is_dead_ends_at_the_next_start(lab: Lab) -> None:
    home = Home(lab)
    home.daemon.kill()
    home.hotplug("remove")
    home.daemon.start()
    home.wait_for_the_end()


def test_iwf_191_a_renewed_or_reacquired_lease_deletes_nothing(lab: Lab) -> None:
    """The other host's lease is released behind it, so that its end says when the first one's would have come."""
    home = Home(lab)
    home.hotplug("update")
    home.hotplug("remove")
    home.hotplug("add")
    home.hotplug("remove", LAN2_ADDRESS)
    poll(lambda: OTHERS_PORT not in home.open_ports, WITHIN, "the end of the other host's mapping")
    assert home.open_ports == [*PORTS, OPERATORS_PORT]
    assert [asked["internal_port"] for asked in home.carrier.maps() if not asked["lifetime"]] == [OTHERS_PORT]
