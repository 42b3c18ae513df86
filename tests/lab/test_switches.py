# SPDX-License-Identifier: Apache-2.0
"""The switches in which the interworking documents differ, with a whole daemon, real packets and a strict carrier."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import topology
from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import our_rules, rules_for
from tests.lab.simulated_carrier.asking import Reply, map_request, third_party
from tests.lab.topology import (
    EXTERNAL_ADDRESS,
    INTERNET2_ADDRESS,
    INTERNET_ADDRESS,
    LAN2_ADDRESS,
    LAN_ADDRESS,
    Lab,
)

pytestmark = pytest.mark.lab

PORT = 8080
STRANGER = "100.64.12.99"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def started(lab: Lab, **main: str) -> Igdpcpd:
    daemon = Igdpcpd(lab, main={"external_ip_probe": "off", **main})
    daemon.wait_for_activation()
    return daemon


def let_in(lab: Lab) -> list[str]:
    """Which hosts of the internet reach the LAN host by the external port."""
    sources = INTERNET_ADDRESS, INTERNET2_ADDRESS
    return [each for each in sources if lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT, source=each).listener]


@pytest.mark.parametrize("switch", ["filter", "local", "both"])
def test_iwf_095_only_the_remote_host_reaches_the_client_whoever_checks(lab: Lab, switch: str) -> None:
    carrier = SimulatedCarrier(lab)
    started(lab, remote_host=switch)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)

    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, remote_host=INTERNET_ADDRESS)

    (held,) = carrier.table()
    assert held.filters == (() if switch == "local" else (INTERNET_ADDRESS,))
    assert (INTERNET_ADDRESS in our_rules(lab)) is (switch != "filter")
    assert let_in(lab) == [INTERNET_ADDRESS]
    assert not lab.tcp_probe(lab.lan2, EXTERNAL_ADDRESS, PORT).listener

    assert client.delete("tcp", PORT, remote_host=INTERNET_ADDRESS)
    assert let_in(lab) == []


@pytest.mark.parametrize("firewall", ["fw4", "iptables"])
def test_iwf_097_each_remote_host_of_a_client_comes_in_by_the_same_port_until_it_is_deleted(firewall: str) -> None:
    with Lab(firewall) as lab:
        carrier = SimulatedCarrier(lab)
        daemon = Igdpcpd(lab, "iptables" if firewall == "iptables" else "nftables", main={"external_ip_probe": "off"})
        daemon.wait_for_activation()
        lab.listen(lab.lan, "tcp", PORT)
        client = soap_client(lab.lan)

        assert client.add("tcp", PORT, LAN_ADDRESS, PORT, remote_host=INTERNET_ADDRESS)
        assert let_in(lab) == [INTERNET_ADDRESS]
        assert client.add("tcp", PORT, LAN_ADDRESS, PORT, remote_host=INTERNET2_ADDRESS)
        (held,) = carrier.table()
        assert held.filters == (INTERNET_ADDRESS, INTERNET2_ADDRESS)
        assert let_in(lab) == [INTERNET_ADDRESS, INTERNET2_ADDRESS]

        assert client.delete("tcp", PORT, remote_host=INTERNET_ADDRESS)
        assert let_in(lab) == [INTERNET2_ADDRESS]
        poll(lambda: [each.filters for each in carrier.table()] == [(INTERNET2_ADDRESS,)], 5, "the other filter to go")
        assert client.delete("tcp", PORT, remote_host=INTERNET2_ADDRESS)
        assert (let_in(lab), carrier.table()) == ([], [])


@pytest.mark.parametrize(("switch", "code"), [("filter", 501), ("both", 0)])
def test_iwf_174_a_carrier_without_filters_is_enough_only_where_the_router_checks(
    lab: Lab, switch: str, code: int
) -> None:
    carrier = SimulatedCarrier(lab, peers=0)
    started(lab, remote_host=switch)
    lab.listen(lab.lan, "tcp", PORT)

    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT, remote_host=INTERNET_ADDRESS).code == code

    assert [mapping.filters for mapping in carrier.table()] == ([] if code else [()])
    assert let_in(lab) == ([] if code else [INTERNET_ADDRESS])


@pytest.mark.parametrize(("version", "code"), [(1, 726), (2, 501)])
def test_iwf_095_150_036_the_draft_maps_for_everybody_for_65535_seconds_without_a_description(
    lab: Lab, version: int, code: int
) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = Igdpcpd(lab, main={"profile": "draft01"})
    daemon.wait_for_activation()
    client = soap_client(lab.lan, version=version)

    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, remote_host=INTERNET_ADDRESS).code == code
    assert carrier.maps() == []
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, lease=100000)

    (asked,) = carrier.maps()
    assert asked["lifetime"] == 65535
    assert [mapping.description for mapping in carrier.table()] == [""]


def test_iwf_082_026_with_the_rfc_the_carrier_decides_and_is_asked_for_its_address_on_demand(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = Igdpcpd(lab, main={"profile": "rfc6970"})
    daemon.wait_for_activation()
    first, second = soap_client(lab.lan), soap_client(lab.lan2)
    assert carrier.maps() == []

    assert [first.external_address()["NewExternalIPAddress"] for _ in range(3)] == [EXTERNAL_ADDRESS] * 3
    assert [asked["internal_port"] for asked in carrier.maps()] == [9]
    assert first.add("tcp", PORT, LAN_ADDRESS, PORT)
    assert second.add("tcp", PORT, LAN2_ADDRESS, PORT).code == 718

    asked = [each for each in carrier.maps() if each["lifetime"] and each["external_port"] == PORT]
    granted, *refused = asked  # first with the address that the other one has, then with any
    assert granted["result"] == 0
    assert [each["result"] for each in refused] == [11] * len(refused) != []
    assert rules_for(lab, LAN_ADDRESS, PORT)
    assert not rules_for(lab, LAN2_ADDRESS, PORT)


@pytest.mark.parametrize(("switch", "code"), [("emulate", 0), ("fail", 501)])
def test_iwf_092_a_carrier_without_prefer_failure(lab: Lab, switch: str, code: int) -> None:
    carrier = SimulatedCarrier(lab, "no_prefer_failure")
    started(lab, prefer_failure_fallback=switch)

    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT).code == code

    assert len(carrier.table()) == (0 if code else 1)
    assert bool(rules_for(lab, LAN_ADDRESS, PORT)) is not bool(code)


def test_iwf_085_a_port_that_a_stranger_had_for_a_moment_is_granted_at_the_second_request(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, error_lifetime=1)
    with lab.router.socket(socket.SOCK_DGRAM) as asker:
        asker.settimeout(2.0)
        asker.connect((topology.CARRIER_ADDRESS, 5351))
        asker.send(map_request(topology.ROUTER_WAN_ADDRESS, 1, PORT, options=third_party(STRANGER)))
        assert Reply(asker.recv(2048)).external_port == PORT
    started(lab, soap_deadline="15", short_error_wait="6")
    with ThreadPoolExecutor() as pool:
        adding = pool.submit(soap_client(lab.lan).add, "tcp", PORT, LAN_ADDRESS, PORT)
        poll(lambda: any(asked["result"] == 11 for asked in carrier.maps()), 5, "the refusal")
        carrier.lose_state()
        assert adding.result()

    first, second = [asked for asked in carrier.maps() if asked["internal_port"] == PORT]
    assert (first["result"], second["result"]) == (11, 0)
    assert 6 <= second["at"] - first["at"] < 8
    assert rules_for(lab, LAN_ADDRESS, PORT)


def test_iwf_042_with_persist_none_a_restart_begins_with_nothing(lab: Lab) -> None:
    SimulatedCarrier(lab)
    daemon = started(lab, persist="none")
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan"

    daemon.stop()

    assert not rules_for(lab, LAN_ADDRESS, PORT)
    assert (daemon.state_dir / "secret").exists()
    assert not (daemon.state_dir / "mappings").exists()
    assert not (daemon.run_dir / "journal").exists()
    daemon.start()
    assert client.entry("tcp", PORT).code == 714
    daemon.wait_for_activation()
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_iwf_194_without_heeding_announcements_a_loss_shows_in_the_next_answer(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    started(lab, announce_recovery="0")
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
    carrier.restart()
    carrier.announce()
    assert client.add("tcp", PORT + 1, LAN_ADDRESS, PORT)
    poll(lambda: len(carrier.table()) == 2, 10, "recovery")
    asked = [each for each in carrier.maps() if each["lifetime"] and each["external_port"] == PORT]
    assert asked[-1]["at"] > next(each["at"] for each in carrier.maps() if each["external_port"] == PORT + 1)


def test_iwf_051_third_party_never_refuses_where_the_router_does_no_nat() -> None:
    with Lab(nat=False) as lab:
        carrier = SimulatedCarrier(lab)
        daemon = started(lab, third_party="never")

        assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT).code == 501

        assert carrier.maps() == []
        assert "third_party" in str(daemon.status()["activation"])
