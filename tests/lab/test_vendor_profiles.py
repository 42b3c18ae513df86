# SPDX-License-Identifier: Apache-2.0
"""igdpcpd at carriers that differ: the path opens, lives on and closes, or the control point gets the right error."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab import topology
from tests.lab.carrier import CarrierMapping, SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.simulated_carrier.asking import Reply, map_request, third_party
from tests.lab.topology import EXTERNAL_ADDRESS, LAN2_ADDRESS, LAN_ADDRESS, ROUTER_WAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

PORT = 8080
STRANGER = "100.64.12.99"  # another subscriber
EXTERNAL2 = "62.0.0.2"
BRIEF = 6  # seconds of lifetime, so that the lab sees renewals
UNSUPP_OPCODE, CANNOT_PROVIDE_EXTERNAL = 4, 11  # RFC 6887 section 7.4


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def started(lab: Lab, state: str = "active", **main: str) -> Igdpcpd:
    """The daemon when it knows whether it can use the carrier.

    It does not probe for the address, so that the carrier's table has what control points asked for and no more.
    """
    daemon = Igdpcpd(lab, main={"external_ip_probe": "0", **main})
    daemon.wait_for_activation(state)
    return daemon


def give_to_stranger(lab: Lab, port: int) -> CarrierMapping:
    """Let another subscriber have an external TCP port."""
    with lab.router.socket(socket.SOCK_DGRAM) as asker:
        asker.settimeout(2.0)
        asker.connect((topology.CARRIER_ADDRESS, 5351))
        asker.send(map_request(ROUTER_WAN_ADDRESS, 1, port, options=third_party(STRANGER)))
        assert Reply(asker.recv(2048)).external_port == port
    return CarrierMapping("tcp", port, STRANGER, 1)


def ours(port: int) -> CarrierMapping:
    """What the carrier holds when the router's WAN port is the external one."""
    return CarrierMapping("tcp", port, ROUTER_WAN_ADDRESS, port)


def leads_to_the_host(lab: Lab, port: int, address: str = EXTERNAL_ADDRESS) -> bool:
    return lab.tcp_probe(lab.internet, address, port).listener == "lan"


def creations(carrier: SimulatedCarrier, port: int, result: int = 0) -> list[dict[str, Any]]:
    """The requests that suggested an external port and got this result."""
    maps = [request for request in carrier.maps() if request["lifetime"] and request["result"] == result]
    return [request for request in maps if request["external_port"] == port]


@pytest.mark.parametrize(
    "profile",
    [
        "strict", "dual", "quota_32", "no_prefer_failure", "no_third_party", "silent_state_loss", "recycle_delay",
        "lifetime_120", "lifetime_86400", "error_lifetime_0", "nonce_takeover",
    ],
)  # fmt: skip
def test_a_port_is_opened_and_closed(lab: Lab, profile: str) -> None:
    carrier = SimulatedCarrier(lab, profile)
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)

    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, lease=3600)

    assert carrier.table() == [ours(PORT)]
    assert leads_to_the_host(lab, PORT)
    assert 3590 <= int(client.entry("tcp", PORT)["NewLeaseDuration"]) <= 3600

    assert client.delete("tcp", PORT)

    assert carrier.table() == []
    assert not rules_for(lab, LAN_ADDRESS, PORT)
    assert not leads_to_the_host(lab, PORT)


