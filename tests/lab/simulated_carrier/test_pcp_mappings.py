# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier maps as RFC 6887 section 11.3 says, and otherwise where its profile does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.simulated_carrier.asking import (
    EXACT,
    EXTERNAL,
    EXTERNAL2,
    HOST,
    OTHER,
    OTHER_NONCE,
    PEER,
    TCP,
    UDP,
    WAN,
    Carrier,
    announce_request,
    map_request,
    only_from,
    option,
    third_party,
)
from tests.lab.simulated_carrier.table import Translation

DAY = 86400


def test_a_renewal_keeps_what_was_assigned_whatever_is_suggested() -> None:
    carrier = Carrier()
    assert carrier.map(80, 9000).external_port == 9000
    carrier.server.take_nat_changes()
    carrier.now = 300
    renewed = carrier.map(80, 9001, lifetime=500)
    assert (renewed.result, renewed.external_port, renewed.lifetime) == (0, 9000, 500)
    assert not carrier.server.take_nat_changes()
    assert carrier.map(80, 9001, options=EXACT).result == 11
    assert carrier.map(80, 9000, address=EXTERNAL2, options=EXACT).result == 11
    assert carrier.map(80, 9000, address=EXTERNAL, options=EXACT).result == 0


def test_another_nonce_is_not_authorized_for_as_long_as_the_mapping_lives() -> None:
    carrier = Carrier()
    carrier.map(80, 9000, lifetime=600)
    carrier.now = 100
    for lifetime in (600, 0):
        refused = carrier.map(80, 9000, nonce=OTHER_NONCE, lifetime=lifetime)
        assert (refused.result, refused.lifetime) == (2, 500)
    assert carrier.table() == [(WAN, 80, 9000)]


def test_with_nonce_takeover_another_nonce_gets_the_mapping() -> None:
    carrier = Carrier("nonce_takeover")
    carrier.map(80, 9000)
    assert carrier.map(80, 9000, nonce=OTHER_NONCE).result == 0
    assert [row["nonce"] for row in carrier.server.listing(0)] == [OTHER_NONCE.hex()]
    assert carrier.map(80, lifetime=0).result == 0
    assert carrier.table() == []


def test_deleting_what_is_not_there_succeeds() -> None:
    deleted = Carrier().map(80, 9000, lifetime=0)
    assert (deleted.result, deleted.lifetime, deleted.external_port) == (0, 0, 9000)


def test_a_mapping_ends_with_its_lifetime_and_takes_its_translation_along() -> None:
    carrier = Carrier()
    carrier.map(80, 9000, lifetime=200)
    translation = Translation(TCP, WAN, 80, EXTERNAL, 9000)
    assert carrier.server.take_nat_changes().added == [translation]
    assert carrier.server.next_timer() == 200
    assert carrier.sent_until(200) == []
    assert carrier.server.take_nat_changes().removed == [translation]


@pytest.mark.parametrize(
    ("profile", "asked", "given"),
    [
        ("strict", 60, 120),
        ("strict", 600, 600),
        ("strict", 0xFFFFFFFF, DAY),
        ("lifetime_120", DAY, 120),
        ("lifetime_86400", 60, DAY),
    ],
)
def test_lifetimes_are_kept_in_the_profiles_range(profile: str, asked: int, given: int) -> None:
    assert Carrier(profile).map(80, lifetime=asked).lifetime == given


def test_a_taken_port_is_refused_until_it_ends_or_another_one_is_given() -> None:
    carrier = Carrier()
    carrier.map(80, 9000, client=OTHER, lifetime=200)
    carrier.now = 50
    refused = carrier.map(80, 9000, options=EXACT)
    assert (refused.result, refused.lifetime) == (11, 150)
    another = carrier.map(80, 9000)
    assert another.result == 0
    assert another.external_port not in (0, 9000)
    assert carrier.map(80, 9000, protocol=UDP, options=EXACT).result == 0


@pytest.mark.parametrize("port", [5350, 5351])
def test_the_protocols_own_ports_are_never_given(port: int) -> None:
    assert Carrier().map(80, port, protocol=UDP, options=EXACT).result == 11
    assert Carrier().map(80, port, options=EXACT).result == 0


