# SPDX-License-Identifier: Apache-2.0
"""The parser's robustness list, by its numbers: 1 to 21 are about requests, 22 to 33 about what a client receives.

The simulated carrier has a server's half of 1 to 21. Here is a client's: it drops a response with the same fault, and
sends no request that has one.
"""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from igdpcp.errors import MalformedPcp
from igdpcp.model import Protocol
from igdpcp.pcp.client import (
    MappingGranted,
    MappingRefused,
    MappingReleased,
    ServerState,
    ServerStateChanged,
    StateLossDetected,
)
from igdpcp.pcp.message import ResultCode, decode_request, decode_response
from igdpcp.pcp.options import unpack_address
from igdpcp.pcp.refusals import REMEMBERED_REFUSALS, Refusals
from tests.support.pcp_script import (
    FILTER,
    OWN,
    PREFER_FAILURE,
    SERVER,
    THIRD_PARTY,
    Dialogue,
    answer,
    mapped,
    wanted_mapping,
)
from tests.vectors.pcp_vectors import VECTORS

HOST = IPv4Address("192.168.1.50")
PEER = IPv4Address("198.51.100.9")
REQUEST, RESPONSE = VECTORS["V2 request"], VECTORS["V2 success response"]
NONCE = REQUEST[24:36]
ACTIVE = ServerStateChanged(ServerState.ACTIVE, "answers")


def option(code: int, data: bytes = b"", padding: bytes = b"") -> bytes:
    return bytes([code, 0]) + len(data).to_bytes(2, "big") + data + (padding or bytes(-len(data) % 4))


def waiting() -> Dialogue:
    """A client that asked for V2 and has no answer yet."""
    talk = Dialogue()
    talk.server.silent = True
    talk.want(nonce=NONCE)
    assert talk.sent[0].octets == REQUEST
    return talk


# Cases 1 to 21, as far as a client meets them


@pytest.mark.parametrize(
    "request_octets",
    [
        pytest.param(b"", id="case 1, no octet"),
        pytest.param(b"\x02", id="case 1, one octet"),
        pytest.param(b"\x02\x81" + REQUEST[2:], id="case 2"),
        pytest.param(b"\x03" + VECTORS["V1 request"][1:], id="case 3"),
        pytest.param(REQUEST[:23], id="case 4"),
        pytest.param(REQUEST[:56], id="case 5"),
        pytest.param(REQUEST[:62], id="case 6"),
        pytest.param(REQUEST + bytes(1104 - len(REQUEST)), id="case 7"),
        pytest.param(REQUEST[:60] + b"\x02\x00\x00\x04", id="case 9"),
        pytest.param(REQUEST[:60] + option(THIRD_PARTY, bytes(4)), id="case 10"),
    ],
)
def test_cases_1_to_10_are_no_request_to_the_codec(request_octets: bytes) -> None:
    with pytest.raises(MalformedPcp):
        decode_request(request_octets)


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(b"", id="case 1, no octet"),
        pytest.param(b"\x02", id="case 1, one octet"),
        pytest.param(b"\x02\x01" + RESPONSE[2:], id="case 2, a request"),
        pytest.param(b"\x03" + RESPONSE[1:], id="case 3"),
        pytest.param(RESPONSE[:23], id="case 4"),
        pytest.param(RESPONSE[:56], id="case 5"),
        pytest.param(RESPONSE[:62], id="case 6"),
        pytest.param(RESPONSE + bytes(1104 - len(RESPONSE)), id="case 7"),
        pytest.param(RESPONSE[:60] + b"\x02\x00\x00\x04", id="case 9"),
        pytest.param(RESPONSE[:60] + option(THIRD_PARTY, bytes(4)), id="case 10"),
    ],
)
def test_cases_1_to_10_in_a_response_change_nothing(response: bytes) -> None:
    talk = waiting()
    talk.deliver(response)
    assert talk.events == []
    talk.deliver(RESPONSE)
    assert talk.client.grant("web") is not None