# Lifetimes


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["strict", "no_prefer_failure"])
def test_a_mapping_outlives_its_lifetime_by_renewals(lab: Lab, profile: str) -> None:
    carrier = SimulatedCarrier(lab, profile, shortest=BRIEF, longest=BRIEF)
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
    first = creations(carrier, PORT)[0]["at"]

    poll(lambda: creations(carrier, PORT)[-1]["at"] > first + BRIEF, 3 * BRIEF, "a renewal after the first lifetime")

    assert carrier.table() == [ours(PORT)]
    assert leads_to_the_host(lab, PORT)


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "granted"), [("lifetime_120", 120), ("lifetime_86400", 86400)])
def test_the_lease_ends_in_time_whatever_the_carrier_granted(lab: Lab, profile: str, granted: int) -> None:
    carrier = SimulatedCarrier(lab, profile)
    started(lab)
    client = soap_client(lab.lan)

    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, lease=3)

    assert [granted - 5 <= mapping.lifetime <= granted for mapping in carrier.table()] == [True]
    assert int(client.entry("tcp", PORT)["NewLeaseDuration"]) <= 3
    poll(lambda: carrier.table() == [], 10, "the deletion at the lease's end")
    assert client.entry("tcp", PORT).code == 714
    poll(lambda: not rules_for(lab, LAN_ADDRESS, PORT), 2, "the end of the router's rules")


# What the carrier refuses


def test_the_quota_is_an_error_until_a_mapping_is_deleted(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "quota_32")
    started(lab)
    ports = range(9000, 9032)
    old, new = soap_client(lab.lan, version=1), soap_client(lab.lan, version=2)
    assert all(old.add("tcp", port, LAN_ADDRESS, PORT) for port in ports)

    assert old.add("tcp", 9100, LAN_ADDRESS, PORT).code == 501
    assert new.add("tcp", 9101, LAN_ADDRESS, PORT).code == 728

    assert [mapping.external_port for mapping in carrier.table()] == list(ports)
    assert not any(old.entry("tcp", port) for port in (9100, 9101))
    assert old.delete("tcp", 9000)
    assert new.add("tcp", 9102, LAN_ADDRESS, PORT)


@pytest.mark.parametrize("profile", ["strict", "no_prefer_failure"])
def test_a_strangers_port_is_a_conflict_and_what_was_granted_instead_is_given_back(lab: Lab, profile: str) -> None:
    carrier = SimulatedCarrier(lab)
    stranger = give_to_stranger(lab, PORT)
    carrier.use_profile(profile)
    started(lab)
    client = soap_client(lab.lan, version=2)

    assert client.add("tcp", PORT, LAN_ADDRESS, PORT).code == 718

    poll(lambda: carrier.table() == [stranger], 5, "the other port being given back")
    assert not rules_for(lab, LAN_ADDRESS, PORT)
    reserved = client.add("tcp", PORT, LAN_ADDRESS, PORT, any_port=True)
    lab.listen(lab.lan, "tcp", PORT)
    assert leads_to_the_host(lab, int(reserved["NewReservedPort"]))


def test_a_port_of_the_block_opens_and_one_outside_is_a_conflict(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "port_block_512")
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan, version=2)

    any_port = int(client.add("tcp", PORT, LAN_ADDRESS, PORT, any_port=True)["NewReservedPort"])

    block = carrier.block(ROUTER_WAN_ADDRESS)
    assert any_port in block
    assert leads_to_the_host(lab, any_port)
    inside = next(port for port in block if port != any_port)
    assert client.add("tcp", inside, LAN_ADDRESS, PORT)
    assert leads_to_the_host(lab, inside)
    outside = block.stop if block.stop < 65000 else block.start - 1
    assert client.add("tcp", outside, LAN_ADDRESS, PORT).code == 718
    assert [mapping.external_port for mapping in carrier.table()] == sorted((any_port, inside))
    assert client.delete("tcp", any_port)
    assert client.delete("tcp", inside)
    assert carrier.table() == []


def test_a_freed_port_that_rests_is_its_owners_and_for_others_a_conflict(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "recycle_delay")
    started(lab)
    owner, other = soap_client(lab.lan), soap_client(lab.lan2)
    for _ in range(2):
        assert owner.add("tcp", PORT, LAN_ADDRESS, PORT)
        assert owner.delete("tcp", PORT)

    assert other.add("tcp", PORT, LAN2_ADDRESS, PORT).code == 718

    assert carrier.table() == []
    assert not rules_for(lab, LAN2_ADDRESS, PORT)