def test_when_every_port_is_taken_it_is_short_of_resources() -> None:
    carrier = Carrier(ports=(2000, 2001))
    assert {carrier.map(port).external_port for port in (80, 81)} == {2000, 2001}
    refused = carrier.map(82)
    assert (refused.result, refused.lifetime) == (8, 30)


def test_without_an_external_address_the_network_has_failed() -> None:
    refused = Carrier(external=()).map(80)
    assert (refused.result, refused.lifetime) == (7, 30)


def test_an_internal_address_keeps_its_external_one() -> None:
    carrier = Carrier(external=(EXTERNAL, EXTERNAL2))
    assert [carrier.map(port).external_address for port in (80, 81)] == [EXTERNAL, EXTERNAL]
    assert [carrier.map(port, client=OTHER).external_address for port in (80, 81)] == [EXTERNAL2, EXTERNAL2]
    assert carrier.map(82, 9000, address=EXTERNAL2, options=EXACT).result == 11


# Profiles


def test_the_quota_counts_each_internal_address_alone() -> None:
    carrier = Carrier("quota_32")
    assert [carrier.map(2000 + n).result for n in range(33)] == [0] * 32 + [10]
    assert carrier.map(2000).result == 0
    assert carrier.map(2000, client=OTHER).result == 0
    assert carrier.map(2000, options=third_party(HOST)).result == 0


def test_a_port_block_is_one_addresss_own() -> None:
    carrier = Carrier("port_block_512")
    carrier.map(80)
    carrier.map(80, client=OTHER)
    (low, high), (low2, high2) = (carrier.server.blocks[address] for address in (WAN, OTHER))
    assert high - low == high2 - low2 == 511
    assert high < low2 or high2 < low
    assert carrier.map(81, low2, options=EXACT).result == 11
    ports = {carrier.map(2000 + n).external_port for n in range(511)} | {carrier.map(80).external_port}
    assert ports == set(range(low, high + 1))
    assert carrier.map(4000).result == 10


def test_a_freed_port_rests_unless_its_owner_returns() -> None:
    carrier = Carrier("recycle_delay")
    carrier.map(80, 9000, lifetime=600)
    assert carrier.map(80, 9000, client=OTHER, options=EXACT).lifetime == 720
    carrier.map(80, lifetime=0)
    carrier.now = 100
    for stranger in ({"client": OTHER}, {"port": 81}, {"nonce": OTHER_NONCE}):
        asked: dict[str, Any] = {"port": 80, "external_port": 9000, "options": EXACT} | stranger
        refused = carrier.map(**asked)
        assert (refused.result, refused.lifetime) == (11, 20), stranger
    assert carrier.map(80, 9000, options=EXACT).result == 0
    carrier.map(80, lifetime=0)
    carrier.now = 221
    assert carrier.map(80, 9000, client=OTHER, options=EXACT).result == 0


@pytest.mark.parametrize(
    ("profile", "overrides", "options"),
    [
        ("no_prefer_failure", {}, EXACT),
        ("no_third_party", {}, third_party(HOST)),
        ("strict", {"peers": 0}, only_from(PEER)),
    ],
)
def test_an_option_that_is_not_offered_is_unsupported(profile: str, overrides: dict[str, Any], options: bytes) -> None:
    assert Carrier(profile, **overrides).map(80, 9000, options=options).result == 5


def test_errors_can_have_lifetime_0() -> None:
    assert Carrier("error_lifetime_0").map(80, options=option(64)).lifetime == 0


def test_a_server_without_map_still_answers_an_announce() -> None:
    carrier = Carrier("no_map")
    assert carrier.map(80).result == 4
    assert carrier.ask(announce_request(WAN)).result == 0


def test_version_1_is_served_without_nonces_and_offered_to_version_2() -> None:
    carrier = Carrier("version_1_only")
    offered = carrier.map(80)
    assert (offered.raw[0], offered.result, offered.lifetime) == (1, 1, 1800)
    granted = carrier.ask(map_request(WAN, 80, 9000, nonce=b"", version=1))
    assert (granted.raw[0], granted.result, len(granted.raw)) == (1, 0, 48)
    assert carrier.table() == [(WAN, 80, 9000)]
