# SPDX-License-Identifier: Apache-2.0
"""A network that changes under the daemon: IPv6 that comes late, and another prefix on the way to the server."""

from __future__ import annotations

import pytest

from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import (
    CARRIER6_ADDRESS,
    EXTERNAL_ADDRESS,
    LAN_ADDRESS,
    ROUTER_WAN6_ADDRESS,
    WAN_DEVICE,
    Lab,
)

pytestmark = pytest.mark.lab

PORT = 8080
OTHER_WAN6_ADDRESS = "2600:1:2::99"


def ip(lab: Lab, *commands: str) -> None:
    for command in commands:
        lab.router.run(["ip", *command.split()])


def test_a_server_over_ipv6_is_asked_as_soon_as_there_is_a_way_to_it() -> None:
    with Lab(ipv6=True) as lab:
        SimulatedCarrier(lab, address=CARRIER6_ADDRESS)
        ip(lab, f"addr del {ROUTER_WAN6_ADDRESS}/64 dev {WAN_DEVICE}", f"-6 route flush dev {WAN_DEVICE}")
        daemon = Igdpcpd(lab, upstream={"server": [CARRIER6_ADDRESS]})
        daemon.wait_for_activation("no_wan")
        ip(lab, f"addr add {ROUTER_WAN6_ADDRESS}/64 dev {WAN_DEVICE}", f"-6 route add default via {CARRIER6_ADDRESS}")
        daemon.wait_for_activation()


def test_another_address_of_ours_on_the_way_to_the_server_is_followed() -> None:
    with Lab(nat=False, ipv6=True) as lab:
        carrier = SimulatedCarrier(lab, address=CARRIER6_ADDRESS)
        daemon = Igdpcpd(lab, upstream={"server": [CARRIER6_ADDRESS]})
        daemon.wait_for_activation()
        lab.listen(lab.lan, "tcp", PORT + 1)
        assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
        ip(
            lab,
            f"addr add {OTHER_WAN6_ADDRESS}/64 dev {WAN_DEVICE}",
            f"addr del {ROUTER_WAN6_ADDRESS}/64 dev {WAN_DEVICE}",
            f"-6 route replace default via {CARRIER6_ADDRESS}",
        )
        poll(lambda: carrier.requests()[-1]["from"] == OTHER_WAN6_ADDRESS, 10, "requests from the other address")
        daemon.wait_for_activation()
        assert soap_client(lab.lan).add("tcp", PORT + 1, LAN_ADDRESS, PORT + 1)
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT + 1).listener == "lan"