def test_an_error_of_lifetime_0_is_not_asked_for_again_at_once(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "error_lifetime_0")
    give_to_stranger(lab, PORT)
    started(lab)
    client = soap_client(lab.lan)

    assert [client.add("tcp", PORT, LAN_ADDRESS, PORT).code for _ in range(5)] == [718] * 5

    assert len(creations(carrier, PORT, CANNOT_PROVIDE_EXTERNAL)) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_a_router_without_nat_is_refused_where_third_parties_are(version: int) -> None:
    with Lab(nat=False) as lab:
        carrier = SimulatedCarrier(lab, "no_third_party")
        started(lab)
        client = soap_client(lab.lan, version=version)

        assert client.add("tcp", PORT, LAN_ADDRESS, PORT).code == 501

        assert carrier.table() == []
        assert not rules_for(lab, LAN_ADDRESS, PORT)
        assert client.entry_at(0).code == 713
        assert client.entry("tcp", PORT).code == 501  # nobody can say whether it could be had


# What the carrier forgets or changes


def test_an_announced_restart_brings_back_what_was_forgotten(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    for port in (PORT, PORT + 1):
        assert client.add("tcp", port, LAN_ADDRESS, PORT)

    carrier.restart()

    assert carrier.table() == []
    poll(lambda: len(carrier.table()) == 2, 10, "recovery")
    assert carrier.table() == [ours(PORT), ours(PORT + 1)]
    assert leads_to_the_host(lab, PORT)
    assert leads_to_the_host(lab, PORT + 1)


def test_a_restart_that_nobody_announced_shows_in_the_next_answer(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, announces=False)
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
    carrier.restart()

    assert client.add("tcp", PORT + 1, LAN_ADDRESS, PORT)

    poll(lambda: carrier.table() == [ours(PORT), ours(PORT + 1)], 10, "recovery")
    assert leads_to_the_host(lab, PORT)


@pytest.mark.slow
def test_what_was_lost_in_silence_comes_back_with_the_next_renewal(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "silent_state_loss", shortest=BRIEF, longest=BRIEF)
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
    carrier.restart()
    assert carrier.table() == []

    poll(carrier.table, 2 * BRIEF, "the renewal")

    assert carrier.table() == [ours(PORT)]
    assert leads_to_the_host(lab, PORT)


@pytest.mark.parametrize("says", ["updates", "announces"])
def test_another_external_address_is_shown_and_leads_to_the_host(lab: Lab, says: str) -> None:
    carrier = SimulatedCarrier(lab, updates=says == "updates", announces=says == "announces")
    started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
    assert client.external_address()["NewExternalIPAddress"] == EXTERNAL_ADDRESS

    carrier.use_addresses(EXTERNAL2)

    poll(lambda: client.external_address()["NewExternalIPAddress"] == EXTERNAL2, 10, "the other address")
    assert carrier.table() == [ours(PORT)]
    assert leads_to_the_host(lab, PORT, EXTERNAL2)
    assert client.entry("tcp", PORT)


def test_with_nonce_takeover_a_router_that_lost_its_secret_gets_its_port_back(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "nonce_takeover")
    daemon = started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
    nonce = carrier.table()[0].nonce
    daemon.kill()
    for directory in (daemon.run_dir, daemon.state_dir):
        for path in directory.iterdir():
            path.unlink()
    daemon.start()
    daemon.wait_for_activation()

    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)

    assert carrier.table() == [ours(PORT)]
    assert carrier.table()[0].nonce != nonce
    assert leads_to_the_host(lab, PORT)


