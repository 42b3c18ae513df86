# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier checks requests as RFC 6887 section 8.2 says, and reads options as its profile does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.simulated_carrier.asking import (
    EXACT,
    HOST,
    OTHER,
    OTHER_NONCE,
    PEER,
    PEER2,
    WAN,
    Carrier,
    announce_request,
    description,
    map_request,
    only_from,
    option,
    third_party,
)
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.vectors.pcp_vectors import VECTORS

CLEAR = only_from("0.0.0.0", prefix=0)


# The vectors


@pytest.mark.parametrize(
    ("request_name", "response_name", "epoch", "source", "overrides"),
    [
        ("V1 request", "V1 response", 86461, WAN, {}),
        ("V2 request", "V2 success response", 86462, WAN, {}),
        ("V4 request", "V4 success response", 120003, WAN, {"ports": (6598, 6598)}),
        ("V5 request", "V5 response", 86700, WAN, {}),
        ("V6 request", "V6 response", 86800, WAN, {}),
        ("V7 request", "V7 success response", 512, "2001:db8:b4::2", {}),
    ],
)
def test_what_the_standard_gives_is_answered_octet_by_octet(
    request_name: str, response_name: str, epoch: int, source: str, overrides: dict[str, Any]
) -> None:
    carrier = Carrier(now=epoch, **overrides)
    assert carrier.send(VECTORS[request_name], source) == VECTORS[response_name]


def test_a_port_of_somebody_else_is_refused_octet_by_octet() -> None:
    carrier = Carrier(now=86462)
    carrier.map(8080, 8080, client=OTHER, lifetime=1800)
    assert carrier.send(VECTORS["V2 request"]) == VECTORS["V3 error response"]


def test_the_opcode_peer_is_not_served_and_comes_back_as_it_was() -> None:
    request = VECTORS["V8 request"]
    reply = Carrier().ask(request, "192.168.1.50")
    assert (reply.result, reply.lifetime, reply.raw[24:]) == (4, 1800, request[24:])


# Receiving, in the order of section 8.2


@pytest.mark.parametrize(
    ("raw", "result", "length"),
    [
        (b"", None, 0),
        (b"\x02", None, 0),
        (bytes([2, 0x81]) + map_request(WAN, 80)[2:], None, 0),
        (map_request(WAN, 80)[:23], None, 0),
        (bytes([3]) + announce_request(WAN)[1:], 1, 24),
        (map_request(WAN, 80)[:56], 3, 56),
        (map_request(WAN, 80) + b"xx", 3, 64),
        (map_request(WAN, 80, options=option(200, bytes(1040))), 3, 1100),
        (map_request(OTHER, 80), 12, 60),
        (map_request(OTHER, 80, options=b"\x01\x00\x00\x40"), 12, 64),
        (map_request(WAN, 80, options=b"\x02\x00\x00\x04"), 6, 64),
        (map_request(WAN, 80, options=option(1, bytes(4))), 6, 68),
        (map_request(WAN, 80, options=third_party(HOST) * 2), 6, 100),
        (map_request(WAN, 80, options=third_party(WAN)), 3, 80),
        (map_request(WAN, 80, options=option(64)), 5, 64),
        (map_request(WAN, 80, options=option(200)), 0, 60),
        (map_request(WAN, 80, options=option(128, bytes(1017))), 6, 1084),
        (map_request(WAN, 80, options=EXACT), 6, 64),
        (map_request(WAN, 80, 80, lifetime=0, options=EXACT), 6, 64),
        (map_request(WAN, 80, lifetime=0, options=only_from(PEER)), 6, 84),
        (map_request(WAN, 80, options=only_from(PEER, prefix=24)), 6, 84),
        (map_request(WAN, 80, options=only_from("2001:db8::1")), 6, 84),
        (map_request(WAN, 80, options=only_from(PEER, prefix=120)), 13, 84),
        (map_request(WAN, 80, options=only_from(PEER, port=53)), 13, 84),
        (map_request(WAN, 80, options=option(64) + third_party(WAN)), 5, 84),
        (map_request(WAN, 80, options=third_party(WAN) + option(64)), 3, 84),
        (map_request(WAN, 80, protocol=0), 3, 60),
        (map_request(WAN, 0, protocol=0), 9, 60),
        (map_request(WAN, 0), 9, 60),
        (map_request(WAN, 80, protocol=132), 9, 60),
        (announce_request(WAN, EXACT), 6, 28),
        (announce_request(WAN, option(64)), 5, 28),
        (announce_request(WAN, option(129, bytes(14))), 0, 24),
    ],
)
def test_a_request_gets_the_result_of_the_first_rule_that_it_breaks(
    raw: bytes, result: int | None, length: int
) -> None:
    carrier = Carrier()
    reply = carrier.send(raw)
    if result is None:
        assert reply is None
    else:
        assert reply is not None
        assert (reply[3], len(reply)) == (result, length)
    assert bool(carrier.table()) == (result == 0 and raw[1] == 1)


