# SPDX-License-Identifier: Apache-2.0
"""A carrier that gives each subscriber a block of ports, with each ``port_policy``, on real packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import Upnpc, soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import EXTERNAL_ADDRESS, LAN2_ADDRESS, LAN_ADDRESS, ROUTER_WAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

PORT, SHOWN = 8000, 8080
BRIEF = 6  # seconds of lifetime, so that the lab sees renewals


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def carrier_with_blocks(lab: Lab, **overrides: int) -> SimulatedCarrier:
    """Its blocks of 512 ports are where nobody asks for one by chance."""
    return SimulatedCarrier(lab, "port_block_512", ports=[20000, 60000], **overrides)


def started(lab: Lab, policy: str, **main: str) -> Igdpcpd:
    backend = "iptables" if lab.firewall == "iptables" else "nftables"
    daemon = Igdpcpd(lab, backend, main={"port_policy": policy, **main})
    daemon.wait_for_activation()
    return daemon


def leads_to_the_host(lab: Lab, port: int) -> bool:
    return lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, port).listener == "lan"


def asked(carrier: SimulatedCarrier) -> int:
    """How many mappings the carrier was asked for."""
    return sum(request["lifetime"] > 0 for request in carrier.maps())


def test_strict_refuses_a_port_outside_of_the_block(lab: Lab) -> None:
    carrier = carrier_with_blocks(lab)
    started(lab, "strict", external_ip_probe="0")
    client = soap_client(lab.lan)

    assert client.add("tcp", SHOWN, LAN_ADDRESS, PORT).code == 718

    assert carrier.table() == []
    assert not rules_for(lab, LAN_ADDRESS, PORT)


@pytest.mark.parametrize("firewall", ["fw4", "iptables"])
def test_an_alias_is_open_at_the_carriers_port_listed_and_deleted_by_the_wanted_one(firewall: str) -> None:
    with Lab(firewall) as lab:
        carrier = carrier_with_blocks(lab)
        daemon = started(lab, "alias", external_ip_probe="0", specific_query="local")
        lab.listen(lab.lan, "tcp", PORT)
        client = soap_client(lab.lan)

        assert client.add("tcp", SHOWN, LAN_ADDRESS, PORT, lease=3600)

        (mapping,) = carrier.table()
        public = mapping.external_port
        assert public in carrier.block(ROUTER_WAN_ADDRESS)
        assert leads_to_the_host(lab, public)
        assert not leads_to_the_host(lab, SHOWN)
        for port in (public, SHOWN):
            assert lab.tcp_probe(lab.lan2, EXTERNAL_ADDRESS, port).listener == "lan"
        assert client.entry("tcp", SHOWN)["NewInternalClient"] == LAN_ADDRESS
        assert client.entry("tcp", public).code == 714
        assert f"{SHOWN}->{LAN_ADDRESS}:{PORT}" in Upnpc(lab.lan).list().stdout
        (row,) = daemon.mappings()
        assert (row["external_port"], row["public_port"]) == (SHOWN, public)
        shown = daemon.cli("mappings").stdout.splitlines()[1].split()
        assert shown[:3] == ["tcp", f"{EXTERNAL_ADDRESS}:{public}", str(SHOWN)]
        assert "1 at another public port than shown" in daemon.cli("status").stdout
        assert soap_client(lab.lan2).add("tcp", SHOWN, LAN2_ADDRESS, PORT).code == 718

        assert client.delete("tcp", SHOWN)

        assert carrier.table() == []
        assert not leads_to_the_host(lab, public)
        assert lab.tcp_probe(lab.lan2, EXTERNAL_ADDRESS, SHOWN).listener != "lan"
        assert not rules_for(lab, LAN_ADDRESS, PORT)


def test_an_aliased_clients_own_packets_leave_by_its_public_port(lab: Lab) -> None:
    """Programs find their public port out by that."""
    carrier = carrier_with_blocks(lab)
    started(lab, "alias", external_ip_probe="0")
    lab.listen(lab.internet, "udp", 7000)
    assert soap_client(lab.lan).add("udp", SHOWN, LAN_ADDRESS, PORT)
    (mapping,) = carrier.table()

    seen = lab.udp_probe(lab.lan, lab.internet.address, 7000, source_port=PORT)

    assert (seen.peer_address, seen.peer_port) == (EXTERNAL_ADDRESS, mapping.external_port)


@pytest.mark.slow
def test_an_alias_outlives_its_lifetime_a_crash_and_the_carriers_restart(lab: Lab) -> None:
    carrier = carrier_with_blocks(lab, shortest=BRIEF, longest=BRIEF)
    daemon = started(lab, "alias", external_ip_probe="0")
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", SHOWN, LAN_ADDRESS, PORT)
    (before,) = carrier.table()
    first = carrier.maps()[0]["at"]

    poll(lambda: carrier.maps()[-1]["at"] > first + BRIEF, 3 * BRIEF, "a renewal after the first lifetime")
    assert carrier.table() == [before]
    assert leads_to_the_host(lab, before.external_port)

    daemon.kill()
    daemon.start()
    daemon.wait_for_activation()
    assert carrier.table() == [before]
    assert client.entry("tcp", SHOWN)
    assert leads_to_the_host(lab, before.external_port)

    carrier.restart()
    poll(carrier.table, 10, "recovery")
    (after,) = carrier.table()
    poll(lambda: leads_to_the_host(lab, after.external_port), 5, "the way in")
    assert client.entry("tcp", SHOWN)
    assert client.delete("tcp", SHOWN)
    assert carrier.table() == []


def test_learn_block_asks_for_no_port_outside_of_the_block_once_it_knows_it(lab: Lab) -> None:
    carrier = carrier_with_blocks(lab)
    daemon = started(lab, "learn-block")
    poll(lambda: daemon.status()["port_blocks"], 5, "the probe's port")
    lab.listen(lab.lan, "tcp", PORT)
    client = soap_client(lab.lan, version=2)
    assert client.add("tcp", SHOWN, LAN_ADDRESS, PORT).code == 718
    known = asked(carrier)

    assert [client.add("tcp", port, LAN_ADDRESS, PORT).code for port in (3074, SHOWN, 6112)] == [718] * 3

    assert asked(carrier) == known
    block = carrier.block(ROUTER_WAN_ADDRESS)
    assert client.add("tcp", block[7], LAN_ADDRESS, PORT)
    assert leads_to_the_host(lab, block[7])
    assert client.add("tcp", block[-7], LAN_ADDRESS, PORT)
    assert leads_to_the_host(lab, block[-7])
    reserved = int(client.add("tcp", 3074, LAN_ADDRESS, PORT + 1, any_port=True)["NewReservedPort"])
    assert carrier.maps()[-1]["external_port"] == reserved
    assert reserved in block


def test_what_learn_block_knows_ends_when_the_carrier_has_lost_its_state(lab: Lab) -> None:
    carrier = carrier_with_blocks(lab)
    daemon = started(lab, "learn-block")
    client = soap_client(lab.lan, version=2)
    assert client.add("tcp", SHOWN, LAN_ADDRESS, PORT, any_port=True)
    known = asked(carrier)
    assert client.add("tcp", 3074, LAN_ADDRESS, PORT).code == 718
    assert asked(carrier) == known

    carrier.restart()

    poll(lambda: daemon.events("carrier_lost_its_state"), 10, "the announcement")
    carrier.use_profile("strict")
    assert client.add("tcp", 3074, LAN_ADDRESS, PORT + 1)
