# SPDX-License-Identifier: Apache-2.0
"""LANs whose addresses come and go while the daemon runs."""

from __future__ import annotations

import pytest

from tests.lab import topology
from tests.lab.altered import SHORT_GRACE, altered
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080


@pytest.mark.parametrize("firewall", ["nftables", "iptables"])
def test_a_late_lan_reaches_its_own_mappings_by_the_external_address(firewall: str) -> None:
    with Lab(firewall=firewall) as lab:
        ScriptedCarrier(lab)
        lab.router.run(["ip", "addr", "flush", "dev", topology.LAN_DEVICE])
        daemon = Igdpcpd(lab, firewall)
        lab.listen(lab.lan, "tcp", PORT)

        lab.router.run(["ip", "addr", "add", f"{topology.ROUTER_LAN_ADDRESS}/24", "dev", topology.LAN_DEVICE])

        daemon.wait_for_advertising()
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
        assert lab.tcp_probe(lab.lan2, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


@pytest.mark.parametrize("firewall", ["nftables", "iptables"])
def test_a_mapping_to_a_host_that_a_renumbered_lan_no_longer_has_is_closed(firewall: str) -> None:
    with Lab(firewall=firewall) as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, firewall, env=altered(lab, SHORT_GRACE))
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        assert PORT in [held.external_port for held in carrier.table()]

        lab.router.run(["ip", "addr", "add", "192.168.77.1/24", "dev", topology.LAN_DEVICE])
        lab.router.run(["ip", "addr", "del", f"{topology.ROUTER_LAN_ADDRESS}/24", "dev", topology.LAN_DEVICE])

        poll(lambda: not daemon.mappings(), 10.0, "the mapping's end")
        poll(lambda: PORT not in [held.external_port for held in carrier.table()], 10.0, "its end at the carrier")