def test_ipv6_hosts_get_no_mapping_from_a_nat_of_ipv4() -> None:
    carrier = Carrier()
    assert carrier.map(80, client="2001:db8::1").result == 8
    assert carrier.table() == []


def test_what_could_not_be_parsed_comes_back_with_the_end_of_its_client_address() -> None:
    assert Carrier().ask(map_request(WAN, 80)[:56]).raw[12:24] == map_request(WAN, 80)[12:24]
    assert Carrier().ask(map_request(OTHER, 80)).raw[12:24] == bytes(12)


def test_padding_is_not_looked_at() -> None:
    assert Carrier().map(80, options=bytes([128, 0, 0, 1]) + b"gxyz").options == description("g")


@given(st.sampled_from(sorted(PROFILES)), st.binary(max_size=1200))
def test_no_octets_make_it_fail(profile: str, raw: bytes) -> None:
    carrier = Carrier(profile)
    carrier.send(raw)
    carrier.send(map_request(WAN, 80)[:24] + raw)


# Options


def test_third_party_maps_another_host() -> None:
    carrier = Carrier()
    assert carrier.map(80, 9000, options=third_party(HOST)).options == third_party(HOST)
    assert carrier.table() == [(HOST, 80, 9000)]
    assert carrier.map(80, lifetime=0, options=third_party(HOST)).result == 0
    assert carrier.table() == []


def test_filters_add_up_until_they_are_cleared() -> None:
    carrier = Carrier()

    def peers(options: bytes) -> list[str]:
        assert carrier.map(80, options=options).options == options
        return list(carrier.server.listing(0)[0]["filters"])

    assert peers(only_from(PEER)) == [PEER]
    assert peers(only_from(PEER) + only_from(PEER2)) == [PEER, PEER2]
    assert peers(b"") == [PEER, PEER2]
    assert peers(CLEAR + only_from(PEER2)) == [PEER2]
    assert peers(only_from(PEER) + CLEAR) == []


def test_more_filters_than_it_can_have_change_nothing() -> None:
    carrier = Carrier(peers=1)
    carrier.map(80, options=only_from(PEER))
    assert carrier.map(80, options=only_from(PEER2)).result == 13
    assert carrier.server.listing(0)[0]["filters"] == [PEER]


def test_the_clearing_filter_may_be_malformed_to_it() -> None:
    assert Carrier(clearing_filter=False).map(80, options=CLEAR).result == 6


@pytest.mark.parametrize(
    ("overrides", "sent", "kept"),
    [
        ({}, description("game"), description("game")),
        ({}, description(""), description("")),
        ({"description": 5}, description("ab€€"), description("ab€")),
        ({"description": 0}, description("game"), b""),
        ({}, option(128, b"\xff"), b""),
    ],
)
def test_a_description_comes_back_as_it_was_kept(overrides: dict[str, Any], sent: bytes, kept: bytes) -> None:
    assert Carrier(**overrides).map(80, options=sent).options == kept


def test_a_description_stays_until_another_one_comes() -> None:
    carrier = Carrier()
    for options, kept in ((description("game"), "game"), (b"", "game"), (description(""), "")):
        carrier.map(80, options=options)
        assert carrier.server.listing(0)[0]["description"] == kept


# Looking back


def test_what_came_is_counted_and_kept() -> None:
    carrier = Carrier()
    carrier.map(80, 9000, options=description("game"))
    carrier.map(80, 9000, nonce=OTHER_NONCE)
    carrier.send(b"\x02")
    assert carrier.server.counters == {
        "received": 3, "version_2_opcode_1": 2, "result_0": 1, "result_2": 1, "dropped_short": 1
    }  # fmt: skip
    first = carrier.server.requests[0]
    assert (first["protocol"], first["internal_port"], first["external_port"], first["result"]) == ("tcp", 80, 9000, 0)
    assert first["options"] == {"DESCRIPTION": ["game"]}
    assert [request["result"] for request in carrier.server.requests] == [0, 2, None]
