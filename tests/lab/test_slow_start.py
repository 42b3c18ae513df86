# SPDX-License-Identifier: Apache-2.0
"""What comes while the daemon is starting: other addresses, SIGTERM, a release; and a start that nobody asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab import firewalls, topology
from tests.lab.altered import Gate, altered
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import ROOT, Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
OTHER_ADDRESS = "100.64.12.99"
EXIT_SECONDS = 2.0
SHORT_LOOKS = "from igdpcp.daemon import nat_mode\nnat_mode.LOOK_SECONDS, nat_mode.RECHECK_SECONDS = 0.1, 0.3\n"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def renumber_wan(lab: Lab) -> None:
    lab.router.run(["ip", "addr", "del", f"{topology.ROUTER_WAN_ADDRESS}/24", "dev", topology.WAN_DEVICE])
    lab.router.run(["ip", "addr", "add", f"{OTHER_ADDRESS}/24", "dev", topology.WAN_DEVICE])
    lab.router.run(["ip", "route", "replace", "default", "via", topology.CARRIER_ADDRESS])


def change_lan(lab: Lab, change: str) -> None:
    """``add`` or ``del`` the LAN's address."""
    lab.router.run(["ip", "addr", change, f"{topology.ROUTER_LAN_ADDRESS}/24", "dev", topology.LAN_DEVICE])


def wait_for_links_heard(daemon: Igdpcpd, times: int) -> None:
    poll(lambda: len(daemon.events("links_heard")) >= times, 5, f"change {times} of the links being heard of")


def test_a_wan_that_moves_during_the_start_is_noticed(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    gate = Gate(lab)
    daemon = Igdpcpd(lab, env=gate.env, start=False)
    lab.listen(lab.lan, "tcp", PORT)
    daemon.launch()
    gate.wait_for_daemon()
    renumber_wan(lab)
    wait_for_links_heard(daemon, 1)
    gate.open()
    daemon.wait_until_ready()
    daemon.wait_for_advertising()

    poll(lambda: daemon.status()["wan"]["address"] == OTHER_ADDRESS, 5, f"the new address:\n{daemon.log()}")
    daemon.wait_for_activation("active")
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    assert [mapping.address for mapping in carrier.table() if mapping.external_port == PORT] == [OTHER_ADDRESS]
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


@pytest.mark.parametrize("back", ["after it", "before its end"])
def test_a_lan_that_flaps_during_the_start_is_served_and_later_changes_are_noticed(lab: Lab, back: str) -> None:
    ScriptedCarrier(lab)
    gate = Gate(lab)
    daemon = Igdpcpd(lab, env=gate.env, start=False)
    daemon.launch()
    gate.wait_for_daemon()
    change_lan(lab, "del")
    wait_for_links_heard(daemon, 1)
    if back == "before its end":
        change_lan(lab, "add")
        wait_for_links_heard(daemon, 2)
    gate.open()
    daemon.wait_until_ready()
    if back == "after it":
        change_lan(lab, "add")
    daemon.wait_for_advertising()
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)

    renumber_wan(lab)

    poll(lambda: daemon.status()["wan"]["address"] == OTHER_ADDRESS, 5, f"the new address:\n{daemon.log()}")
    assert daemon.events("task_failed") == daemon.events("link_change_failed") == []


def test_sigterm_during_a_start_that_hangs_is_heeded(lab: Lab) -> None:
    gate = Gate(lab)
    daemon = Igdpcpd(lab, env=gate.env, start=False)
    daemon.launch()
    gate.wait_for_daemon()
    before = time.monotonic()

    assert daemon.stop() == 0

    assert time.monotonic() - before < EXIT_SECONDS
    assert not daemon.control_socket.exists()


def test_a_release_during_the_start_waits_for_it_and_closes_everything(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    before = Igdpcpd(lab)
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    before.kill()
    gate = Gate(lab)
    daemon = Igdpcpd(lab, env=gate.env, start=False)
    daemon.launch()
    gate.wait_for_daemon()
    releasing = lab.router.popen(before.release_command, name="release", env={"PYTHONPATH": str(ROOT)})
    poll(lambda: [asked["command"] for asked in daemon.events("asked")].count("release") > 1, 10, "the second question")
    gate.open()

    assert releasing.popen.wait(10) == 0
    assert daemon.process is not None
    assert daemon.process.popen.wait(5) == 0
    assert [mapping for mapping in carrier.table() if mapping.external_port == PORT] == []
    assert not rules_for(lab, topology.LAN_ADDRESS, PORT)


def test_a_restart_of_its_own_goes_on_with_the_settings_in_use() -> None:
    with Lab(nat=False) as lab:
        ScriptedCarrier(lab, third_party=True)
        daemon = Igdpcpd(lab, upstream={"nat": "auto"}, env=altered(lab, SHORT_LOOKS))
        assert daemon.status()["mode"] == "routed"
        daemon.write_config("config igdpcp 'main\n")

        lab.router.nft(firewalls.PLAIN_NFTABLES)  # the firewall was late

        poll(lambda: len(daemon.events("ready")) == 2, 10, f"the restart:\n{daemon.log()}")
        poll(lambda: daemon.status()["mode"] == "cascaded", 5, f"the new mode:\n{daemon.log()}")
        assert daemon.events("reload_refused") == []
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
