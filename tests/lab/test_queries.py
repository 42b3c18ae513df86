# SPDX-License-Identifier: Apache-2.0
"""Control points that ask for a port before they map it, at carriers that differ; real packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.carrier import CarrierMapping, SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import EXTERNAL_ADDRESS, LAN2_ADDRESS, LAN_ADDRESS, ROUTER_WAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

PORT = 8080


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def started(lab: Lab, **main: str) -> Igdpcpd:
    daemon = Igdpcpd(lab, main={"external_ip_probe": "0", **main})
    daemon.wait_for_activation("active")
    return daemon


def test_iwf_113_115_117_118_a_query_opens_nothing_and_the_mapping_behind_it_is_the_same(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)

    assert client.entry("tcp", PORT).code == 714

    assert carrier.table() == [CarrierMapping("tcp", PORT, ROUTER_WAN_ADDRESS, PORT)]
    assert not rules_for(lab, LAN_ADDRESS, PORT)
    assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT)
    assert client.entry_at(0).code == 713
    assert daemon.status()["mappings"]["active"] == 0
    (shadow,) = carrier.table()

    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, lease=60)

    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan"
    assert [(mapping, mapping.nonce) for mapping in carrier.table()] == [(shadow, shadow.nonce)]
    (asked,) = carrier.maps()
    assert asked["lifetime"] == 60
    assert client.delete("tcp", PORT)
    assert carrier.table() == []


@pytest.mark.parametrize("profile", ["recycle_delay", "lifetime_86400", "no_prefer_failure"])
def test_iwf_118_a_query_hinders_no_other_host(lab: Lab, profile: str) -> None:
    SimulatedCarrier(lab, profile)
    started(lab)
    lab.listen(lab.lan2, "tcp", PORT + 1)
    assert soap_client(lab.lan).entry("tcp", PORT).code == 714

    assert soap_client(lab.lan2).add("tcp", PORT, LAN2_ADDRESS, PORT + 1)

    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan2"
    assert soap_client(lab.lan).entry("tcp", PORT).code == 718


def test_iwf_114_a_port_of_another_subscriber_is_in_use(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, ports=(20000, 30000))
    started(lab)
    assert soap_client(lab.lan).entry("tcp", PORT).code == 718
    assert carrier.table() == []


def test_iwf_118_without_nat_a_query_with_another_internal_port_gives_way() -> None:
    with Lab(nat=False) as lab:
        carrier = SimulatedCarrier(lab)
        started(lab)
        lab.listen(lab.lan, "tcp", PORT + 1)
        client = soap_client(lab.lan)
        assert client.entry("tcp", PORT).code == 714
        assert carrier.table() == [CarrierMapping("tcp", PORT, LAN_ADDRESS, PORT)]

        assert client.add("tcp", PORT, LAN_ADDRESS, PORT + 1)

        assert carrier.table() == [CarrierMapping("tcp", PORT, LAN_ADDRESS, PORT + 1)]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_the_last_slots_are_for_what_is_asked_for(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, quota=2)
    started(lab, external_ip_probe="1")
    first, second = soap_client(lab.lan), soap_client(lab.lan2)
    assert [client.entry("tcp", PORT + n).code for n, client in enumerate((first, second))] == [714, 714]

    assert first.add("tcp", PORT + 2, LAN_ADDRESS, PORT)
    assert second.add("tcp", PORT + 3, LAN2_ADDRESS, PORT)

    assert [mapping.external_port for mapping in carrier.table()] == [PORT + 2, PORT + 3]
    assert first.add("tcp", PORT + 4, LAN_ADDRESS, PORT + 4).code == 501


def test_iwf_119_a_crash_leaves_no_shadow(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = started(lab)
    assert soap_client(lab.lan).entry("tcp", PORT).code == 714
    assert daemon.process is not None
    daemon.process.kill()

    daemon.start()

    poll(lambda: carrier.table() == [], 5, "the shadow being given back")
    assert daemon.result("mappings") == []