# Carriers that cannot be used


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("profile", "overrides", "reason"),
    [
        ("version_1_only", {}, "offers version 1"),
        ("natpmp_only", {}, "NAT-PMP only"),
        ("natpmp_only", {"refusal_has_opcode": True}, "NAT-PMP only"),
        ("no_map", {}, "UNSUPP_OPCODE"),
    ],
)
def test_an_unusable_carrier_is_an_error_is_named_and_is_left_alone(
    lab: Lab, profile: str, overrides: dict[str, Any], reason: str, version: int
) -> None:
    carrier = SimulatedCarrier(lab, profile, **overrides)
    daemon = started(lab, "lost", unreachable_policy="error", external_ip_probe="1")
    client = soap_client(lab.lan, version=version)
    asked = carrier.counters()["received"]

    assert [client.add("tcp", PORT + n, LAN_ADDRESS, PORT).code for n in range(3)] == [501] * 3

    status = " ".join(daemon.cli("status").stdout.split())
    assert reason in status
    assert "answers, but cannot be used" in status
    assert any(reason in event["reason"] for event in daemon.events("pcp_server_unusable"))
    assert client.call("GetStatusInfo")["NewConnectionStatus"] == "Disconnected"
    assert carrier.counters()["received"] == asked
    assert {request["version"] for request in carrier.requests()} == {2}
    assert not rules_for(lab, LAN_ADDRESS, PORT)


def test_beside_an_unusable_carrier_the_router_alone_serves_and_says_so(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "natpmp_only")
    daemon = started(lab, "lost")
    lab.listen(lab.lan, "tcp", PORT)

    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)

    assert [mapping["local_only"] for mapping in daemon.mappings()] == [True]
    assert carrier.table() == []
    assert lab.tcp_probe(lab.carrier, ROUTER_WAN_ADDRESS, PORT).listener == "lan"


def test_a_routed_network_behind_a_carrier_that_maps_for_no_other_host_is_told_so_with_few_packets() -> None:
    with Lab(nat=False) as lab:
        carrier = SimulatedCarrier(lab, "no_third_party")
        daemon = started(lab)
        client = soap_client(lab.lan)
        first = client.add("tcp", PORT, LAN_ADDRESS, PORT)
        asked = len(carrier.maps())
        others = [client.add("tcp", PORT + n, LAN_ADDRESS, PORT + n) for n in (1, 2)]
        assert [reply.code for reply in (first, *others)] == [501] * 3
        assert len(carrier.maps()) == asked
        assert "does not take THIRD_PARTY" in " ".join(daemon.cli("status").stdout.split())


def test_a_lost_secret_does_not_lock_anybody_out(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan, version=2)
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
    daemon.kill()
    for directory in (daemon.run_dir, daemon.state_dir):
        for path in directory.iterdir():
            path.unlink()
    daemon.start()
    daemon.wait_for_activation()
    reply = client.add("tcp", PORT, LAN_ADDRESS, PORT, any_port=True)
    assert reply["NewReservedPort"] != str(PORT)
    assert leads_to_the_host(lab, int(reply["NewReservedPort"]))
    assert len(carrier.table()) == 2


# A bad link


@pytest.mark.slow
def test_on_a_bad_link_each_answer_tells_the_truth_and_nothing_is_left_behind(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = started(lab, unreachable_policy="error")
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    carrier.switch(loss=0.25, duplicate=0.25, reorder=0.25)

    codes = {port: client.add("tcp", port, LAN_ADDRESS, PORT).code for port in range(9000, 9016)}

    carrier.switch(loss=0.0, duplicate=0.0, reorder=0.0)
    assert set(codes.values()) <= {0, 501}
    open_ports = [port for port, code in codes.items() if code == 0]
    assert len(open_ports) >= len(codes) / 2
    for port, code in codes.items():
        assert leads_to_the_host(lab, port) == bool(client.entry("tcp", port)) == (code == 0), port
    assert all(client.delete("tcp", port) for port in open_ports)
    known = {mapping["external_port"] for mapping in daemon.mappings()}
    assert {mapping.external_port for mapping in carrier.table()} <= known
    assert not known & set(open_ports)
