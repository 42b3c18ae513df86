# SPDX-License-Identifier: Apache-2.0
"""A mapping opens the whole path or fails with an honest error, and an error leaves no rule and no grant."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import OWN_TABLE, rules_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
CANNOT_PROVIDE_EXTERNAL = 11
USER_EX_QUOTA = 10
NOT_AUTHORIZED = 2


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def nothing_stands(lab: Lab, carrier: ScriptedCarrier) -> bool:
    return not rules_for(lab, topology.LAN_ADDRESS, PORT) and PORT not in [m.external_port for m in carrier.table()]


@pytest.mark.parametrize("firewall", ["nftables", "iptables"])
@pytest.mark.parametrize(
    ("result", "version", "code"),
    [
        (CANNOT_PROVIDE_EXTERNAL, 1, 718),
        (CANNOT_PROVIDE_EXTERNAL, 2, 718),
        (USER_EX_QUOTA, 1, 501),
        (USER_EX_QUOTA, 2, 728),
        (NOT_AUTHORIZED, 1, 718),
        (NOT_AUTHORIZED, 2, 606),
    ],
)
def test_a_refusal_upstream_becomes_its_fault_and_leaves_no_rule(
    firewall: str, result: int, version: int, code: int
) -> None:
    with Lab(firewall=firewall) as lab:
        carrier = ScriptedCarrier(lab, refuse=[result, 1800])
        daemon = Igdpcpd(lab, firewall)
        daemon.wait_for_activation("active")

        reply = soap_client(lab.lan, version=version, agent="Console/1.0").add("tcp", PORT, topology.LAN_ADDRESS, PORT)

        assert (reply.status, reply.code) == (500, code)
        assert nothing_stands(lab, carrier)
        assert daemon.mappings() == []
        refused = daemon.events("refused")[-1]
        assert (refused["client"], refused["agent"]) == (topology.LAN_ADDRESS, "Console/1.0")


def test_iwf_091_what_the_carrier_refused_is_refused_again_without_a_packet_and_another_port_is_asked_for(
    lab: Lab,
) -> None:
    carrier = ScriptedCarrier(lab, refuse=[CANNOT_PROVIDE_EXTERNAL, 600])
    Igdpcpd(lab, main={"external_ip_probe": "0"}).wait_for_activation("active")
    client = soap_client(lab.lan)

    assert [client.add("tcp", PORT, topology.LAN_ADDRESS, PORT).code for _ in range(3)] == [718] * 3
    assert [request["external_port"] for request in carrier.maps()] == [PORT]

    assert client.add("tcp", PORT + 1, topology.LAN_ADDRESS, PORT).code == 718
    assert [request["external_port"] for request in carrier.maps()] == [PORT, PORT + 1]


def test_a_silent_server_that_was_there_is_501_and_leaves_no_rule(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, upstream={"retransmit_initial": "3"})
    daemon.wait_for_activation("active")
    carrier.set(silent=True)

    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501

    assert nothing_stands(lab, carrier)
    assert soap_client(lab.lan).entry("tcp", PORT).code == 714


def test_a_server_that_dies_half_way_is_501_and_leaves_no_rule(lab: Lab) -> None:
    """It granted, and its answer never came."""
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, upstream={"retransmit_initial": "3"})
    daemon.wait_for_activation("active")
    carrier.set(delay=30)

    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501

    carrier.kill()
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)
    assert soap_client(lab.lan).entry("tcp", PORT).code == 714


def test_a_late_grant_serves_the_retry_at_once(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, upstream={"retransmit_initial": "3"})
    daemon.wait_for_activation("active")
    carrier.set(delay=1.5)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501
    poll(lambda: [m["state"] for m in daemon.mappings()] == ["hidden"], 5, "the late grant")
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)
    asked = len(carrier.maps())
    lab.listen(lab.lan, "tcp", PORT)

    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert len(carrier.maps()) == asked
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_with_policy_error_a_lost_server_is_501(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, main={"unreachable_policy": "error"}, upstream={"retransmit_initial": "0.1"})
    daemon.wait_for_activation("active")
    carrier.set(silent=True)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501
    daemon.wait_for_activation("lost")

    assert client.add("tcp", PORT + 1, topology.LAN_ADDRESS, PORT).code == 501

    assert nothing_stands(lab, carrier)
    assert client.call("GetStatusInfo")["NewConnectionStatus"] == "Disconnected"


def test_once_lost_the_local_igd_answers_says_local_only_and_the_entry_is_promoted_when_the_server_is_back(
    lab: Lab,
) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, upstream={"retransmit_initial": "0.1"})
    daemon.wait_for_activation("active")
    carrier.set(silent=True)
    client = soap_client(lab.lan)
    client.add("tcp", 9000, topology.LAN_ADDRESS, PORT)
    daemon.wait_for_activation("lost")
    lab.listen(lab.lan, "tcp", PORT)

    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert [m["local_only"] for m in daemon.mappings() if m["external_port"] == PORT] == [True]
    assert lab.tcp_probe(lab.carrier, topology.ROUTER_WAN_ADDRESS, PORT).listener == "lan"
    assert "local_only" in daemon.cli("mappings").stdout
    assert "1 local_only" in daemon.cli("status").stdout
    assert any("state=lost" in error["text"] for error in daemon.status()["errors"])

    carrier.set(silent=False)
    daemon.wait_for_activation("active", 10)
    poll(lambda: daemon.status()["mappings"]["local_only"] == 0, 10, "promotion")
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_a_rule_that_the_kernel_refuses_gives_the_grant_back(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab)
    daemon.wait_for_activation("active")
    lab.router.run(["nft", "delete", "table", "inet", OWN_TABLE])
    lab.router.nft(f"table inet {OWN_TABLE} {{\n chain of_somebody_else {{\n }}\n}}\n")

    reply = soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert reply.code == 501
    poll(lambda: nothing_stands(lab, carrier), 5, "the grant being given back")
    assert daemon.status()["firewall"]["problem"]


def test_iwf_090_a_port_granted_instead_of_the_one_asked_for_is_given_back_and_718(lab: Lab) -> None:
    """Debian's miniupnpd does that for a port that is taken."""
    carrier = ScriptedCarrier(lab, grant_port=7777)
    daemon = Igdpcpd(lab, main={"external_ip_probe": "0"})
    daemon.wait_for_activation("active")

    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 718

    poll(lambda: carrier.table() == [], 5, "the other port being given back")
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_a_deletion_that_the_carrier_refuses_leaves_the_path_open(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    Igdpcpd(lab)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan, version=2)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    carrier.set(refuse_deletes=[NOT_AUTHORIZED, 30])

    assert client.delete("tcp", PORT).code == 606

    assert client.entry("tcp", PORT)
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_a_firewall_that_is_loaded_after_the_daemon_is_waited_for() -> None:
    """On OpenWrt with apk the service is started before the package's drop-ins are loaded."""
    with Lab(firewall="fw4") as lab:
        ScriptedCarrier(lab)
        lab.router.run(["nft", "delete", "table", "inet", "fw4"])
        daemon = Igdpcpd(lab, main={"nft_table": "fw4"})
        assert "firewall not active" in daemon.status()["firewall"]["problem"]
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501

        lab.load_firewall()

        poll(lambda: daemon.status()["firewall"]["problem"] is None, 15, "the repair")
        lab.listen(lab.lan, "tcp", PORT)
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
