# SPDX-License-Identifier: Apache-2.0
"""A NAT-PMP server's octets: the vectors, what is refused or dropped, and that no bytes upset it."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igdpcp.model import Protocol
from igdpcp.pcp.natpmp_server import AddressAsked, PortAsked, address, granted, receive, refused, result_of
from tests.vectors.pcp_vectors import VECTORS

EXTERNAL = IPv4Address("203.0.113.77")
EPOCH = 90


def test_v11_the_external_address() -> None:
    assert receive(bytes.fromhex("00 00"), EPOCH) == AddressAsked()
    assert address(4711, EXTERNAL) == bytes.fromhex("00 80 00 00 00 00 12 67 cb 00 71 4d")


def test_v11_there_is_no_external_address() -> None:
    assert address(4711, None) == bytes.fromhex("00 80 00 03 00 00 12 67 00 00 00 00")


def test_v12_a_port_of_tcp_is_mapped() -> None:
    got = receive(bytes.fromhex("00 02 00 00 00 50 1f 90 00 00 1c 20"), EPOCH)
    assert got == PortAsked(Protocol.TCP, internal_port=80, external_port=8080, lifetime=7200)
    assert granted(got, 4712, 8080, 7200) == bytes.fromhex("00 82 00 00 00 00 12 68 00 50 1f 90 00 00 1c 20")


def test_a_port_of_udp_is_mapped_to_another_one_for_less_time() -> None:
    got = receive(bytes.fromhex("00 01 00 00 1a e1 00 00 ff ff ff ff"), EPOCH)
    assert got == PortAsked(Protocol.UDP, internal_port=6881, external_port=0, lifetime=4294967295)
    assert granted(got, 1, 6882, 86400) == bytes.fromhex("00 81 00 00 00 00 00 01 1a e1 1a e2 00 01 51 80")


def test_v12_a_port_is_deleted() -> None:
    got = receive(bytes.fromhex("00 02 00 00 00 50 00 00 00 00 00 00"), EPOCH)
    assert got == PortAsked(Protocol.TCP, internal_port=80, external_port=0, lifetime=0)
    assert granted(got, 4800, 0, 0) == bytes.fromhex("00 82 00 00 00 00 12 c0 00 50 00 00 00 00 00 00")


@pytest.mark.parametrize(("opcode", "protocol"), [(1, Protocol.UDP), (2, Protocol.TCP)])
def test_all_ports_of_a_protocol_are_deleted(opcode: int, protocol: Protocol) -> None:
    assert receive(bytes([0, opcode]) + bytes(10), EPOCH) == PortAsked(protocol, 0, 0, 0)


@pytest.mark.parametrize("opcode", [1, 2])
def test_port_0_is_not_mapped(opcode: int) -> None:
    request = bytes([0, opcode]) + bytes.fromhex("00 00 00 00 1f 90 00 00 1c 20")
    answer = bytes([0, 128 + opcode]) + bytes.fromhex("00 02 00 00 00 5a 00 00 00 00 00 00 00 00")
    assert receive(request, EPOCH) == answer


def test_the_reserved_bits_of_a_request_are_ignored() -> None:
    plain, reserved = (bytes.fromhex(f"00 02 {bits} 00 50 1f 90 00 00 1c 20") for bits in ("00 00", "ff ff"))
    assert receive(reserved, EPOCH) == receive(plain, EPOCH)


def test_what_follows_a_request_is_ignored() -> None:
    for name in ("V11 request", "V12 map request"):
        assert receive(VECTORS[name] + b"abc", EPOCH) == receive(VECTORS[name], EPOCH)


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.TCP])
def test_a_refusal_names_the_internal_port_and_nothing_else(protocol: Protocol) -> None:
    opcode = "81" if protocol is Protocol.UDP else "82"
    answer = refused(PortAsked(protocol, 80, 8080, 7200), EPOCH, 4)
    assert answer == bytes.fromhex(f"00 {opcode} 00 04 00 00 00 5a 00 50 00 00 00 00 00 00")


@pytest.mark.parametrize("octets", [b"", b"\x00", b"\x02"])
def test_less_than_two_octets_meet_silence(octets: bytes) -> None:
    assert receive(octets, EPOCH) is None


@pytest.mark.parametrize("octets", [bytes.fromhex("00 01"), bytes.fromhex("00 02 00 00 00 50 1f 90 00 00 1c")])
def test_a_mapping_cut_short_meets_silence(octets: bytes) -> None:
    assert receive(octets, EPOCH) is None


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("opcode", [128, 129, 130, 255])
def test_a_response_meets_silence_in_any_version(version: int, opcode: int) -> None:
    assert receive(bytes([version, opcode]) + bytes(22), EPOCH) is None


@pytest.mark.parametrize("name", ["V1 request", "V2 request", "V8 request"])
def test_v13_pcp_where_it_is_not_served_is_refused_as_rfc_6886_draws_it(name: str) -> None:
    assert receive(VECTORS[name], 90) == bytes.fromhex("00 00 00 01 00 00 00 5a")


@pytest.mark.parametrize(
    ("request_octets", "answer"),
    [
        ("00 03", "00 83 00 05"),
        ("00 03 07", "00 83 00 05"),
        ("00 7f 12 34 56 78 9a", "00 ff 00 05 56 78 9a"),
        ("00 04 00 00 00 50 1f 90 00 00 1c 20", "00 84 00 05 00 50 1f 90 00 00 1c 20"),
    ],
)
def test_another_opcode_comes_back_as_not_supported(request_octets: str, answer: str) -> None:
    assert receive(bytes.fromhex(request_octets), EPOCH) == bytes.fromhex(answer)


def test_another_opcode_does_not_come_back_with_more_than_a_pcp_message_has() -> None:
    assert receive(b"\x00\x03" + b"a" * 65505, EPOCH) == b"\x00\x83\x00\x05" + b"a" * 1096


@pytest.mark.parametrize(
    ("of_natpmp", "of_pcp"),
    [
        (0, [0]),
        (1, [1]),
        (2, [2, 3, 5, 6, 9, 12, 13]),
        (3, [7]),
        (4, [8, 10, 11]),
        (5, [4]),
        (2, [14, 24, 26, 99, 255]),
    ],
)
def test_every_result_of_pcp_has_one_of_natpmp(of_natpmp: int, of_pcp: list[int]) -> None:
    assert {result_of(result) for result in of_pcp} == {of_natpmp}


@given(st.binary(max_size=40) | st.builds(lambda head, rest: bytes(head) + rest,
    st.tuples(st.just(0), st.integers(0, 4)), st.binary(max_size=14)), st.integers(0, 0xFFFFFFFF))  # fmt: skip
def test_any_bytes_are_a_request_or_get_a_response_that_is_not_much_longer(octets: bytes, epoch: int) -> None:
    got = receive(octets, epoch)
    if got is None:
        assert len(octets) < 12 or octets[1] >= 0x80
        return
    match got:
        case AddressAsked():
            got = address(epoch, EXTERNAL)
        case PortAsked():
            assert got.internal_port or not got.lifetime
            got = granted(got, epoch, 65535, got.lifetime)
    assert got[0] == 0
    assert len(got) <= max(16, len(octets))
