# SPDX-License-Identifier: Apache-2.0
"""A PCP server's octets: every row of the receive table, the vectors, and that no bytes upset it."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igdpcp.model import Endpoint
from igdpcp.pcp.server import MapAsked, announcement, deleted, granted, receive, refused
from tests.vectors.pcp_vectors import VECTORS

HOST = IPv4Address("192.168.1.50")
WAN = IPv4Address("100.64.12.34")  # who asks in V1 to V6
EXTERNAL = IPv4Address("203.0.113.77")
CLIENT = bytes.fromhex("00 00 00 00 00 00 00 00 00 00 ff ff c0 a8 01 32")
CLIENT_TAIL = bytes.fromhex("00 00 00 00 00 00 ff ff c0 a8 01 32")
NONCE = bytes.fromhex("4a 1d 9f 27 c3 b8 5e 60 71 2f d4 a8")
ANY_IPV4 = bytes.fromhex("00 00 00 00 00 00 00 00 00 00 ff ff 00 00 00 00")
PREFER_FAILURE = bytes.fromhex("02 00 00 00")
PEER = bytes.fromhex("00 00 00 00 00 00 00 00 00 00 ff ff c6 33 64 09")
EPOCH = 90
EPOCH_OCTETS = bytes.fromhex("00 00 00 5a")
ERROR_LIFETIME = bytes.fromhex("00 00 07 08")

UNSUPP_VERSION, MALFORMED_REQUEST, UNSUPP_OPCODE, UNSUPP_OPTION, MALFORMED_OPTION = 1, 3, 4, 5, 6
UNSUPP_PROTOCOL, CANNOT_PROVIDE_EXTERNAL, ADDRESS_MISMATCH = 9, 11, 12


def head(opcode: int = 1, lifetime: int = 3600, client: bytes = CLIENT, version: int = 2) -> bytes:
    return bytes([version, opcode, 0, 0]) + lifetime.to_bytes(4, "big") + client


def mapping(
    options: bytes = b"", lifetime: int = 3600, protocol: int = 6, port: int = 80, external: int = 8080,
    address: bytes = ANY_IPV4, client: bytes = CLIENT,
) -> bytes:  # fmt: skip
    """A MAP request of 192.168.1.50 for its port 80 of TCP."""
    ports = port.to_bytes(2, "big") + external.to_bytes(2, "big")
    return head(1, lifetime, client) + NONCE + bytes([protocol, 0, 0, 0]) + ports + address + options


def option(code: int, data: bytes = b"") -> bytes:
    return bytes([code, 0]) + len(data).to_bytes(2, "big") + data + bytes(-len(data) % 4)


def remote(prefix_length: int, address: bytes = PEER) -> bytes:
    return option(3, bytes([0, prefix_length, 0, 0]) + address)


def error(request: bytes, result: int, reserved: bytes = bytes(12)) -> bytes:
    """The request with a response's header, field by field; its length is the request's."""
    first = bytes([2, request[1] | 0x80, 0, result]) + ERROR_LIFETIME + EPOCH_OCTETS + reserved
    return first + request[24:]


def asked(octets: bytes, source: IPv4Address = HOST) -> MapAsked:
    got = receive(octets, source, EPOCH)
    assert isinstance(got, MapAsked)
    return got


# The receive table of RFC 6887 section 8.2, row by row


@pytest.mark.parametrize("octets", [b"", b"\x02", b"\x00"])
def test_less_than_two_octets_meet_silence(octets: bytes) -> None:
    assert receive(octets, HOST, EPOCH) is None


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("opcode", [0x80, 0x81, 0xFF])
def test_a_response_meets_silence_in_any_version(version: int, opcode: int) -> None:
    assert receive(bytes([version, opcode]) + mapping()[2:], HOST, EPOCH) is None


def test_another_version_gets_ours_in_a_header() -> None:
    assert receive(head(0, 0, version=3), HOST, EPOCH) == bytes.fromhex(
        "02 80 00 01 00 00 07 08 00 00 00 5a 00 00 00 00 00 00 ff ff c0 a8 01 32"
    )


def test_another_version_is_not_read_any_further() -> None:
    request = b"\x01" + mapping(client=PEER, protocol=0)[1:]
    tail = bytes.fromhex("00 00 00 00 00 00 ff ff c6 33 64 09")
    assert receive(request, HOST, EPOCH) == error(request, UNSUPP_VERSION, tail)


def test_v13_natpmp_where_it_is_not_served_gets_a_pcp_header() -> None:
    assert receive(bytes.fromhex("00 00"), HOST, 90) == bytes.fromhex(
        "02 80 00 01 00 00 07 08 00 00 00 5a 00 00 00 00 00 00 00 00 00 00 00 00"
    )
    assert receive(VECTORS["V11 request"], HOST, 90) == VECTORS["V13 pcp answers natpmp"]


def test_a_natpmp_mapping_where_it_is_not_served_gets_a_pcp_header() -> None:
    assert receive(bytes.fromhex("00 02 00 00 00 50 1f 90 00 00 1c 20"), HOST, 90) == bytes.fromhex(
        "02 82 00 01 00 00 07 08 00 00 00 5a 00 00 00 00 00 00 00 00 00 00 00 00"
    )


@pytest.mark.parametrize("length", [2, 3, 4, 20, 23])
def test_less_than_a_header_meets_silence(length: int) -> None:
    assert receive(mapping()[:length], HOST, EPOCH) is None


@pytest.mark.parametrize("length", [24, 56])
def test_a_mapping_cut_short_is_malformed(length: int) -> None:
    request = mapping()[:length]
    assert receive(request, HOST, EPOCH) == error(request, MALFORMED_REQUEST, CLIENT_TAIL)


@pytest.mark.parametrize(("length", "answered"), [(25, 28), (61, 64), (62, 64), (63, 64)])
def test_a_length_that_is_no_multiple_of_four_is_malformed_and_filled_up(length: int, answered: int) -> None:
    request = mapping(PREFER_FAILURE)[:length]
    answer = receive(request, HOST, EPOCH)
    assert answer == error(request, MALFORMED_REQUEST, CLIENT_TAIL) + bytes(answered - length)


@pytest.mark.parametrize("length", [1101, 1104, 65507])
def test_more_than_1100_octets_are_malformed_and_cut(length: int) -> None:
    request = mapping() + option(200, bytes(length - 64))[: length - 60]
    answer = receive(request, HOST, EPOCH)
    assert answer == error(request, MALFORMED_REQUEST, CLIENT_TAIL)[:1100]


def test_1100_octets_are_a_request() -> None:
    request = mapping(option(200, bytes(1036)))
    assert len(request) == 1100
    assert asked(request).request.internal_port == 80


@pytest.mark.parametrize(
    "client",
    [
        bytes.fromhex("00 00 00 00 00 00 00 00 00 00 ff ff c0 a8 01 33"),
        bytes.fromhex("00 00 00 00 00 00 00 00 00 00 00 ff c0 a8 01 32"),
        bytes.fromhex("20 01 0d b8 00 00 00 00 00 00 ff ff c0 a8 01 32"),
        bytes(16),
    ],
    ids=["another host", "not mapped", "IPv6 with a mapped end", "none"],
)
@pytest.mark.parametrize("opcode", [0, 1, 2])
def test_a_client_that_is_not_the_sender_learns_of_the_nat_between(client: bytes, opcode: int) -> None:
    request = head(opcode, client=client) + mapping()[24:]
    assert receive(request, HOST, EPOCH) == error(request, ADDRESS_MISMATCH)


def test_v8_peer_is_not_served_and_comes_back_as_it_was() -> None:
    assert receive(VECTORS["V8 request"], HOST, 512) == bytes.fromhex(
        "02 82 00 04 00 00 07 08 00 00 02 00 00 00 00 00"
        "00 00 00 00 00 00 00 00 d2 c1 a0 5f 3b 6e 48 97"
        "7a 11 40 fe 06 00 00 00 c7 38 00 00 00 00 00 00"
        "00 00 00 00 00 00 ff ff 00 00 00 00 01 bb 00 00"
        "00 00 00 00 00 00 00 00 00 00 ff ff c6 33 64 14"
    )


@pytest.mark.parametrize("opcode", [2, 3, 4, 63, 96, 127])
@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff\xff"], ids=["bare", "no options"])
def test_other_opcodes_are_refused_and_their_payload_is_not_read(opcode: int, payload: bytes) -> None:
    request = head(opcode) + payload
    assert receive(request, HOST, EPOCH) == error(request, UNSUPP_OPCODE)


@pytest.mark.parametrize(
    "options",
    [
        b"\x02\x00\x00\x04",
        b"\xc8\x00\xff\xff" + bytes(8),
        PREFER_FAILURE + b"\x80\x00\x00\x05abcd",
        option(1, PEER[12:]),
        option(2, bytes(4)),
        option(3, bytes(16)),
    ],
    ids=["past the end", "far past the end", "the second one", "THIRD_PARTY", "PREFER_FAILURE", "FILTER"],
)
def test_options_that_do_not_fit_are_malformed(options: bytes) -> None:
    request = mapping(options)
    assert receive(request, HOST, EPOCH) == error(request, MALFORMED_OPTION, CLIENT_TAIL)


@pytest.mark.parametrize(
    ("options", "result"),
    [
        pytest.param(option(1, PEER), UNSUPP_OPTION, id="THIRD_PARTY"),
        pytest.param(option(1, CLIENT), MALFORMED_REQUEST, id="THIRD_PARTY of the sender"),
        pytest.param(option(1, PEER) * 2, MALFORMED_OPTION, id="THIRD_PARTY twice"),
        pytest.param(remote(128), UNSUPP_OPTION, id="FILTER"),
        pytest.param(remote(0), UNSUPP_OPTION, id="FILTER that clears"),
        pytest.param(remote(24), MALFORMED_OPTION, id="FILTER of IPv4 with an IPv4 prefix"),
        pytest.param(remote(129), MALFORMED_OPTION, id="FILTER longer than an address"),
        pytest.param(remote(24, b"\x20\x01" + bytes(14)), UNSUPP_OPTION, id="FILTER of IPv6"),
        pytest.param(PREFER_FAILURE * 2, MALFORMED_OPTION, id="PREFER_FAILURE twice"),
        pytest.param(option(128, b"a") * 2, MALFORMED_OPTION, id="DESCRIPTION twice"),
        pytest.param(option(128, b"\xff") + option(128, b"a"), MALFORMED_OPTION, id="DESCRIPTION twice, one not UTF-8"),
        pytest.param(option(0), UNSUPP_OPTION, id="0"),
        pytest.param(option(64, b"abc"), UNSUPP_OPTION, id="unknown and mandatory"),
        pytest.param(option(127), UNSUPP_OPTION, id="the last mandatory one"),
        pytest.param(option(200) + option(64), UNSUPP_OPTION, id="a mandatory one after an optional one"),
        pytest.param(option(64) + remote(24), UNSUPP_OPTION, id="unknown before malformed"),
        pytest.param(remote(24) + option(64), MALFORMED_OPTION, id="malformed before unknown"),
    ],
)
def test_options_that_are_not_served_are_refused_with_all_of_the_request(options: bytes, result: int) -> None:
    request = mapping(options)
    assert receive(request, HOST, EPOCH) == error(request, result)


@pytest.mark.parametrize(
    "request_octets",
    [
        pytest.param(mapping(PREFER_FAILURE, external=0), id="PREFER_FAILURE of any port"),
        pytest.param(mapping(PREFER_FAILURE, lifetime=0), id="PREFER_FAILURE in a deletion"),
        pytest.param(mapping(remote(128), lifetime=0), id="FILTER in a deletion"),
    ],
)
def test_options_that_make_no_sense_here_are_malformed(request_octets: bytes) -> None:
    assert receive(request_octets, HOST, EPOCH) == error(request_octets, MALFORMED_OPTION)


def test_an_ipv6_address_or_nothing_is_refused() -> None:
    request = mapping(PREFER_FAILURE, address=b"\x20\x01" + bytes(14))
    assert receive(request, HOST, EPOCH) == error(request, CANNOT_PROVIDE_EXTERNAL)


@pytest.mark.parametrize(
    ("protocol", "port", "lifetime", "result"),
    [
        (0, 80, 3600, MALFORMED_REQUEST),
        (0, 80, 0, MALFORMED_REQUEST),
        (0, 0, 3600, UNSUPP_PROTOCOL),
        (0, 0, 0, UNSUPP_PROTOCOL),
        (6, 0, 3600, UNSUPP_PROTOCOL),
        (6, 0, 0, UNSUPP_PROTOCOL),
        (17, 0, 0, UNSUPP_PROTOCOL),
        (1, 0, 3600, UNSUPP_PROTOCOL),
        (132, 80, 3600, UNSUPP_PROTOCOL),
        (132, 80, 0, UNSUPP_PROTOCOL),
        (255, 80, 3600, UNSUPP_PROTOCOL),
    ],
)
def test_all_ports_and_other_protocols_are_refused(protocol: int, port: int, lifetime: int, result: int) -> None:
    request = mapping(lifetime=lifetime, protocol=protocol, port=port)
    assert receive(request, HOST, EPOCH) == error(request, result)


@pytest.mark.parametrize(
    ("request_octets", "result"),
    [
        pytest.param(b"\x03" + mapping()[1:22], UNSUPP_VERSION, id="version before length"),
        pytest.param(mapping(client=PEER)[:56], MALFORMED_REQUEST, id="length before client"),
        pytest.param(head(2, client=PEER), ADDRESS_MISMATCH, id="client before opcode"),
        pytest.param(head(2) + b"\x02\x00\x00\x04", UNSUPP_OPCODE, id="opcode before options"),
        pytest.param(mapping(option(64) + b"\x02\x00\x00\x04"), MALFORMED_OPTION, id="structure before codes"),
        pytest.param(mapping(option(64), protocol=132), UNSUPP_OPTION, id="options before protocol"),
    ],
)
def test_the_first_row_that_applies_is_the_answer(request_octets: bytes, result: int) -> None:
    answer = receive(request_octets, HOST, EPOCH)
    assert isinstance(answer, bytes)
    assert answer[3] == result


# ANNOUNCE


def test_v1_an_announcement_asked_for() -> None:
    assert receive(VECTORS["V1 request"], WAN, 86461) == bytes.fromhex(
        "02 80 00 00 00 00 00 00 00 01 51 bd 00 00 00 00 00 00 00 00 00 00 00 00"
    )


def test_v1_an_announcement_that_nobody_asked_for() -> None:
    assert announcement(3) == bytes.fromhex("02 80 00 00 00 00 00 00 00 00 00 03 00 00 00 00 00 00 00 00 00 00 00 00")


def test_an_announcement_is_asked_for_with_any_lifetime_and_with_optional_options() -> None:
    request = head(0, lifetime=77) + option(129, bytes(14))
    assert receive(request, HOST, 3) == announcement(3)


@pytest.mark.parametrize("options", [PREFER_FAILURE, option(1, CLIENT), remote(128), remote(24), option(64)])
def test_options_of_mappings_and_mandatory_ones_are_refused_in_an_announcement(options: bytes) -> None:
    request = head(0) + options
    assert receive(request, HOST, EPOCH) == error(request, UNSUPP_OPTION)


def test_broken_options_are_malformed_in_an_announcement() -> None:
    request = head(0) + b"\xc8\x00\x00\x01"
    assert receive(request, HOST, EPOCH) == error(request, MALFORMED_OPTION, CLIENT_TAIL)


# MAP


def test_v2_a_mapping_granted() -> None:
    got = asked(VECTORS["V2 request"], WAN)
    request = got.request
    assert (request.protocol, request.internal_port, request.external_port) == (6, 8080, 8080)
    assert (request.nonce, request.lifetime, got.prefer_failure, got.description) == (NONCE, 3600, True, "")
    assert granted(got, 86462, 3600, Endpoint(EXTERNAL, 8080)) == bytes.fromhex(
        "02 81 00 00 00 00 0e 10 00 01 51 be 00 00 00 00"
        "00 00 00 00 00 00 00 00 4a 1d 9f 27 c3 b8 5e 60"
        "71 2f d4 a8 06 00 00 00 1f 90 1f 90 00 00 00 00"
        "00 00 00 00 00 00 ff ff cb 00 71 4d 02 00 00 00"
    )


def test_iwf_013_a_granted_mapping_carries_the_nonce_of_the_host_that_asked() -> None:
    others = bytes.fromhex("09 e8 3c 71 5a b2 d4 f6 10 77 88 cd")
    answers = [
        granted(asked(request), EPOCH, 1800, Endpoint(EXTERNAL, 6881))
        for request in (mapping(external=0), mapping(external=0).replace(NONCE, others))
    ]
    assert answers[0] == bytes.fromhex(
        "02 81 00 00 00 00 07 08 00 00 00 5a 00 00 00 00"
        "00 00 00 00 00 00 00 00 4a 1d 9f 27 c3 b8 5e 60"
        "71 2f d4 a8 06 00 00 00 00 50 1a e1 00 00 00 00"
        "00 00 00 00 00 00 ff ff cb 00 71 4d"
    )
    assert answers[1] == answers[0].replace(NONCE, others)


def test_v3_a_mapping_refused() -> None:
    got = asked(VECTORS["V2 request"], WAN)
    assert refused(got, 86462, 11, 1800) == bytes.fromhex(
        "02 81 00 0b 00 00 07 08 00 01 51 be 00 00 00 00"
        "00 00 00 00 00 00 00 00 4a 1d 9f 27 c3 b8 5e 60"
        "71 2f d4 a8 06 00 00 00 1f 90 1f 90 00 00 00 00"
        "00 00 00 00 00 00 ff ff 00 00 00 00 02 00 00 00"
    )


def test_a_refusal_has_its_lifetime_and_all_that_was_asked_octet_by_octet() -> None:
    options = b"\xc8\x77\x00\x01xyz!" + option(128, b"web\x00")  # reserved bits and padding are not zero
    got = asked(mapping(options))
    assert refused(got, EPOCH, 8, 30) == (
        bytes.fromhex("02 81 00 08 00 00 00 1e 00 00 00 5a 00 00 00 00 00 00 00 00 00 00 00 00") + mapping(options)[24:]
    )


def test_v4_a_mapping_for_another_host_is_refused() -> None:
    request = VECTORS["V4 request"]
    assert receive(request, WAN, EPOCH) == error(request, UNSUPP_OPTION)


def test_v5_a_deletion() -> None:
    got = asked(VECTORS["V5 request"], WAN)
    assert (got.request.lifetime, got.request.internal_port, got.prefer_failure) == (0, 8080, False)
    assert deleted(got, 86700) == bytes.fromhex(
        "02 81 00 00 00 00 00 00 00 01 52 ac 00 00 00 00"
        "00 00 00 00 00 00 00 00 4a 1d 9f 27 c3 b8 5e 60"
        "71 2f d4 a8 06 00 00 00 1f 90 00 00 00 00 00 00"
        "00 00 00 00 00 00 00 00 00 00 00 00"
    )


def test_a_deletion_gives_the_suggestion_back_and_processes_no_option() -> None:
    got = asked(mapping(option(128, b"web"), lifetime=0, address=PEER))
    assert deleted(got, EPOCH) == (
        bytes.fromhex("02 81 00 00 00 00 00 00 00 00 00 5a 00 00 00 00 00 00 00 00 00 00 00 00")
        + NONCE
        + bytes.fromhex("06 00 00 00 00 50 1f 90")
        + PEER
    )


def test_v6_the_longest_lifetime_is_asked_for() -> None:
    got = asked(VECTORS["V6 request"], WAN)
    assert (got.request.protocol, got.request.lifetime) == (17, 4294967295)
    assert granted(got, 86800, 86400, Endpoint(EXTERNAL, 5060)) == VECTORS["V6 response"]


def test_v9_a_set_of_ports_gets_its_first() -> None:
    got = asked(VECTORS["V9 request"], WAN)
    answer = granted(got, 600, 3600, Endpoint(EXTERNAL, 37056))
    assert answer == VECTORS["V9 response"][:60]


@pytest.mark.parametrize(
    ("address", "options", "wanted"),
    [
        (PEER, PREFER_FAILURE, IPv4Address("198.51.100.9")),
        (PEER, b"", None),
        (ANY_IPV4, PREFER_FAILURE, None),
        (bytes(16), PREFER_FAILURE, None),
    ],
)
def test_the_address_that_is_suggested_counts_with_prefer_failure(
    address: bytes, options: bytes, wanted: IPv4Address | None
) -> None:
    assert asked(mapping(options, address=address)).only_address == wanted


def test_an_ipv6_address_that_is_only_suggested_does_not_hinder() -> None:
    got = asked(mapping(address=b"\x20\x01" + bytes(14)))
    assert granted(got, EPOCH, 60, Endpoint(EXTERNAL, 8080))[44:60] == bytes(10) + b"\xff\xff\xcb\x00\x71\x4d"


def test_options_that_may_be_ignored_are_absent_from_a_success() -> None:
    got = asked(mapping(option(200, b"abc") + PREFER_FAILURE + option(129, bytes(12))))
    assert granted(got, EPOCH, 60, Endpoint(EXTERNAL, 8080))[60:] == PREFER_FAILURE


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        pytest.param(b"web server", "web server", id="plain"),
        pytest.param(b"", "", id="none"),
        pytest.param("µTorrent".encode(), "µTorrent", id="not ASCII"),
        pytest.param(b"a" * 1016, "a" * 128, id="too long"),
        pytest.param(b"a" * 127 + "µ".encode(), "a" * 127, id="cut between characters"),
        pytest.param(b"a\x00b\nc\x1b[1m\x7f\xe2\x80\xae", "abc[1m", id="control characters"),
    ],
)
def test_a_description_is_taken_and_comes_back_as_it_is_stored(text: bytes, stored: str) -> None:
    got = asked(mapping(option(128, text) + PREFER_FAILURE))
    assert got.description == stored
    kept = option(128, stored.encode())
    assert granted(got, EPOCH, 60, Endpoint(EXTERNAL, 8080))[60:] == kept + PREFER_FAILURE


def test_a_description_that_is_not_utf_8_is_ignored() -> None:
    got = asked(mapping(option(128, b"\xff\xfe")))
    assert got.description == ""
    assert len(granted(got, EPOCH, 60, Endpoint(EXTERNAL, 8080))) == 60


# Any bytes

OCTET = st.integers(0, 0xFF)


@st.composite
def damaged_requests(draw: st.DrawFn) -> bytes:
    """A request of this host with some octets changed and its end moved: most of it still looks like PCP."""
    whole = [mapping(), mapping(PREFER_FAILURE + option(128, b"web")), mapping(remote(128)), head(0), head(2)]
    octets = bytearray(draw(st.sampled_from(whole)))
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(octets) - 1), OCTET), max_size=4)):
        octets[at] = value
    octets += draw(st.binary(max_size=12))
    return bytes(octets[: draw(st.integers(0, len(octets)))]) if draw(st.booleans()) else bytes(octets)


@given(st.binary(max_size=80) | damaged_requests(), st.integers(0, 0xFFFFFFFF))
def test_any_bytes_are_a_request_or_get_a_response_of_their_own_size(octets: bytes, epoch: int) -> None:
    got = receive(octets, HOST, epoch)
    if got is None:
        assert len(octets) < 24 or octets[1] >= 0x80
        return
    if isinstance(got, MapAsked):
        assert (got.request.client_address, got.request.protocol in (6, 17)) == (HOST, True)
        assert 1 <= got.request.internal_port <= 65535
        assert len(got.description.encode()) <= 128
        answers = [
            granted(got, epoch, 7200, Endpoint(EXTERNAL, 8080)), deleted(got, epoch), refused(got, epoch, 8, 30)
        ]  # fmt: skip
    else:
        answers = [got]
    for answer in answers:
        assert (answer[0], answer[1], answer[2]) == (2, octets[1] | 0x80, 0)
        assert answer[8:12] == epoch.to_bytes(4, "big")
        assert len(answer) % 4 == 0
        assert len(answer) <= max(24, len(octets) + 3)
