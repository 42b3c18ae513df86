# SPDX-License-Identifier: Apache-2.0
"""What a crash, a restart, a reload and a stop leave: the next start adopts it or gives it back."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080


@pytest.fixture(params=["nftables", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(firewall=request.param) as lab:
        yield lab


def carrier_ports(carrier: ScriptedCarrier) -> list[int]:
    return [mapping.external_port for mapping in carrier.table() if mapping.external_port in (PORT, PORT + 1)]


def test_after_kill_9_the_next_start_adopts_what_was_open(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT, description="kept")
    before = [mapping for mapping in carrier.table() if mapping.external_port == PORT]

    daemon.kill()
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
    daemon.start()

    assert client.entry("tcp", PORT)["NewPortMappingDescription"] == "kept"
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
    daemon.wait_for_activation("active")
    poll(lambda: [m["result"] for m in carrier.maps()[-1:]] == [0], 5, "being asked for again")
    after = [mapping for mapping in carrier.table() if mapping.external_port == PORT]
    assert [m.nonce for m in after] == [m.nonce for m in before]
    assert client.delete("tcp", PORT)
    assert carrier_ports(carrier) == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_connections_come_in_all_through_a_crash_the_next_start_and_a_reload(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    lab.listen(lab.lan, "tcp", PORT)
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    missed: list[str] = []
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            answer = lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT)
            if not answer:
                missed.append(answer.outcome)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        daemon.kill()
        daemon.start()
        daemon.wait_for_activation("active")
        daemon.reload()
        poll(lambda: len(daemon.events("ready")) == 2, 10, "the reload")
        daemon.wait_for_activation("active")
    finally:
        over.set()
        knocking.join()

    assert missed == []


def test_after_kill_9_with_a_request_on_its_way_the_next_start_gives_it_back(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall, upstream={"retransmit_initial": "3"})
    daemon.wait_for_activation("active")
    carrier.set(delay=30)  # it grants, and nobody is told
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT).code == 501
    assert carrier_ports(carrier) == [PORT]

    daemon.kill()
    carrier.set(delay=0)
    daemon.start()

    poll(lambda: carrier_ports(carrier) == [], 10, "the grant being given back")
    assert daemon.mappings() == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_rules_that_nobody_knows_of_go_at_the_next_start(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    daemon.kill()
    (daemon.run_dir / "journal").unlink()
    (daemon.state_dir / "mappings").unlink(missing_ok=True)
    assert rules_for(lab, topology.LAN_ADDRESS, PORT)

    daemon.start()

    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_after_a_lost_journal_the_same_request_adopts_the_carriers_grant(lab: Lab) -> None:
    """WAN port and nonce are derived, so that a power cut does not lock us out."""
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    daemon.kill()
    (daemon.run_dir / "journal").unlink()
    (daemon.state_dir / "mappings").unlink(missing_ok=True)
    daemon.start()

    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert carrier_ports(carrier) == [PORT]


def test_sigterm_keeps_what_is_open_and_the_next_start_goes_on_with_it(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    assert daemon.stop() == 0

    assert carrier_ports(carrier) == [PORT]
    assert bool(rules_for(lab, topology.LAN_ADDRESS, PORT)) is (lab.firewall == "nftables")
    (daemon.run_dir / "journal").unlink()  # a reboot: tmpfs is gone, flash is not
    daemon.start()
    assert client.entry("tcp", PORT)
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_sighup_takes_a_new_configuration_without_losing_a_mapping(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    text = daemon.config_file.read_text()
    daemon.write_config(text.replace("config igdpcp 'main'", "config igdpcp 'main'\n\toption friendly_name 'attic'"))

    daemon.reload()

    poll(lambda: len(daemon.events("ready")) == 2, 10, "the reload")
    assert b"<friendlyName>attic<" in client.get("/rootDesc.xml").body
    assert client.entry("tcp", PORT)
    assert carrier_ports(carrier) == [PORT]
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_sighup_with_a_configuration_that_cannot_be_used_changes_nothing(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    daemon.write_config("config igdpcp 'main\n\toption enabled '1'\n")

    daemon.reload()

    poll(lambda: daemon.events("reload_refused"), 5, "the refusal")
    assert client.entry("tcp", PORT)
    assert len(daemon.events("ready")) == 1


def test_release_without_a_running_daemon_closes_what_it_left(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    daemon.kill()
    assert carrier_ports(carrier) == [PORT]

    released = daemon.release()

    assert released.returncode == 0, released.stderr
    assert carrier_ports(carrier) == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_the_carrier_losing_its_state_is_repaired_without_a_request_from_the_lan(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    carrier.reset(epoch=90000)
    Igdpcpd(lab, lab.firewall)
    lab.listen(lab.lan, "tcp", PORT)
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    carrier.reset(epoch=0)
    assert carrier_ports(carrier) == []

    carrier.announce()

    poll(lambda: carrier_ports(carrier) == [PORT], 10, "the mapping being recreated")
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


def test_a_new_wan_address_moves_the_path(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall)
    lab.listen(lab.lan, "tcp", PORT)
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT, lease=3600)
    carrier.reset(forget=True)
    lab.router.run(["ip", "addr", "del", f"{topology.ROUTER_WAN_ADDRESS}/24", "dev", "wan"])
    lab.router.run(["ip", "addr", "add", "100.64.12.99/24", "dev", "wan"])
    lab.router.run(["ip", "route", "replace", "default", "via", topology.CARRIER_ADDRESS])

    poll(
        lambda: [m.address for m in carrier.table() if m.external_port == PORT] == ["100.64.12.99"],
        10,
        f"a mapping for the new address:\n{daemon.log()}",
    )

    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
