# SPDX-License-Identifier: Apache-2.0
"""A LAN that gets its address when the daemon runs already is served like any other."""

from __future__ import annotations

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
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
