# SPDX-License-Identifier: Apache-2.0
"""Both carriers grant, refuse and translate as the product tests expect of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.carrier import CarrierMapping, MiniupnpdCarrier, ScriptedCarrier
from tests.lab.namespaces import Host, LabError, poll
from tests.lab.topology import (
    CARRIER_ADDRESS,
    EXTERNAL_ADDRESS,
    INTERNET2_ADDRESS,
    INTERNET_ADDRESS,
    LAN_ADDRESS,
    ROUTER_WAN_ADDRESS,
    WAN_DEVICE,
    Lab,
)

pytestmark = pytest.mark.lab

PREFER_FAILURE = bytes([2, 0, 0, 0])
TCP, UDP = 6, 17


def address(text: str) -> bytes:
    return bytes(10) + b"\xff\xff" + socket.inet_aton(text)


def third_party(text: str) -> bytes:
    return bytes([1, 0, 0, 16]) + address(text)


def only_from(text: str) -> bytes:
    return bytes([3, 0, 0, 20, 0, 128, 0, 0]) + address(text)


@dataclass(frozen=True)
class Reply:
    result: int
    lifetime: int
    epoch: int
    external_port: int
    options: bytes


class Asker:
    """Sends PCP requests from one host, byte by byte."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.socket = host.socket(socket.SOCK_DGRAM)
        self.socket.settimeout(2.0)
        self.socket.connect((CARRIER_ADDRESS, 5351))

    def map(
        self,
        port: int,
        external_port: int = 0,
        *,
        protocol: int = TCP,
        lifetime: int = 600,
        nonce: bytes = b"twelve bytes",
        options: bytes = b"",
        client: str = "",
    ) -> Reply:
        head = bytes([2, 1, 0, 0]) + lifetime.to_bytes(4, "big") + address(client or self._host.address)
        ports = port.to_bytes(2, "big") + external_port.to_bytes(2, "big")
        self.socket.send(head + nonce + bytes([protocol, 0, 0, 0]) + ports + address("0.0.0.0") + options)
        data = self.socket.recv(1100)
        assert data[0] == 2
        assert data[1] == 0x81
        return Reply(
            data[3],
            int.from_bytes(data[4:8], "big"),
            int.from_bytes(data[8:12], "big"),
            int.from_bytes(data[42:44], "big"),
            data[60:],
        )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def carrier(lab: Lab) -> Iterator[ScriptedCarrier]:
    carrier = ScriptedCarrier(lab)
    yield carrier
    carrier.stop()


@pytest.fixture
def asker(lab: Lab) -> Iterator[Asker]:
    asker = Asker(lab.router)
    yield asker
    asker.socket.close()


@pytest.mark.parametrize("variant", ["nftables", "iptables"])
def test_miniupnpd_grants_and_packets_arrive(variant: str) -> None:
    with Lab() as lab, lab.listen(lab.router, "tcp", 8080), lab.listen(lab.router, "udp", 8080):
        carrier = MiniupnpdCarrier(lab, variant)
        for protocol in ("tcp", "udp"):
            lab.router.run(["natpmpc", "-g", CARRIER_ADDRESS, "-a", "9000", "8080", protocol, "600"])
        assert carrier.table() == [CarrierMapping(p, 9000, ROUTER_WAN_ADDRESS, 8080) for p in ("tcp", "udp")]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS
        assert lab.udp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS
        carrier.restart()
        assert carrier.table() == []
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)


@pytest.mark.parametrize("variant", ["nftables", "iptables"])
def test_miniupnpd_grants_on_behalf_of_a_lan_host(variant: str) -> None:
    with Lab(nat=False) as lab, lab.listen(lab.lan, "tcp", 80):
        carrier = MiniupnpdCarrier(lab, variant)
        asker = Asker(lab.router)
        with asker.socket:
            assert asker.map(80, 9000, options=third_party(LAN_ADDRESS)).result == 0
        assert carrier.table() == [CarrierMapping("tcp", 9000, LAN_ADDRESS, 80)]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).listener == "lan"


