# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier as a process: packets flow as its table says, and a test can look into it and steer it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.carrier import CarrierMapping, SimulatedCarrier
from tests.lab.namespaces import LabError, poll
from tests.lab.simulated_carrier.asking import (
    EXACT,
    OTHER_NONCE,
    TCP,
    UDP,
    Reply,
    announce_request,
    description,
    map_request,
    only_from,
    third_party,
)
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

ROUTER = ROUTER_WAN_ADDRESS
EXTERNAL2 = "62.0.0.2"
PORT = 8080
PROTOCOLS = {"tcp": TCP, "udp": UDP}


class Asker:
    """The router's own requests, without a daemon."""

    def __init__(self, lab: Lab) -> None:
        self.socket = lab.router.socket(socket.SOCK_DGRAM)
        self.socket.settimeout(2.0)
        self.socket.connect((CARRIER_ADDRESS, 5351))

    def receive(self) -> Reply:
        return Reply(self.socket.recv(2048))

    def ask(self, raw: bytes) -> Reply:
        self.socket.send(raw)
        return self.receive()

    def map(self, port: int = PORT, external_port: int = 9000, **fields: Any) -> Reply:
        return self.ask(map_request(ROUTER, port, external_port, **fields))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def carrier(lab: Lab) -> Iterator[SimulatedCarrier]:
    carrier = SimulatedCarrier(lab)
    yield carrier
    carrier.stop()


@pytest.fixture
def asker(lab: Lab) -> Iterator[Asker]:
    asker = Asker(lab)
    yield asker
    asker.socket.close()


# Packets


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_mapping_lets_packets_in_until_it_is_deleted(
    lab: Lab, carrier: SimulatedCarrier, asker: Asker, protocol: str
) -> None:
    probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
    with lab.listen(lab.router, protocol, PORT):
        assert not probe(lab.internet, EXTERNAL_ADDRESS, 9000)
        granted = asker.map(protocol=PROTOCOLS[protocol], options=EXACT)
        assert (granted.result, granted.external_port, granted.external_address) == (0, 9000, EXTERNAL_ADDRESS)
        assert carrier.table() == [CarrierMapping(protocol, 9000, ROUTER, PORT)]
        assert probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS
        assert asker.map(protocol=PROTOCOLS[protocol], lifetime=0).result == 0
        assert not probe(lab.internet, EXTERNAL_ADDRESS, 9000)


def test_what_leaves_the_mapped_port_has_the_external_one(lab: Lab, carrier: SimulatedCarrier, asker: Asker) -> None:
    asker.map(protocol=UDP)
    with lab.listen(lab.internet, "udp", 7000):
        seen = lab.udp_probe(lab.router, INTERNET_ADDRESS, 7000, source_port=PORT)
    assert seen.peer == f"{EXTERNAL_ADDRESS}:9000"


def test_a_filter_keeps_other_hosts_out_also_when_it_is_changed(
    lab: Lab, carrier: SimulatedCarrier, asker: Asker
) -> None:
    with lab.listen(lab.router, "tcp", PORT):
        asker.map(options=only_from(INTERNET2_ADDRESS))
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000, source=INTERNET2_ADDRESS)
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000, source=INTERNET_ADDRESS)
        asker.map(options=only_from("0.0.0.0", prefix=0))
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000, source=INTERNET_ADDRESS)


def test_a_third_party_gets_its_packets(lab: Lab) -> None:
    with Lab(nat=False) as lab, lab.listen(lab.lan, "tcp", PORT):
        carrier, asker = SimulatedCarrier(lab), Asker(lab)
        with asker.socket:
            assert asker.map(options=third_party(LAN_ADDRESS)).result == 0
        assert carrier.table() == [CarrierMapping("tcp", 9000, LAN_ADDRESS, PORT)]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).listener == "lan"


def test_a_mapping_ends_with_its_lifetime(lab: Lab, asker: Asker) -> None:
    carrier = SimulatedCarrier(lab, shortest=1)
    with lab.listen(lab.router, "tcp", PORT):
        asker.map(lifetime=1)
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
        poll(lambda: not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000), 3.0, "the path's end")
    assert carrier.table() == []
    carrier.stop()


def test_another_external_address_takes_the_mappings_and_the_packets_along(
    lab: Lab, carrier: SimulatedCarrier, asker: Asker
) -> None:
    with lab.listen(lab.router, "tcp", PORT):
        asker.map(options=description("game"))
        carrier.use_addresses(EXTERNAL2)
        update = asker.receive()
        assert (update.result, update.external_address, update.external_port) == (0, EXTERNAL2, 9000)
        assert [mapping.external_address for mapping in carrier.table()] == [EXTERNAL2]
        assert lab.tcp_probe(lab.internet, EXTERNAL2, 9000).peer_address == INTERNET_ADDRESS
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)


# Debian's natpmpc


