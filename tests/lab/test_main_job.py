# SPDX-License-Identifier: Apache-2.0
"""The main job: a stock control point opens a port through both NATs, and a connection comes in from the internet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.carrier import CarrierMapping, MiniupnpdCarrier
from tests.lab.clients import Upnpc, soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.rules import our_rules, rules_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080


@pytest.fixture(params=["nftables", "fw4", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(firewall=request.param) as lab:
        yield lab


def backend(lab: Lab) -> str:
    return "iptables" if lab.firewall == "iptables" else "nftables"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_opened_with_upnpc_leads_from_the_internet_to_the_lan_host_and_is_closed_again(
    lab: Lab, protocol: str
) -> None:
    carrier = MiniupnpdCarrier(lab)
    daemon = Igdpcpd(lab, backend(lab))
    daemon.wait_for_advertising()
    upnpc = Upnpc(lab.lan)
    lab.listen(lab.lan, protocol, PORT)
    probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
    assert not probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT)

    opened = upnpc.add(PORT, PORT, protocol.upper())

    assert f"external {topology.EXTERNAL_ADDRESS}:{PORT} {protocol.upper()} is redirected to internal" in opened.stdout
    carrier.wait_until_only(CarrierMapping(protocol, PORT, topology.ROUTER_WAN_ADDRESS, PORT))
    assert rules_for(lab, topology.LAN_ADDRESS, PORT)
    answer = probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT)
    assert answer.listener == "lan"
    assert answer.peer_address == topology.INTERNET_ADDRESS
    assert f"{PORT}->{topology.LAN_ADDRESS}:{PORT}" in upnpc.list().stdout

    closed = upnpc.delete(PORT, protocol.upper())

    assert "UPNP_DeletePortMapping() returned : 0" in closed.stdout
    assert carrier.table() == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)
    assert not probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT)


def test_add_any_tells_the_port_that_the_carrier_chose_and_that_port_works(lab: Lab) -> None:
    carrier = MiniupnpdCarrier(lab)
    Igdpcpd(lab, backend(lab))
    first = soap_client(lab.lan, version=2)
    second = soap_client(lab.lan2, version=2)
    lab.listen(lab.lan2, "tcp", PORT)
    assert first.add("tcp", PORT, topology.LAN_ADDRESS, PORT, any_port=True)["NewReservedPort"] == str(PORT)

    reply = second.add("tcp", PORT, topology.LAN2_ADDRESS, PORT, any_port=True)

    port = int(reply["NewReservedPort"])
    assert port != PORT
    assert port in [mapping.external_port for mapping in carrier.table()]
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, port).listener == "lan2"


def test_iwf_066_the_clients_own_packets_leave_with_the_mapped_port(lab: Lab) -> None:
    """Consoles and WebRTC compare the two."""
    MiniupnpdCarrier(lab)
    Igdpcpd(lab, backend(lab))
    client = soap_client(lab.lan)
    lab.listen(lab.internet, "udp", 3074)
    assert client.add("udp", 40001, topology.LAN_ADDRESS, 3074)

    seen = lab.udp_probe(lab.lan, topology.INTERNET_ADDRESS, 3074, source_port=3074)

    assert seen.peer == f"{topology.EXTERNAL_ADDRESS}:40001"


def test_another_lan_host_cannot_take_or_close_the_port(lab: Lab) -> None:
    carrier = MiniupnpdCarrier(lab)
    Igdpcpd(lab, backend(lab))
    owner, other = soap_client(lab.lan), soap_client(lab.lan2)
    assert owner.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert other.add("tcp", PORT, topology.LAN2_ADDRESS, PORT).code == 718
    assert other.add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 718
    assert other.delete("tcp", PORT).code == 714

    carrier.wait_until_only(CarrierMapping("tcp", PORT, topology.ROUTER_WAN_ADDRESS, PORT))
    assert not rules_for(lab, topology.LAN2_ADDRESS, PORT)


def test_release_leaves_nothing_of_ours_in_the_router_nor_at_the_carrier(lab: Lab) -> None:
    carrier = MiniupnpdCarrier(lab)
    daemon = Igdpcpd(lab, backend(lab))
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert daemon.release().returncode == 0

    assert carrier.table() == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)
    if lab.firewall != "fw4":
        assert our_rules(lab) == ""
    assert daemon.process is not None
    assert daemon.process.popen.wait(5) == 0