def test_the_scripted_carrier_grants_what_is_suggested(lab: Lab, carrier: ScriptedCarrier, asker: Asker) -> None:
    with lab.listen(lab.router, "tcp", 8080), lab.listen(lab.router, "udp", 8080):
        assert asker.map(8080, 9000, options=PREFER_FAILURE).external_port == 9000
        assert asker.map(8080, 9000, protocol=UDP).external_port == 9000
        assert carrier.table() == [CarrierMapping(p, 9000, ROUTER_WAN_ADDRESS, 8080) for p in ("tcp", "udp")]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS
        assert lab.udp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS


def test_its_clients_packets_leave_from_the_mapped_port(lab: Lab, carrier: ScriptedCarrier, asker: Asker) -> None:
    asker.map(8080, 9000, protocol=UDP)
    with lab.listen(lab.internet, "udp", 7000):
        seen = lab.udp_probe(lab.router, INTERNET_ADDRESS, 7000, source_port=8080)
    assert seen.peer == f"{EXTERNAL_ADDRESS}:9000"


def test_a_deletion_closes_the_port(lab: Lab, carrier: ScriptedCarrier, asker: Asker) -> None:
    with lab.listen(lab.router, "tcp", 8080):
        asker.map(8080, 9000)
        assert asker.map(8080, lifetime=0).result == 0
        assert carrier.table() == []
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)


def test_a_taken_port_is_refused_or_replaced(carrier: ScriptedCarrier, asker: Asker) -> None:
    asker.map(8080, 9000)
    assert asker.map(8081, 9000, options=PREFER_FAILURE).result == 11
    assert asker.map(8081, 9000).external_port == 8081


def test_a_foreign_nonce_is_not_authorized(carrier: ScriptedCarrier, asker: Asker) -> None:
    asker.map(8080, 9000)
    assert asker.map(8080, 9000, nonce=b"another one!").result == 2
    assert asker.map(8080, 0, nonce=b"another one!", lifetime=0).result == 2
    assert len(carrier.table()) == 1


def test_a_wrong_client_address_is_a_mismatch(carrier: ScriptedCarrier, asker: Asker) -> None:
    assert asker.map(8080, client=LAN_ADDRESS).result == 12


@pytest.mark.parametrize(
    ("options", "lifetime", "result"),
    [
        (PREFER_FAILURE, 0, 6),
        (PREFER_FAILURE * 2, 600, 6),
        (bytes([2, 0, 0, 4, 0, 0, 0, 0]), 600, 6),
        (bytes([1, 0, 0, 16]), 600, 6),
        (only_from(INTERNET_ADDRESS), 0, 6),
        (bytes([99, 0, 0, 0]), 600, 5),
        (third_party(LAN_ADDRESS), 600, 5),
        (bytes([200, 0, 0, 0]), 600, 0),
    ],
)
def test_options_are_checked(
    carrier: ScriptedCarrier, asker: Asker, options: bytes, lifetime: int, result: int
) -> None:
    assert asker.map(8080, 9000, options=options, lifetime=lifetime).result == result


def test_third_party_may_not_name_the_sender(carrier: ScriptedCarrier, asker: Asker) -> None:
    carrier.set(third_party=True)
    assert asker.map(80, options=third_party(LAN_ADDRESS)).result == 0
    assert asker.map(80, options=third_party(ROUTER_WAN_ADDRESS)).result == 3
    assert [mapping.address for mapping in carrier.table()] == [LAN_ADDRESS]


def test_a_filter_lets_only_that_host_in(lab: Lab, carrier: ScriptedCarrier, asker: Asker) -> None:
    with lab.listen(lab.router, "tcp", 8080):
        granted = asker.map(8080, 9000, options=only_from(INTERNET2_ADDRESS))
        assert granted.options == only_from(INTERNET2_ADDRESS)
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000, source=INTERNET2_ADDRESS)
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000, source=INTERNET_ADDRESS)


