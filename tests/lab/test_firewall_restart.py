# SPDX-License-Identifier: Apache-2.0
"""A firewall that is restarted takes our rules along; they come back without a request from anybody."""

from __future__ import annotations

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
REPAIR_SECONDS = 35.0


@pytest.mark.parametrize("firewall", ["fw4", "iptables"])
def test_after_a_restart_of_the_firewall_mappings_work_again(firewall: str) -> None:
    with Lab(firewall=firewall) as lab:
        ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, "iptables" if firewall == "iptables" else "nftables")
        lab.listen(lab.lan, "tcp", PORT)
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        if firewall == "fw4":
            lab.router.run(["nft", "delete", "table", "inet", "fw4"])
        lab.load_firewall()
        assert not lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.3)

        poll(
            lambda: lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.5).listener == "lan",
            REPAIR_SECONDS,
            f"the path being open again:\n{daemon.log()}",
        )

        assert len(daemon.events("ruleset_gone")) == 1
        assert daemon.status()["firewall"]["problem"] is None
        assert lab.tcp_probe(lab.lan2, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
