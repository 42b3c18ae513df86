# SPDX-License-Identifier: Apache-2.0
"""The iptables back-end in the whole router: alone, and on OpenWrt, where fw4 decides what is forwarded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab import topology
from tests.lab.altered import altered
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import Lab
from tests.support.soap_client import SoapClient

pytestmark = pytest.mark.lab

PORT = 8080
OFTEN = "from igdpcp.daemon import ruleset_watch\nruleset_watch.AUDIT_SECONDS = 0.5\n"


@pytest.fixture(params=["iptables", "fw4"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(firewall=request.param) as made:
        for protocol in ("tcp", "udp"):
            made.listen(made.lan, protocol, PORT)
        yield made


@pytest.fixture
def carrier(lab: Lab) -> ScriptedCarrier:
    return ScriptedCarrier(lab)


@pytest.fixture
def daemon(lab: Lab, carrier: ScriptedCarrier) -> Igdpcpd:
    return Igdpcpd(lab, "iptables", env=altered(lab, OFTEN))


@pytest.fixture
def client(lab: Lab, daemon: Igdpcpd) -> SoapClient:
    return soap_client(lab.lan)


def is_open(lab: Lab, protocol: str = "tcp") -> bool:
    probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
    return probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT, timeout=0.5).listener == "lan"


def left(lab: Lab) -> list[str]:
    """What stands in the router's tables for the mapped host."""
    listed = lab.router.run(["nft", "list", "ruleset"]).stdout.splitlines() if lab.firewall == "fw4" else []
    saved = [*lab.router.iptables_rules("nat"), *lab.router.iptables_rules("filter")]
    return [row for row in (*listed, *saved) if topology.LAN_ADDRESS in row]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_mapping_leads_from_the_internet_and_from_the_lan_to_its_host_until_it_is_deleted(
    lab: Lab, client: SoapClient, protocol: str
) -> None:
    assert client.add(protocol, PORT, topology.LAN_ADDRESS, PORT)
    assert is_open(lab, protocol)
    probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
    assert probe(lab.lan2, topology.EXTERNAL_ADDRESS, PORT).listener == "lan"
    assert client.delete(protocol, PORT)
    assert not is_open(lab, protocol)
    assert left(lab) == []


def test_a_mapping_ends_with_its_lease(lab: Lab, client: SoapClient) -> None:
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT, lease=2)
    assert is_open(lab)
    poll(lambda: not left(lab), 6.0, "the end of the rules")
    assert not is_open(lab)


def test_after_kill_9_rules_stay_and_the_next_start_goes_on_with_them(
    lab: Lab, daemon: Igdpcpd, client: SoapClient
) -> None:
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    daemon.kill()
    assert is_open(lab)
    daemon.start()
    assert is_open(lab)
    assert client.delete("tcp", PORT)
    assert left(lab) == []


def flush_nat(lab: Lab) -> None:
    lab.router.run(["iptables-legacy", "-t", "nat", "-F"])
    lab.load_firewall()


def flush_forwarding(lab: Lab) -> None:
    if lab.firewall == "fw4":
        lab.router.run(["nft", "flush", "ruleset"])
        lab.load_firewall()
    else:
        lab.router.run(["iptables-legacy", "-F", "IGDPCP-FWD"])


def reload(lab: Lab) -> None:
    lab.load_firewall()


@pytest.mark.parametrize("harm", [flush_nat, flush_forwarding, reload])
def test_what_the_firewall_loses_comes_back_by_itself(
    lab: Lab, client: SoapClient, harm: Callable[[Lab], None]
) -> None:
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    harm(lab)
    poll(lambda: is_open(lab), 10.0, "the path being open again")


def test_release_leaves_nothing(lab: Lab, daemon: Igdpcpd, client: SoapClient) -> None:
    assert client.add("tcp", PORT, topology.LAN_ADDRESS, PORT)
    assert daemon.release().returncode == 0
    assert left(lab) == []
    assert not is_open(lab)