def test_it_refuses_on_demand(carrier: ScriptedCarrier, asker: Asker) -> None:
    carrier.refuse(8, 45)
    refused = asker.map(8080, 9000)
    assert (refused.result, refused.lifetime) == (8, 45)
    carrier.accept()
    carrier.refuse(11, 1800, port=9001)
    assert asker.map(8081, 9001).result == 11
    assert asker.map(8081, 9002).result == 0
    assert carrier.counters()["result_0"] == 1


def test_it_is_silent_on_demand(carrier: ScriptedCarrier, asker: Asker) -> None:
    asker.socket.settimeout(0.1)
    carrier.set(drop=1)
    with pytest.raises(TimeoutError):
        asker.map(8080, 9000)
    assert asker.map(8080, 9000).result == 0
    carrier.set(silent=True)
    with pytest.raises(TimeoutError):
        asker.map(8080, 9000)
    assert [request["result"] for request in carrier.maps()] == [None, 0, None]


def test_it_grants_another_port_caps_lifetimes_and_delays(carrier: ScriptedCarrier, asker: Asker) -> None:
    carrier.set(grant_port=6598, cap=120, delay=0.2)
    asker.socket.settimeout(0.1)
    with pytest.raises(TimeoutError):
        asker.map(8080, 9000)
    asker.socket.settimeout(2.0)
    late = asker.socket.recv(1100)
    assert int.from_bytes(late[42:44], "big") == 6598
    assert int.from_bytes(late[4:8], "big") == 120


def test_a_mapping_ends_with_its_lifetime(lab: Lab, carrier: ScriptedCarrier, asker: Asker) -> None:
    with lab.listen(lab.router, "tcp", 8080):
        asker.map(8080, 9000, lifetime=1)
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
        poll(lambda: not carrier.table(), 3.0, "the mapping's end")
        poll(lambda: not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000), 3.0, "the rule's end")


def test_a_reset_begins_a_new_epoch_and_announces_it(lab: Lab, carrier: ScriptedCarrier, asker: Asker) -> None:
    carrier.reset(epoch=5000, forget=False)
    assert asker.map(8080, 9000).epoch == 5000
    with lab.router.socket(socket.SOCK_DGRAM) as listener:
        listener.bind(("", 5350))
        device = lab.router.inside(lambda: socket.if_nametoindex(WAN_DEVICE))
        membership = socket.inet_aton("224.0.0.1") + bytes(4) + device.to_bytes(4, "little")
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        listener.settimeout(2.0)
        carrier.reset(announce=True)
        data, source = listener.recvfrom(1100)
    assert source == (CARRIER_ADDRESS, 5351)
    assert data == bytes([2, 0x80]) + bytes(22)
    assert carrier.table() == []


def test_a_quota_is_kept(carrier: ScriptedCarrier, asker: Asker) -> None:
    carrier.set(quota=1)
    assert asker.map(8080).result == 0
    assert asker.map(8081).result == 10
    assert asker.map(8080).result == 0


def test_what_was_asked_can_be_read_back(carrier: ScriptedCarrier, asker: Asker) -> None:
    asker.map(8080, 9000, options=PREFER_FAILURE + bytes([128, 0, 0, 4]) + b"game")
    (request,) = carrier.maps()
    assert request["options"] == {"PREFER_FAILURE": [""], "DESCRIPTION": ["game"]}
    assert (request["protocol"], request["internal_port"], request["external_port"]) == ("tcp", 8080, 9000)
    assert carrier.table()[0].description == "game"


def test_a_killed_carrier_says_so_and_can_be_started_again(carrier: ScriptedCarrier, asker: Asker) -> None:
    asker.map(8080, 9000)
    carrier.kill()
    with pytest.raises(LabError, match="scripted PCP server"):
        carrier.table()
    carrier.restart()
    assert carrier.table() == []
    assert asker.map(8080, 9000).result == 0
