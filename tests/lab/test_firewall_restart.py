# SPDX-License-Identifier: Apache-2.0
"""A firewall that is restarted takes our rules along; they come back without a request from anybody.

So does what somebody changes by hand. nftables says when it is changed; legacy iptables is looked at now and then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.altered import altered
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
REPAIR_SECONDS = 35.0
NOTICED_SECONDS = 10.0
# Nothing is found by looking now and then, and nothing mended by trying again after a while.
ONLY_NOTIFIED = """
from igdpcp.daemon import ruleset_watch
from igdpcp.iwf import router_leg

ruleset_watch.AUDIT_SECONDS = router_leg.RESYNC_SECONDS = 10000.0
"""
DEAF = """
from igdpcp.net import ruleset_news

ruleset_news.PAUSE_SECONDS = 10000.0
"""


@pytest.mark.parametrize("firewall", ["fw4", "iptables"])
def test_after_a_restart_of_the_firewall_mappings_work_again(firewall: str) -> None:
    with Lab(firewall=firewall) as lab:
        ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, "iptables" if firewall == "iptables" else "nftables")
        lab.listen(lab.lan, "tcp", PORT)
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        if firewall == "fw4":
            lab.router.run(["nft", "delete", "table", "inet", "fw4"])
        lab.load_firewall()
        assert not lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.3)

        poll(
            lambda: lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.5).listener == "lan",
            REPAIR_SECONDS,
            f"the path being open again:\n{daemon.log()}",
        )

        assert len(daemon.events("ruleset_gone")) == 1
        poll(lambda: daemon.status()["firewall"]["problem"] is None, NOTICED_SECONDS, "the end of the problem")
        assert lab.tcp_probe(lab.lan2, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"


class Notified:
    """A router with an open port, whose daemon knows of changes only by what the kernel tells."""

    def __init__(self, lab: Lab, alteration: str = ONLY_NOTIFIED) -> None:
        self.lab = lab
        ScriptedCarrier(lab)
        self.daemon = Igdpcpd(lab, env=altered(lab, alteration))
        lab.listen(lab.lan, "tcp", PORT)
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        self.table = "fw4" if lab.firewall == "fw4" else "igdpcp"

    def reached(self) -> bool:
        return self.lab.tcp_probe(self.lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.5).listener == "lan"

    def wait_until_reached(self) -> None:
        poll(self.reached, NOTICED_SECONDS, f"the path being open again:\n{self.daemon.log()}")

    def nft(self, script: str) -> None:
        self.lab.router.nft(script)

    def element(self, verb: str, text: str) -> None:
        self.nft(f"{verb} element inet {self.table} igdpcp1_dnat4 {{ {text} }}\n")

    def listed(self) -> str:
        return self.lab.router.run(["nft", "list", "map", "inet", self.table, "igdpcp1_dnat4"]).stdout


@pytest.fixture(params=["fw4", "nftables"])
def router(request: pytest.FixtureRequest) -> Iterator[Notified]:
    with Lab(firewall=request.param) as lab:
        yield Notified(lab)


RESTARTS = {
    "restarted": ["flush ruleset\n"],
    "our map flushed": ["flush map inet {table} igdpcp1_dnat4\n"],
    "our table deleted": ["delete table inet {table}\n"],
}


@pytest.mark.parametrize("how", RESTARTS)
def test_rules_that_are_taken_away_come_back_as_soon_as_the_kernel_tells(router: Notified, how: str) -> None:
    for script in RESTARTS[how]:
        router.nft(script.format(table=router.table))
    router.lab.load_firewall()
    router.wait_until_reached()
    assert router.daemon.events("ruleset_gone")[0]["changed_by"] == "nft"
    poll(lambda: router.daemon.status()["firewall"]["problem"] is None, NOTICED_SECONDS, "the end of the problem")


def test_a_reload_of_the_firewall_is_no_reason_to_lay_rules_anew(router: Notified) -> None:
    router.lab.load_firewall()
    poll(lambda: router.daemon.status()["firewall"]["compared"], NOTICED_SECONDS, "a comparison")
    assert router.daemon.status()["firewall"]["compared"].items() >= {"missing": 0, "surplus": 0}.items()
    assert "event=ruleset" not in router.daemon.log()
    assert router.reached()


def test_a_firewall_that_is_stopped_is_reported_and_mended_when_it_is_back() -> None:
    with Lab(firewall="fw4") as lab:
        router = Notified(lab)
        router.nft("delete table inet fw4\n")
        poll(lambda: not router.daemon.status()["firewall"]["active"], NOTICED_SECONDS, "the report")
        assert "firewall not active" in router.daemon.cli("status").stdout
        refused = router.daemon.cli("status", "--repair", check=False)
        assert refused.returncode == 1
        assert "firewall not active" in refused.stderr
        lab.load_firewall()
        router.wait_until_reached()
        poll(lambda: router.daemon.status()["firewall"]["active"], NOTICED_SECONDS, "the end of the report")


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_firewall_that_is_started_after_the_daemon_lets_mappings_through(backend: str) -> None:
    with Lab(firewall="fw4") as lab:
        lab.router.nft("delete table inet fw4\n")
        ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, backend)
        lab.listen(lab.lan, "tcp", PORT)
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)

        lab.load_firewall()

        poll(
            lambda: lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.5).listener == "lan",
            REPAIR_SECONDS,
            f"the path being open:\n{daemon.log()}",
        )
        assert lab.router.run(["nft", "list", "tables"]).stdout.strip() == "table inet fw4"
        assert "FWD" not in lab.router.run(["iptables-legacy-save", "-t", "filter"]).stdout


def test_what_somebody_changes_by_hand_is_put_right(router: Notified) -> None:
    router.element("add", '"wan" . tcp . 7777 timeout 1h : 192.168.1.66 . 7')
    poll(lambda: "7777" not in router.listed(), NOTICED_SECONDS, f"the element going:\n{router.daemon.log()}")
    [told] = router.daemon.events("ruleset_differs")
    assert (told["missing"], told["surplus"], told["changed_by"]) == ("0", "1", "nft")


def test_the_operator_compares_and_repairs_the_rules() -> None:
    with Lab(firewall="fw4") as lab:
        router = Notified(lab, DEAF)
        assert "rules in place" in router.daemon.cli("status").stdout
        assert "kernel agrees with the table" in router.daemon.cli("status", "--audit").stdout

        router.nft(f'delete element inet fw4 igdpcp1_own4 {{ "wan" . tcp . {PORT} }}\n')
        router.element("add", '"wan" . tcp . 7777 timeout 1h : 192.168.1.66 . 7')
        for arguments in (["status", "--audit"], ["status"]):
            assert "1 rule missing, 1 unknown: igdpcp-cli status --repair" in router.daemon.cli(*arguments).stdout

        done = json.loads(router.daemon.cli("status", "--repair", "--json").stdout)
        assert done == {"found": {"missing": 1, "surplus": 1}, "left": {"missing": 0, "surplus": 0}}
        assert router.daemon.cli("status", "--repair").stdout == "The kernel agrees with the table.\n"
        assert "7777" not in router.listed()
        assert router.reached()
