# SPDX-License-Identifier: Apache-2.0
"""PCP messages: the vectors both ways, and what is not a message."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from igdpcp.errors import MalformedPcp
from igdpcp.model import Protocol
from igdpcp.pcp.message import (
    AnnounceRequest,
    AnnounceResponse,
    MapRequest,
    MapResponse,
    OtherResponse,
    ResultCode,
    decode_request,
    decode_response,
    encode,
    result_name,
)
from igdpcp.pcp.natpmp import is_natpmp_refusal
from igdpcp.pcp.nonce import derive
from igdpcp.pcp.options import (
    ANY_IPV4,
    ANY_IPV6,
    Description,
    Filter,
    PreferFailure,
    ThirdParty,
    Unknown,
    describe,
    unpack_address,
)
from tests.vectors.pcp_vectors import VECTORS

WAN = IPv4Address("100.64.12.34")
HOST = IPv4Address("192.168.1.50")
EXTERNAL = IPv4Address("203.0.113.77")
B4 = IPv6Address("2001:db8:b4::2")
NONCE = bytes.fromhex("4a1d9f27c3b85e60712fd4a8")
NONCE_V4 = bytes.fromhex("09e83c715ab2d4f6107788cd")
NONCE_V7 = bytes.fromhex("d2c1a05f3b6e48977a1140fe")
V4_OPTIONS = (
    ThirdParty(HOST),
    Filter(0, ANY_IPV4),
    Filter(128, IPv4Address("198.51.100.9")),
    Description("µTorrent"),
)
V7_OPTIONS = (ThirdParty(HOST), PreferFailure())

REQUESTS = {
    "V1 request": AnnounceRequest(WAN),
    "V2 request": MapRequest(WAN, NONCE, 6, 8080, 3600, 8080, ANY_IPV4, (PreferFailure(),)),
    "V4 request": MapRequest(WAN, NONCE_V4, 17, 6881, 604800, 6881, ANY_IPV4, V4_OPTIONS),
    "V5 request": MapRequest(WAN, NONCE, 6, 8080, 0, 0, ANY_IPV6),
    "V6 request": MapRequest(WAN, NONCE, 17, 5060, 4294967295, 5060, ANY_IPV4, (PreferFailure(),)),
    "V7 request": MapRequest(B4, NONCE_V7, 6, 22, 7200, 2222, ANY_IPV4, V7_OPTIONS),
    "V9 request": MapRequest(
        WAN, NONCE_V7, 17, 50000, 3600, 0, ANY_IPV4, (Unknown(130, bytes.fromhex("0064c35000")),)
    ),
    "V10 request": AnnounceRequest(B4, (Unknown(129, b"\x00\x0c" + bytes(12)),)),
}  # fmt: skip
RESPONSES = {
    "V1 response": AnnounceResponse(0, 86461),
    "V1 unsolicited response": AnnounceResponse(0, 3),
    "V2 success response": MapResponse(0, 3600, 86462, NONCE, 6, 8080, 8080, EXTERNAL, (PreferFailure(),)),
    "V3 error response": MapResponse(11, 1800, 86462, NONCE, 6, 8080, 8080, ANY_IPV4, (PreferFailure(),)),
    "V4 success response": MapResponse(0, 86400, 120003, NONCE_V4, 17, 6881, 6598, EXTERNAL, V4_OPTIONS),
    "V5 response": MapResponse(0, 0, 86700, NONCE, 6, 8080, 0, ANY_IPV6),
    "V6 response": MapResponse(0, 86400, 86800, NONCE, 17, 5060, 5060, EXTERNAL, (PreferFailure(),)),
    "V7 success response": MapResponse(0, 7200, 512, NONCE_V7, 6, 22, 2222, EXTERNAL, V7_OPTIONS),
    "V9 response": MapResponse(
        0, 3600, 600, NONCE_V7, 17, 50000, 37056, EXTERNAL, (Unknown(130, bytes.fromhex("0020c35000")),)
    ),
    "V10 response": AnnounceResponse(0, 700, 0, (Unknown(129, bytes.fromhex("000c0064ff9b0000000000000000")),)),
    "V13 pcp answers natpmp": AnnounceResponse(1, 90, 1800),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_vector_reads_and_writes(name: str) -> None:
    assert decode_request(VECTORS[name]) == REQUESTS[name]
    assert encode(REQUESTS[name]) == VECTORS[name]


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_vector_reads_and_writes(name: str) -> None:
    assert decode_response(VECTORS[name]) == RESPONSES[name]
    assert encode(RESPONSES[name]) == VECTORS[name]


def test_peer_is_not_served_and_its_response_is_only_a_header() -> None:
    with pytest.raises(MalformedPcp):
        decode_request(VECTORS["V8 request"])
    assert decode_response(VECTORS["V8 response"]) == OtherResponse(2, 2, 0, 300, 512)


@pytest.mark.parametrize("name", ["V13 natpmp refusal as drawn", "V13 natpmp refusal as sent"])
def test_both_forms_of_the_natpmp_refusal_are_recognised(name: str) -> None:
    assert is_natpmp_refusal(VECTORS[name])
    assert is_natpmp_refusal(VECTORS[name][:4])
    assert not is_natpmp_refusal(VECTORS[name][:3])


@pytest.mark.parametrize("name", ["V1 response", "V2 success response", "V13 pcp answers natpmp"])
def test_a_pcp_response_is_no_natpmp_refusal(name: str) -> None:
    assert not is_natpmp_refusal(VECTORS[name])


@pytest.mark.parametrize("length", [0, 3, 23, 26, 62])
def test_a_response_of_a_length_that_pcp_has_not_is_malformed(length: int) -> None:
    with pytest.raises(MalformedPcp):
        decode_response(VECTORS["V2 success response"][:length])


def test_a_response_of_more_than_1100_octets_is_malformed() -> None:
    with pytest.raises(MalformedPcp):
        decode_response(VECTORS["V2 success response"] + bytes(1104 - 64))


@pytest.mark.parametrize(
    "option", ["0100000400000000", "01000010", "020000040000000000", "0300000400000000", "4d00ffff"]
)
def test_an_option_whose_length_is_wrong_is_malformed(option: str) -> None:
    octets = VECTORS["V5 response"] + bytes.fromhex(option)
    with pytest.raises(MalformedPcp):
        decode_response(octets)


def test_padding_and_reserved_octets_do_not_matter() -> None:
    dirty = bytearray(VECTORS["V4 success response"])
    dirty[2], dirty[12:24], dirty[37:40], dirty[-3:] = 9, b"x" * 12, b"yyy", b"zzz"
    assert decode_response(bytes(dirty)) == RESPONSES["V4 success response"]


def test_an_unknown_option_and_an_unknown_result_come_through_as_they_are() -> None:
    octets = bytearray(VECTORS["V5 response"] + bytes.fromhex("4d00000161000000"))
    octets[3] = 99
    response = decode_response(bytes(octets))
    assert isinstance(response, MapResponse)
    assert (response.result, response.options) == (99, (Unknown(77, b"a"),))
    assert result_name(99) == "99"


def test_result_codes_have_the_names_of_the_standard() -> None:
    assert [result_name(number) for number in range(28)] == [
        "SUCCESS", "UNSUPP_VERSION", "NOT_AUTHORIZED", "MALFORMED_REQUEST", "UNSUPP_OPCODE", "UNSUPP_OPTION",
        "MALFORMED_OPTION", "NETWORK_FAILURE", "NO_RESOURCES", "UNSUPP_PROTOCOL", "USER_EX_QUOTA",
        "CANNOT_PROVIDE_EXTERNAL", "ADDRESS_MISMATCH", "EXCESSIVE_REMOTE_PEERS", "INITIATION",
        "AUTHENTICATION_REQUIRED", "AUTHENTICATION_FAILED", "AUTHENTICATION_SUCCEEDED", "AUTHORIZATION_FAILED",
        "SESSION_TERMINATED", "UNKNOWN_SESSION_ID", "DOWNGRADE_ATTACK_DETECTED", "AUTHENTICATION_REQUEST",
        "AUTHENTICATION_REPLY", "THIRD_PARTY_ID_UNKNOWN", "THIRD_PARTY_MISSING_OPTION",
        "UNSUPP_THIRD_PARTY_ID_LENGTH", "27",
    ]  # fmt: skip


def test_an_error_without_its_opcode_data_is_only_a_header() -> None:
    octets = bytes.fromhex("0281000400000708 00000064") + bytes(12)
    assert decode_response(octets) == OtherResponse(2, 1, ResultCode.UNSUPP_OPCODE, 1800, 100)


def test_another_version_is_read_only_to_learn_that_ours_is_refused() -> None:
    refusal = bytes.fromhex("0181000100000708 00000064") + bytes(12)
    assert decode_response(refusal) == OtherResponse(1, 1, ResultCode.UNSUPP_VERSION, 1800, 100)
    with pytest.raises(MalformedPcp):
        decode_response(b"\x01" + VECTORS["V2 success response"][1:])


def test_all_twelve_leading_octets_decide_whether_an_address_is_ipv4() -> None:
    assert unpack_address(bytes(10) + b"\xff\xff\x01\x02\x03\x04") == IPv4Address("1.2.3.4")
    for lead in (bytes(10) + b"\x00\xff", b"\x01" + bytes(9) + b"\xff\xff"):
        assert unpack_address(lead + b"\x01\x02\x03\x04").version == 6


def test_a_message_longer_than_1100_octets_is_not_made() -> None:
    request = MapRequest(WAN, NONCE, 6, 80, 60, options=(Unknown(200, bytes(1036)),))
    assert len(encode(request)) == 1100
    with pytest.raises(ValueError, match="1104"):
        encode(MapRequest(WAN, NONCE, 6, 80, 60, options=(Unknown(200, bytes(1040)),)))


@pytest.mark.parametrize(
    ("text", "kept"), [("a" * 130, "a" * 128), ("a" * 127 + "µ", "a" * 127), ("µ" * 65, "µ" * 64), ("\ud800x", "?x")]
)
def test_a_description_is_cut_between_characters_at_128_octets(text: str, kept: str) -> None:
    assert describe(text) == Description(kept)


def test_nonces_differ_by_server_and_tuple_and_nothing_else() -> None:
    base = derive(b"s", "wan", Protocol.TCP, WAN, 80)
    assert len(base) == 12
    assert derive(b"s", "wan", Protocol.TCP, WAN, 80) == base
    others = [
        derive(b"t", "wan", Protocol.TCP, WAN, 80),
        derive(b"s", "wan2", Protocol.TCP, WAN, 80),
        derive(b"s", "wan", Protocol.UDP, WAN, 80),
        derive(b"s", "wan", Protocol.TCP, HOST, 80),
        derive(b"s", "wan", Protocol.TCP, WAN, 81),
    ]
    assert len({base, *others}) == 6