@pytest.mark.parametrize("profile", ["dual", "natpmp_only"])
def test_natpmpc_opens_and_closes_a_port(lab: Lab, profile: str) -> None:
    carrier = SimulatedCarrier(lab, profile)
    natpmpc = ["natpmpc", "-g", CARRIER_ADDRESS, "-a"]
    with lab.listen(lab.router, "tcp", PORT), lab.listen(lab.router, "udp", PORT):
        for protocol in ("tcp", "udp"):
            said = lab.router.run([*natpmpc, "9000", str(PORT), protocol, "600"]).stdout
            assert f"Public IP address : {EXTERNAL_ADDRESS}" in said
            assert f"Mapped public port 9000 protocol {protocol.upper()} to local port {PORT}" in said
        assert carrier.table() == [CarrierMapping(p, 9000, ROUTER, PORT) for p in ("tcp", "udp")]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS
        assert lab.udp_probe(lab.internet, EXTERNAL_ADDRESS, 9000).peer_address == INTERNET_ADDRESS
        lab.router.run([*natpmpc, "0", str(PORT), "tcp", "0"])
        assert [mapping.protocol for mapping in carrier.table()] == ["udp"]
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
    carrier.stop()


# The link


def test_chosen_requests_and_replies_are_lost(carrier: SimulatedCarrier, asker: Asker) -> None:
    asker.socket.settimeout(0.2)
    carrier.switch(lose_requests=[True, False], lose_replies=[True])
    for _ in range(2):
        with pytest.raises(TimeoutError):
            asker.map()
    assert asker.map().result == 0
    counters = carrier.counters()
    assert (counters["lost_requests"], counters["lost_replies"], counters["sent"]) == (1, 1, 1)
    assert [request["result"] for request in carrier.maps()] == [None, 0, 0]


def test_answers_can_be_doubled_and_late(carrier: SimulatedCarrier, asker: Asker) -> None:
    carrier.switch(duplicate=1.0, delay=200)
    began = time.monotonic()
    assert asker.map().result == 0
    assert time.monotonic() - began >= 0.2
    assert [asker.receive().result for _ in range(3)] == [0, 0, 0]
    assert len(carrier.table()) == 1


def test_answers_can_come_in_another_order(carrier: SimulatedCarrier, asker: Asker) -> None:
    carrier.switch(reorder=0.5)
    ports = list(range(9000, 9020))
    for port in ports:
        asker.socket.send(map_request(ROUTER, port, port))
    answered = [asker.receive().external_port for _ in ports]
    assert answered != ports
    assert sorted(answered) == ports


# Looking and steering


def test_what_was_asked_can_be_read_back(carrier: SimulatedCarrier, asker: Asker) -> None:
    asker.map(options=EXACT + description("game"))
    asker.map(nonce=OTHER_NONCE)
    (mapping,) = carrier.table()
    assert (mapping.description, mapping.lifetime, mapping.external_address) == ("game", 600, EXTERNAL_ADDRESS)
    assert [request["result"] for request in carrier.maps()] == [0, 2]
    assert carrier.maps()[0]["options"] == {"PREFER_FAILURE": [""], "DESCRIPTION": ["game"]}
    assert len(carrier.requests(last=1)) == 1
    assert carrier.counters()["version_2_opcode_1"] == 2


def test_a_restart_is_announced_to_all_hosts_with_a_new_epoch(
    lab: Lab, carrier: SimulatedCarrier, asker: Asker
) -> None:
    with lab.listen(lab.router, "tcp", PORT), lab.router.socket(socket.SOCK_DGRAM) as listener:
        listener.bind(("", 5350))
        device = lab.router.inside(lambda: socket.if_nametoindex(WAN_DEVICE))
        membership = socket.inet_aton("224.0.0.1") + bytes(4) + device.to_bytes(4, "little")
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        listener.settimeout(2.0)
        asker.map()
        carrier.restart()
        assert carrier.table() == []
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
        for _ in range(2):
            data, source = listener.recvfrom(2048)
            assert source == (CARRIER_ADDRESS, 5351)
            assert data == bytes([2, 0x80]) + bytes(22)


def test_a_silent_state_loss_closes_the_path_and_the_clock_goes_on(
    lab: Lab, carrier: SimulatedCarrier, asker: Asker
) -> None:
    with lab.listen(lab.router, "tcp", PORT):
        before = asker.map().epoch
        carrier.lose_state()
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
    assert asker.ask(announce_request(ROUTER)).epoch >= before > 0
    assert carrier.table() == []


def test_the_profile_can_change_and_be_overridden(carrier: SimulatedCarrier, asker: Asker) -> None:
    asker.map()
    carrier.use_profile("quota_32", quota=1)
    assert asker.map(PORT + 1).result == 10
    carrier.use_profile("port_block_512")
    granted = asker.map(PORT + 1)
    assert granted.external_port in carrier.block(ROUTER)
    assert len(carrier.block(ROUTER)) == 512


def test_what_it_does_not_know_is_an_error(lab: Lab, carrier: SimulatedCarrier) -> None:
    for order in (
        lambda: carrier.switch(lose=1),
        lambda: carrier.use_profile("vendor"),
        lambda: carrier.use_profile("strict", quotas=1),
        lambda: SimulatedCarrier(lab, "vendor"),
    ):
        with pytest.raises(LabError):
            order()


def test_a_killed_carrier_says_so_and_starts_with_nothing(lab: Lab, carrier: SimulatedCarrier, asker: Asker) -> None:
    with lab.listen(lab.router, "tcp", PORT):
        asker.map()
        carrier.kill()
        with pytest.raises(LabError, match="does not answer"):
            carrier.table()
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
        carrier.start()
        assert carrier.table() == []
        assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 9000)
    restarted = asker.map()
    assert restarted.result == 0
    assert restarted.epoch < 60