def test_cases_8_11_12_and_18_are_never_sent() -> None:
    talk = Dialogue()
    talk.want()
    talk.want("host", internal_address=HOST, protocol=Protocol.UDP)
    assert [sent.codes.count(THIRD_PARTY) for sent in talk.sent] == [0, 1]
    assert {sent.octets[8:24] for sent in talk.sent} == {mapped(str(OWN))}
    assert [sent.octets[36] for sent in talk.sent] == [6, 17]


def test_cases_13_and_14_are_read_by_the_codec_and_ignored_by_the_client() -> None:
    for code in (64, 200):
        talk = waiting()
        talk.deliver(RESPONSE + option(code, b"abc"))
        assert talk.client.grant("web") is not None


def test_cases_15_to_17_are_never_sent() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(PEER,), external_port=0)
    assert PREFER_FAILURE not in talk.sent[0].codes
    assert [data[1] for code, data in talk.sent[0].options if code == FILTER] == [0, 128]
    talk.run(1)
    talk.drop()
    assert (talk.sent[-1].lifetime, talk.sent[-1].codes) == (0, [])


def test_case_19_another_nonce_is_refused_for_what_remains_and_not_asked_for_again_before() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (ResultCode.NOT_AUTHORIZED, 700)}
    talk.want()
    talk.run(690)
    assert (len(talk.sent), talk.of(MappingRefused)) == (1, [MappingRefused("web", ResultCode.NOT_AUTHORIZED, 700)])


def test_case_20_a_delete_of_what_the_server_does_not_know_is_done() -> None:
    talk = Dialogue()
    talk.want(nonce=NONCE)
    talk.run(1)
    talk.server.mappings.clear()
    talk.drop()
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]


def test_case_21_padding_that_is_not_zero_is_padding() -> None:
    talk = waiting()
    talk.deliver(RESPONSE + option(128, b"x", padding=b"abc"))
    assert talk.client.grant("web") is not None


# Cases 22 to 33


@pytest.mark.parametrize("source", [(OWN, 5351), (SERVER[0], 5350), (IPv4Address("192.0.2.2"), 5351)])
def test_case_22_a_response_from_another_address_or_port_is_dropped(source: tuple[IPv4Address, int]) -> None:
    talk = waiting()
    talk.deliver(RESPONSE, source)
    assert (talk.events, talk.client.counters["wrong_source"]) == ([], 1)
    talk.deliver(RESPONSE, ("::ffff:192.0.2.1", 5351))
    assert talk.client.grant("web") is not None


@pytest.mark.parametrize(
    ("octets", "counter"),
    [(bytes(3), "short"), (bytes(23), "short"), (RESPONSE[:26], "malformed"), (bytes(1104), "long")],
)
def test_case_23_lengths_that_pcp_has_not_are_dropped(octets: bytes, counter: str) -> None:
    talk = waiting()
    talk.deliver(octets)
    assert (talk.events, talk.client.counters[counter]) == ([], 1)


@pytest.mark.parametrize("field", ["nonce", "protocol", "internal port", "third party"])
def test_case_24_a_response_that_does_not_match_is_dropped(field: str) -> None:
    talk = waiting()
    bad = bytearray(RESPONSE)
    match field:
        case "nonce":
            bad[24] ^= 1
        case "protocol":
            bad[36] = 17
        case "internal port":
            bad[41] ^= 1
        case "third party":
            bad += option(THIRD_PARTY, mapped(str(HOST)))
    talk.deliver(bytes(bad))
    assert (talk.events, talk.client.counters["wrong_nonce"] + talk.client.counters["no_match"]) == ([], 1)


def test_iwf_090_case_25_another_port_than_the_one_preferred_is_not_taken_for_the_answer() -> None:
    talk = Dialogue()
    talk.server.port = 8081
    talk.want()
    talk.run(1)
    assert PREFER_FAILURE in talk.sent[0].codes
    assert (talk.of(MappingGranted), talk.client.grant("web")) == ([], None)
    assert [sent.lifetime for sent in talk.sent] == [3600, 0]


