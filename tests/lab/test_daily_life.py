# SPDX-License-Identifier: Apache-2.0
"""What control points do with an open port on an ordinary day, on packets: ask again, close many, stay connected."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.lab.carrier import CarrierMapping, SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import EXTERNAL_ADDRESS, LAN2_ADDRESS, LAN_ADDRESS, ROUTER_WAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

PORT, OTHER_PORT = 8080, 9090
PATIENCE = 5.0


@pytest.fixture(params=["nftables", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(firewall=request.param) as lab:
        yield lab


def started(lab: Lab) -> tuple[SimulatedCarrier, Igdpcpd]:
    carrier = SimulatedCarrier(lab)
    daemon = Igdpcpd(lab, lab.firewall, main={"external_ip_probe": "0"})
    daemon.wait_for_activation()
    return carrier, daemon


def ours(port: int) -> CarrierMapping:
    return CarrierMapping("tcp", port, ROUTER_WAN_ADDRESS, port)


def listener_at(lab: Lab, port: int) -> str:
    return lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, port).listener


def test_iwf_083_093_a_repeated_request_prolongs_the_lease_and_may_lead_to_another_port_of_the_host(lab: Lab) -> None:
    carrier, _ = started(lab)
    lab.listen(lab.lan, "tcp", OTHER_PORT)
    client = soap_client(lab.lan)
    assert client.add("tcp", PORT, LAN_ADDRESS, PORT, lease=600)
    asked = len(carrier.maps())

    assert client.add("tcp", PORT, LAN_ADDRESS, OTHER_PORT, lease=3600)

    assert listener_at(lab, PORT) == "lan"
    entry = client.entry("tcp", PORT)
    assert entry["NewInternalPort"] == str(OTHER_PORT)
    assert 3590 <= int(entry["NewLeaseDuration"]) <= 3600
    poll(lambda: carrier.table()[0].lifetime > 3500, PATIENCE, "the carrier granting the longer lease")
    assert carrier.table() == [ours(PORT)]
    assert {request["nonce"] for request in carrier.maps()[asked:]} <= {carrier.table()[0].nonce}


def test_iwf_137_a_range_closes_the_hosts_own_ports_and_no_other_ones(lab: Lab) -> None:
    carrier, _ = started(lab)
    own, foreign = [PORT, PORT + 5, PORT + 10], PORT + 7
    for port in own:
        lab.listen(lab.lan, "tcp", port)
        assert soap_client(lab.lan).add("tcp", port, LAN_ADDRESS, port)
    lab.listen(lab.lan2, "tcp", foreign)
    assert soap_client(lab.lan2).add("tcp", foreign, LAN2_ADDRESS, foreign)

    span = {"NewStartPort": PORT, "NewEndPort": PORT + 9, "NewProtocol": "TCP", "NewManage": 0}
    assert soap_client(lab.lan, version=2).call("DeletePortMappingRange", span)

    assert carrier.table() == [ours(foreign), ours(PORT + 10)]
    assert [listener_at(lab, port) for port in (*own, foreign)] == ["", "", "lan", "lan2"]
    assert not rules_for(lab, LAN_ADDRESS, PORT)


def test_iwf_042_a_connection_goes_on_through_a_restart_and_through_the_carriers(lab: Lab) -> None:
    carrier, daemon = started(lab)
    assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
    with lab.lan.socket(socket.SOCK_STREAM) as server, lab.internet.socket(socket.SOCK_STREAM) as client:
        server.bind(("", PORT))
        server.listen()
        client.settimeout(PATIENCE)
        client.connect((EXTERNAL_ADDRESS, PORT))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE)

            def goes_on(word: bytes) -> bool:
                client.sendall(word)
                accepted.sendall(accepted.recv(100))
                return client.recv(100) == word

            assert goes_on(b"before")
            daemon.kill()
            assert goes_on(b"while there is no daemon")
            daemon.start()
            daemon.wait_for_activation()
            assert goes_on(b"with the next one")
            daemon.stop()
            daemon.start()
            daemon.wait_for_activation()
            assert goes_on(b"after an orderly restart")
            carrier.restart(announce=True)
            poll(lambda: ours(PORT) in carrier.table(), 15, "the mapping back at the carrier")
            assert goes_on(b"after the carrier's restart")
