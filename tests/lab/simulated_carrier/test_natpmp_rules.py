# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier keeps the gateway's rules of RFC 6886, and refuses the newer protocol as the field does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.simulated_carrier.asking import TCP, UDP, map_request
from tests.lab.simulated_carrier.profiles import profile_from
from tests.lab.simulated_carrier.server import SimulatedServer
from tests.vectors.pcp_vectors import VECTORS

HOST, OTHER = "192.168.1.50", "192.168.1.60"
EXTERNAL = "203.0.113.77"
OPCODES = {UDP: 1, TCP: 2}


def gateway(
    profile: str = "natpmp_only", *, external: tuple[str, ...] = (EXTERNAL,), **overrides: Any
) -> SimulatedServer:
    return SimulatedServer(profile_from(profile, overrides), external, seed=1, now=0.0)


def send(server: SimulatedServer, raw: bytes, *, source: str = HOST, now: float = 0.0) -> bytes | None:
    sent = server.receive(raw, (source, 40000), now)
    return sent[0].data if sent else None


def mapped(
    server: SimulatedServer,
    port: int,
    external_port: int = 0,
    *,
    protocol: int = TCP,
    lifetime: int = 7200,
    source: str = HOST,
) -> tuple[int, int, int]:
    """Result, external port and lifetime of a map request's response."""
    ports = port.to_bytes(2, "big") + external_port.to_bytes(2, "big")
    raw = bytes([0, OPCODES[protocol], 0, 0]) + ports + lifetime.to_bytes(4, "big")
    reply = send(server, raw, source=source)
    assert reply is not None
    assert (len(reply), reply[1], reply[8:10]) == (16, 0x80 | OPCODES[protocol], ports[:2])
    return int.from_bytes(reply[2:4], "big"), int.from_bytes(reply[10:12], "big"), int.from_bytes(reply[12:16], "big")


@pytest.mark.parametrize(
    ("asked", "answered", "now"),
    [
        ("00 00", "00 80 00 00 00 00 12 67 cb 00 71 4d", 4711),
        ("00 02 00 00 00 50 1f 90 00 00 1c 20", "00 82 00 00 00 00 12 68 00 50 1f 90 00 00 1c 20", 4712),
        ("00 02 00 00 00 50 00 00 00 00 00 00", "00 82 00 00 00 00 12 c0 00 50 00 00 00 00 00 00", 4800),
        ("00 05 00 00 07", "00 85 00 05 07", 1),
    ],
)
@pytest.mark.parametrize("profile", ["natpmp_only", "dual"])
def test_what_the_standard_gives_is_answered_octet_by_octet(profile: str, asked: str, answered: str, now: int) -> None:
    assert send(gateway(profile), bytes.fromhex(asked), now=now) == bytes.fromhex(answered)


@pytest.mark.parametrize(
    ("overrides", "vector"),
    [({}, "V13 natpmp refusal as drawn"), ({"refusal_has_opcode": True}, "V13 natpmp refusal as sent")],
)
def test_alone_it_refuses_pcp_in_eight_octets(overrides: dict[str, Any], vector: str) -> None:
    assert send(gateway(**overrides), map_request(HOST, 80), now=90) == VECTORS[vector]


def test_a_server_of_pcp_alone_refuses_it_in_pcps_form() -> None:
    assert send(gateway("strict"), b"\0\0", now=90) == VECTORS["V13 pcp answers natpmp"]


@pytest.mark.parametrize("raw", ["00", "00 80", "00 82 00 00", "00 02 00 00 00 50 1f 90"])
def test_what_is_no_request_is_not_answered(raw: str) -> None:
    server = gateway()
    assert send(server, bytes.fromhex(raw)) is None
    assert server.listing(0) == []


def test_a_lifetime_is_never_longer_than_asked_for_and_a_repetition_keeps_the_port() -> None:
    server = gateway(longest=3600)
    assert mapped(server, 80, 9000, lifetime=60) == (0, 9000, 60)
    assert mapped(server, 80, 9001, lifetime=7200) == (0, 9000, 3600)


def test_a_taken_port_is_replaced_and_its_other_protocol_is_kept_for_its_client() -> None:
    server = gateway()
    mapped(server, 80, 9000)
    assert mapped(server, 80, 9000, source=OTHER)[1] not in (0, 9000)
    assert mapped(server, 81, 9000, source=OTHER, protocol=UDP)[1] not in (0, 9000)
    assert mapped(server, 81, 9000, protocol=UDP) == (0, 9000, 7200)


def test_internal_port_0_deletes_all_of_the_protocol_and_the_client() -> None:
    server = gateway()
    for port in (80, 81):
        mapped(server, port)
        mapped(server, port, protocol=UDP)
        mapped(server, port, source=OTHER)
    assert mapped(server, 0, lifetime=0) == (0, 0, 0)
    assert {(row["address"], row["protocol"]) for row in server.listing(0)} == {(HOST, "udp"), (OTHER, "tcp")}


def test_port_0_is_no_port_to_map() -> None:
    assert mapped(gateway(), 0) == (2, 0, 0)


def test_without_a_port_or_an_address_it_says_so() -> None:
    assert mapped(gateway(ports=(5351, 5351)), 80, protocol=UDP) == (4, 0, 0)
    assert mapped(gateway(external=()), 80) == (3, 0, 0)
    assert send(gateway(external=()), b"\0\0") == bytes([0, 0x80, 0, 3]) + bytes(8)


def test_what_pcp_made_is_not_its_to_change_nor_the_other_way_round() -> None:
    server = gateway("dual")
    send(server, map_request(HOST, 80, 9000))
    assert mapped(server, 80, 9000) == (2, 0, 0)
    assert mapped(server, 80, lifetime=0) == (2, 0, 0)
    mapped(server, 81, 9001)
    refused = send(server, map_request(HOST, 81, 9001))
    assert refused is not None
    assert refused[3] == 2
    assert [row["external_port"] for row in server.listing(0)] == [9000, 9001]


def test_a_restart_is_announced_by_the_external_address() -> None:
    server = gateway()
    server.restart(100.0)
    sent = [datagram for at in range(100, 300) for datagram in server.handle_timer(at)]
    assert len(sent) == 10
    assert sent[0].data == bytes([0, 0x80, 0, 0, 0, 0, 0, 0, 203, 0, 113, 77])