@pytest.mark.parametrize("data", [b"", b"a", b"abcd", bytes(1000)], ids=lambda data: f"{len(data)} octets")
@pytest.mark.parametrize("first", [True, False])
def test_case_26_an_unknown_option_is_ignored_and_the_response_used(data: bytes, first: bool) -> None:
    talk = waiting()
    unknown = option(77, data)
    talk.deliver(RESPONSE[:60] + unknown + RESPONSE[60:] if first else RESPONSE + unknown)
    assert [event.external_port for event in talk.of(MappingGranted)] == [8080]  # type: ignore[attr-defined]


def test_case_27_epoch_0_after_86461_recreates_what_was_there() -> None:
    talk = Dialogue()
    talk.server.booted = talk.now - 86461
    talk.want(lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.deliver(answer(VECTORS["V1 request"], epoch=0))
    talk.run(6)
    assert talk.of(StateLossDetected) == [StateLossDetected(0)]
    assert len(talk.server.mappings) == 1


def test_iwf_188_195_case_28_an_announcement_of_somebody_else_changes_nothing() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.deliver(VECTORS["V1 unsolicited response"], (IPv4Address("192.0.2.2"), 5351))
    talk.run(10)
    assert (len(talk.sent), talk.of(StateLossDetected)) == (1, [])


@pytest.mark.parametrize("name", ["V13 natpmp refusal as drawn", "V13 natpmp refusal as sent"])
def test_case_29_both_forms_of_the_natpmp_refusal_are_understood(name: str) -> None:
    talk = waiting()
    talk.deliver(VECTORS[name])
    assert talk.of(ServerStateChanged) == [ServerStateChanged(ServerState.LOST, "answers with NAT-PMP only")]


@pytest.mark.parametrize("result", [ResultCode.NO_RESOURCES, ResultCode.USER_EX_QUOTA, ResultCode.ADDRESS_MISMATCH])
def test_iwf_173_case_30_an_error_lifetime_of_0_makes_no_storm(result: int) -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: [
        answer(sent.octets, epoch=talk.server.epoch(sent.at), result=result, lifetime=0)
    ]
    talk.want(lease=None)
    talk.run(4.9)
    assert len(talk.sent) == 1
    talk.run(3600)
    assert len(talk.sent) <= 14


def test_iwf_162_case_31_the_longest_lifetime_is_renewed_like_a_day() -> None:
    talk = Dialogue()
    talk.server.longest = 4294967295
    talk.want(lease=None)
    talk.run(86400 * 5 / 8)
    assert talk.of(MappingGranted)[0].lifetime == 86400  # type: ignore[attr-defined]
    assert [86400 / 2 <= sent.at - 1000 <= 86400 * 5 / 8 for sent in talk.sent[1:]] == [True]


def deleted(talk: Dialogue, lifetime: int) -> None:
    """V2's mapping is made and deleted; the answer says that it lives on for ``lifetime`` seconds."""
    talk.want()
    talk.run(1)
    talk.server.delete_result = (0, lifetime)
    talk.drop()
    talk.run(1)


def test_iwf_140_case_32_a_delete_that_leaves_some_lifetime_is_done() -> None:
    talk = Dialogue()
    deleted(talk, 90)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    assert (talk.client.grant("web"), talk.client.next_timer()) == (None, None)


def test_iwf_140_case_32_the_port_is_busy_for_as_long_to_everybody_else() -> None:
    talk = Dialogue()
    deleted(talk, 90)
    talk.want("other", internal_port=9000)
    assert (talk.of(MappingRefused), len(talk.maps)) == ([MappingRefused("other", 11, 90)], 2)
    talk.want("udp", internal_port=9000, protocol=Protocol.UDP)
    talk.want("any", internal_port=9001, exact=False)
    talk.want("next", internal_port=9002, external_port=8081)
    assert len(talk.maps) == 5
    talk.run(91)
    assert talk.client.grant("other") is not None


def test_iwf_140_case_32_who_had_the_port_gets_it_back() -> None:
    talk = Dialogue()
    deleted(talk, 90)
    talk.want()
    talk.run(1)
    assert talk.client.grant("web") is not None


def test_iwf_140_case_32_a_port_that_is_deleted_without_a_rest_is_free() -> None:
    talk = Dialogue()
    deleted(talk, 1500)
    deleted(talk, 0)
    talk.want("other", internal_port=9000)
    talk.run(1)
    assert (talk.of(MappingRefused), talk.client.grant("other") is not None) == ([], True)


def test_iwf_140_case_32_so_is_the_port_of_an_earlier_process() -> None:
    talk = Dialogue()
    talk.server.delete_result = (0, 90)
    talk.client.want(wanted_mapping(nonce=NONCE, external_address=IPv4Address("203.0.113.77")), talk.now)
    talk.drop()
    talk.run(1)
    talk.want("other", internal_port=9000)
    assert [sent.lifetime for sent in talk.maps] == [0]
    assert [event.key for event in talk.of(MappingRefused)] == ["other"]  # type: ignore[attr-defined]


def test_case_32_no_server_keeps_a_port_busy_for_longer_than_half_an_hour() -> None:
    talk = Dialogue()
    deleted(talk, 4294967295)
    talk.want("other", internal_port=9000)
    assert talk.of(MappingRefused) == [MappingRefused("other", 11, 1800)]


def test_case_32_the_oldest_of_too_many_busy_ports_is_forgotten() -> None:
    refusals = Refusals()
    for port in range(REMEMBERED_REFUSALS + 1):
        refusals.keep_busy((6, port), "owner", until=90)
    busy = [port for port in range(REMEMBERED_REFUSALS + 1) if refusals.of_port((6, port), "other", now=0)]
    assert busy == list(range(1, REMEMBERED_REFUSALS + 1))


@pytest.mark.parametrize("lead", [bytes(10) + b"\x00\xff", b"\x01" + bytes(9) + b"\xff\xff"])
def test_case_33_twelve_octets_decide_whether_an_address_is_ipv4(lead: bytes) -> None:
    address = lead + b"\xcb\x00\x71\x4d"
    assert unpack_address(address).version == 6
    talk = waiting()
    talk.deliver(RESPONSE[:44] + address + RESPONSE[60:])
    assert (talk.events, talk.client.counters["unusable_grant"]) == ([(talk.now, ACTIVE)], 1)


# Vectors of what this client never asks for


def test_v8_a_response_to_peer_is_dropped() -> None:
    talk = waiting()
    talk.deliver(VECTORS["V8 response"])
    assert (talk.events, talk.client.counters["no_match"]) == ([], 1)


def test_v9_a_granted_port_set_is_taken_for_its_first_port() -> None:
    talk = Dialogue()
    talk.server.silent = True
    response = VECTORS["V9 response"]
    talk.want(protocol=Protocol.UDP, internal_port=50000, external_port=0, exact=False, nonce=response[24:36])
    talk.deliver(response)
    assert [event.external_port for event in talk.of(MappingGranted)] == [37056]  # type: ignore[attr-defined]


def test_v10_an_announcement_with_a_prefix_is_an_announcement() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.client.announce(talk.now)
    talk.flush()
    talk.deliver(VECTORS["V10 response"])
    assert talk.events == [(talk.now, ACTIVE)]
    assert talk.client.last_epoch == 700


@pytest.mark.parametrize("name", [name for name in VECTORS if name.startswith(("V11", "V12"))])
def test_v11_and_v12_other_natpmp_messages_are_dropped(name: str) -> None:
    talk = waiting()
    talk.deliver(VECTORS[name])
    assert (talk.events, talk.client.counters["short"]) == ([], 1)
    with pytest.raises(MalformedPcp):
        decode_response(VECTORS[name])
