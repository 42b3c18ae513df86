# SPDX-License-Identifier: Apache-2.0
"""The modes besides cascaded (test_main_job.py): the router that only routes, and the one that serves alone."""

from __future__ import annotations

import pytest

from tests.lab import topology
from tests.lab.carrier import CarrierMapping, MiniupnpdCarrier, ScriptedCarrier
from tests.lab.clients import Upnpc, soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.rules import rules_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
BOTH_BACKENDS = pytest.mark.parametrize("firewall", ["nftables", "fw4", "iptables"])


def backend(firewall: str) -> str:
    return "iptables" if firewall == "iptables" else "nftables"


@BOTH_BACKENDS
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_routed_the_carrier_maps_the_lan_host_itself(firewall: str, protocol: str) -> None:
    with Lab(firewall=firewall, nat=False) as lab:
        carrier = MiniupnpdCarrier(lab)
        daemon = Igdpcpd(lab, backend(firewall))
        daemon.wait_for_advertising()
        lab.listen(lab.lan, protocol, PORT)
        probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
        upnpc = Upnpc(lab.lan)

        upnpc.add(PORT, PORT, protocol.upper())

        carrier.wait_until_only(CarrierMapping(protocol, PORT, topology.LAN_ADDRESS, PORT))
        assert probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
        assert daemon.status()["mode"] == "routed"
        assert rules_for(lab, topology.LAN_ADDRESS, PORT)
        upnpc.delete(PORT, protocol.upper())
        assert carrier.table() == []
        assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


@pytest.mark.parametrize("firewall", ["fw4", "iptables"])
def test_routed_a_firewall_that_rejects_lets_in_what_is_mapped_and_nothing_else(firewall: str) -> None:
    with Lab(firewall=firewall, nat=False) as lab:
        ScriptedCarrier(lab, third_party=True)
        Igdpcpd(lab, backend(firewall))
        lab.listen(lab.lan, "tcp", PORT)
        lab.listen(lab.lan, "tcp", PORT + 1)
        assert not lab.tcp_probe(lab.carrier, topology.LAN_ADDRESS, PORT)
        client = soap_client(lab.lan)
        assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

        assert lab.tcp_probe(lab.carrier, topology.LAN_ADDRESS, PORT)
        assert not lab.tcp_probe(lab.carrier, topology.LAN_ADDRESS, PORT + 1)

        assert client.delete("tcp", PORT)
        assert not lab.tcp_probe(lab.carrier, topology.LAN_ADDRESS, PORT)


def test_nat_auto_finds_out_by_itself_whether_the_router_translates() -> None:
    for firewall, nat, mode in (
        ("nftables", True, "cascaded"),
        ("iptables", True, "cascaded"),
        ("fw4", True, "cascaded"),
        ("nftables", False, "routed"),
        ("fw4", False, "routed"),
    ):
        with Lab(firewall=firewall, nat=nat) as lab:
            ScriptedCarrier(lab)
            daemon = Igdpcpd(lab, backend(firewall), upstream={"nat": "auto"})
            assert daemon.status()["mode"] == mode, (firewall, nat)


def test_routed_only_a_configured_server_is_asked_on_behalf_of_others() -> None:
    """THIRD_PARTY needs a trusted server (RFC 6970 section 6, IWF-054)."""
    with Lab(nat=False) as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, upstream={"server": []})
        daemon.wait_for_activation("active")

        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501

        assert [request["internal_port"] for request in carrier.maps()] == [9]
        assert "option server" in daemon.cli("status").stdout


@BOTH_BACKENDS
def test_local_without_a_pcp_server_the_routers_own_address_serves(firewall: str) -> None:
    """The default router answers no PCP, so the interworking function is not invoked (RFC 6970 section 5.1)."""
    with Lab(firewall=firewall) as lab:
        daemon = Igdpcpd(lab, backend(firewall), main={"allow_private_external": "1"}, upstream={"server": []})
        daemon.wait_for_activation("no_server")
        lab.listen(lab.lan, "tcp", PORT)
        client = soap_client(lab.lan)

        assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

        assert client.external_address()["NewExternalIPAddress"] == topology.ROUTER_WAN_ADDRESS
        answer = lab.tcp_probe(lab.carrier, topology.ROUTER_WAN_ADDRESS, PORT)
        assert answer.listener == "lan"
        assert daemon.status()["mode"] == "local"
        assert client.delete("tcp", PORT)
        assert not lab.tcp_probe(lab.carrier, topology.ROUTER_WAN_ADDRESS, PORT)
        assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_local_by_configuration_sends_no_pcp_packet() -> None:
    with Lab() as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, upstream={"type": "none"})

        assert soap_client(lab.lan).add("udp", PORT, topology.LAN_ADDRESS, PORT)

        assert carrier.counters().get("datagrams", 0) == 0
        assert daemon.status()["mode"] == "local"


def test_a_shared_address_is_never_told_as_the_external_one() -> None:
    with Lab() as lab:
        daemon = Igdpcpd(lab, upstream={"type": "none"})
        client = soap_client(lab.lan)

        assert client.external_address()["NewExternalIPAddress"] == ""
        assert client.call("GetStatusInfo")["NewConnectionStatus"] == "Disconnected"
        assert "not public" in daemon.status()["external_address_reason"]


@pytest.mark.parametrize(("upstream", "nat", "words"), [
    ({}, True, "cascaded"),
    ({}, False, "routed"),
    ({"type": "none"}, True, "local"),
])  # fmt: skip
def test_status_fits_one_screen_in_each_mode(upstream: dict[str, str], nat: bool, words: str) -> None:
    with Lab(nat=nat) as lab:
        ScriptedCarrier(lab, third_party=True)
        daemon = Igdpcpd(lab, upstream=upstream)
        if words != "local":
            daemon.wait_for_activation("active")
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)

        screen = daemon.cli("status").stdout.splitlines()

        assert len(screen) <= 24
        assert max(map(len, screen)) <= 80
        text = "\n".join(screen)
        assert words in text
        assert "1 active" in text
        assert topology.ROUTER_WAN_ADDRESS in text
        assert (topology.EXTERNAL_ADDRESS in text) is (words != "local")
