# SPDX-License-Identifier: Apache-2.0
"""A WAN device that vanishes and returns under its name with another index, as PPPoE's does at each dial-in."""

from __future__ import annotations

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import CARRIER_ADDRESS, CARRIER_INSIDE, EXTERNAL_ADDRESS, LAN_ADDRESS, WAN_DEVICE, Lab

pytestmark = pytest.mark.lab

PORT = 8080
OTHER_WAN_ADDRESS = "100.64.12.99"


def hang_up(lab: Lab) -> None:
    lab.router.run(["ip", "link", "del", WAN_DEVICE])


def dial_in(lab: Lab, address: str) -> None:
    """Both ends of the WAN link are made anew."""
    inside, outside = lab.carrier, lab.router
    outside.run(
        ["ip", "link", "add", WAN_DEVICE, "type", "veth", "peer", "name", CARRIER_INSIDE, "netns", inside.namespace]
    )
    inside.run(["ip", "addr", "add", f"{CARRIER_ADDRESS}/24", "dev", CARRIER_INSIDE])
    inside.run(["ip", "link", "set", CARRIER_INSIDE, "up"])
    outside.run(["ip", "addr", "add", f"{address}/24", "dev", WAN_DEVICE])
    outside.run(["ip", "link", "set", WAN_DEVICE, "up"])
    outside.run(["ip", "route", "add", "default", "via", CARRIER_ADDRESS])


@pytest.mark.parametrize("firewall", ["fw4", "nftables", "iptables"])
@pytest.mark.parametrize("address", [topology.ROUTER_WAN_ADDRESS, OTHER_WAN_ADDRESS], ids=["same", "other"])
def test_mappings_work_again_after_the_wan_has_dialled_in_again(firewall: str, address: str) -> None:
    with Lab(firewall=firewall) as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, "iptables" if firewall == "iptables" else "nftables")
        lab.listen(lab.lan, "tcp", PORT)
        lab.listen(lab.lan, "tcp", PORT + 1)
        client = soap_client(lab.lan)
        assert client.add("tcp", PORT, LAN_ADDRESS, PORT, lease=3600)
        index = lab.router.run(["cat", f"/sys/class/net/{WAN_DEVICE}/ifindex"]).stdout

        hang_up(lab)
        poll(lambda: daemon.status()["wan"]["address"] is None, 10, "the loss of the WAN being noticed")
        if address != topology.ROUTER_WAN_ADDRESS:
            carrier.reset(forget=True)
        dial_in(lab, address)

        assert lab.router.run(["cat", f"/sys/class/net/{WAN_DEVICE}/ifindex"]).stdout != index
        poll(
            lambda: lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT, timeout=0.5).listener == "lan",
            10,
            f"the mapping working again:\n{daemon.log()}",
        )
        assert lab.tcp_probe(lab.lan2, EXTERNAL_ADDRESS, PORT).listener == "lan"
        daemon.wait_for_activation("active")
        assert client.add("tcp", PORT + 1, LAN_ADDRESS, PORT + 1)
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT + 1).listener == "lan"
