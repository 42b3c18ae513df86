# SPDX-License-Identifier: Apache-2.0
"""The life of one mapping: created, renewed, changed, refused, given back, deleted."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from igdpcp.model import Protocol
from igdpcp.pcp.client import MappingGranted, MappingLost, MappingRefused, MappingReleased, PcpClient
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import (
    DESCRIPTION,
    EXTERNAL,
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

NONCE = bytes.fromhex("4a1d9f27c3b85e60712fd4a8")
HOST = IPv4Address("192.168.1.50")


def test_iwf_060_080_a_wish_leaves_at_once_as_the_vector_says_and_is_granted() -> None:
    talk = Dialogue()
    talk.want(nonce=NONCE)
    assert [sent.octets for sent in talk.sent] == [VECTORS["V2 request"]]
    talk.run(1)
    address = IPv4Address("203.0.113.77")
    assert talk.of(MappingGranted) == [MappingGranted("web", address, 8080, 3600, 1000.02 + 3600, NONCE)]
    assert talk.client.grant("web") == talk.of(MappingGranted)[0]


def test_iwf_151_an_infinite_lease_asks_for_the_largest_lifetime() -> None:
    talk = Dialogue()
    talk.want(nonce=NONCE, lease=None, protocol=Protocol.UDP, internal_port=5060, external_port=5060)
    assert talk.sent[0].octets == VECTORS["V6 request"]


def test_a_mapping_for_a_lan_host_names_it_with_filters_and_description() -> None:
    talk = Dialogue()
    talk.want(
        protocol=Protocol.UDP, internal_address=HOST, internal_port=6881, external_port=6881, exact=False, lease=604800,
        remote_hosts=(IPv4Address("198.51.100.9"),), description="µTorrent",
        nonce=bytes.fromhex("09e83c715ab2d4f6107788cd"),
    )  # fmt: skip
    assert talk.sent[0].octets == VECTORS["V4 request"]
    talk.run(1)
    assert talk.client.grant("web") is not None


def test_over_ipv6_an_ipv4_mapping_names_its_host() -> None:
    talk = Dialogue()
    talk.client.address_changed(IPv6Address("2001:db8:b4::2"), talk.now)
    talk.want(
        internal_address=HOST, internal_port=22, external_port=2222, lease=7200,
        nonce=bytes.fromhex("d2c1a05f3b6e48977a1140fe"),
    )  # fmt: skip
    assert talk.maps[0].octets == VECTORS["V7 request"]


def test_iwf_015_096_133_deleting_clears_the_suggestion_and_keeps_the_nonce() -> None:
    talk = Dialogue()
    talk.want(nonce=NONCE, remote_hosts=(IPv4Address("198.51.100.9"),), description="x")
    talk.run(1)
    talk.drop()
    assert talk.sent[-1].octets == VECTORS["V5 request"]
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    assert talk.client.next_timer() is None


def test_iwf_096_133_deleting_for_a_third_party_keeps_only_that_option() -> None:
    talk = Dialogue()
    talk.want(internal_address=HOST, remote_hosts=(IPv4Address("198.51.100.9"),), description="x")
    talk.run(1)
    talk.drop()
    assert talk.sent[-1].options == [(THIRD_PARTY, mapped("192.168.1.50"))]


def test_iwf_081_prefer_failure_is_never_sent_without_a_port() -> None:
    talk = Dialogue()
    talk.want(external_port=0)
    talk.want("any", internal_port=81, exact=False)
    assert [PREFER_FAILURE in sent.codes for sent in talk.sent] == [False, False]


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_iwf_002_lost_requests_are_repeated_octet_by_octet(lost: int) -> None:
    talk = Dialogue()
    talk.server.drop = lost
    talk.want()
    talk.run(30)
    assert len(talk.sent) == lost + 1
    assert {sent.octets for sent in talk.sent} == {talk.sent[0].octets}
    for at, expected in zip(talk.times(), [0, 3, 9, 21], strict=False):
        assert abs(at - expected) <= expected * 0.12
    assert len(talk.of(MappingGranted)) == 1


def test_iwf_015_153_157_158_a_finite_lease_is_renewed_for_what_remains_until_it_ends() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    wanted = talk.want(lease=3600)
    talk.run(3700)
    renewals = talk.maps[1:]
    assert len(renewals) >= 8
    for sent in renewals:
        assert sent.lifetime - 1 <= wanted.until - sent.at <= sent.lifetime
        assert sent.codes == [PREFER_FAILURE]
        assert (sent.suggested_port, sent.suggested_address) == (8080, mapped("203.0.113.77"))
        assert sent.nonce == talk.sent[0].nonce
    assert all(sent.at < wanted.until for sent in renewals)


def test_a_grant_that_covers_the_lease_is_not_renewed() -> None:
    talk = Dialogue()
    talk.want(lease=3600)
    talk.run(3590)
    assert len(talk.sent) == 1


@pytest.mark.parametrize("lifetime", [120, 300, 3600, 86400, 4294967295])
def test_iwf_046_160_unanswered_renewals_are_single_packets_in_their_windows(lifetime: int) -> None:
    talk = Dialogue()
    talk.server.longest = lifetime
    talk.want(lease=None)
    talk.run(1)
    talk.server.silent = True
    scheduled = min(lifetime, 86400)
    talk.run(scheduled * 0.99)
    since_grant = [sent.at - 1000.02 for sent in talk.maps[1:]]
    assert len(since_grant) >= 4
    for attempt, at in enumerate(since_grant[:4], start=1):
        opens = scheduled * (1 - 2.0**-attempt)
        assert opens <= at <= opens + scheduled / 2.0 ** (attempt + 2)
    assert all(b - a >= 4 for a, b in itertools.pairwise(since_grant))


def test_a_lifetime_that_ends_unrenewed_is_told_and_created_anew() -> None:
    talk = Dialogue()
    talk.server.longest = 120
    talk.want(lease=None, exact=False, external_port=0)
    talk.run(1)
    talk.server.silent = True
    talk.run(130)
    assert [at for at, event in talk.events if isinstance(event, MappingLost)] == [1120.02]
    assert talk.client.grant("web") is None
    talk.server.silent = False
    talk.run(1100)
    assert talk.client.grant("web") is not None
    assert talk.maps[-1].suggested_port == 8080, "the port last assigned is suggested"


def test_a_refresh_that_needs_nothing_new_sends_nothing() -> None:
    talk = Dialogue()
    talk.want(lease=60)
    for _ in range(3):
        talk.run(15)
        talk.want(lease=60)
    assert len(talk.sent) == 1


def test_a_lease_that_outgrows_its_grant_is_asked_for_at_once() -> None:
    talk = Dialogue()
    talk.want(lease=700)
    talk.run(600)
    talk.want(lease=600)
    assert [sent.lifetime for sent in talk.sent] == [700, 600]
    talk.run(1)
    talk.want(lease=600)
    assert len(talk.sent) == 2, "the second of two renewals waits"
    talk.run(5)
    assert [sent.lifetime for sent in talk.sent] == [700, 600, 597]


def test_a_server_that_caps_is_not_asked_again_before_the_renewal() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(lease=3600)
    talk.run(10)
    talk.want(lease=7200)
    assert len(talk.sent) == 1


def test_a_shortened_lease_stops_the_renewals_without_a_packet() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(lease=3600)
    talk.run(10)
    talk.want(lease=500)
    talk.run(480)
    assert len(talk.sent) == 1
    talk.want(lease=1000)
    assert len(talk.sent) == 1
    talk.run(60)
    assert [sent.lifetime > 900 for sent in talk.sent[1:]] == [True]


def test_a_refusal_is_told_and_repeated_after_its_lifetime() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (11, 600)}
    talk.want()
    talk.run(590)
    assert talk.of(MappingRefused) == [MappingRefused("web", ResultCode.CANNOT_PROVIDE_EXTERNAL, 600)]
    assert len(talk.sent) == 1
    talk.server.refuse = {}
    talk.run(20)
    assert talk.client.grant("web") is not None


def test_a_second_copy_of_a_refusal_puts_nothing_off() -> None:
    talk = Dialogue()
    talk.server.drop, talk.server.refuse = 1, {0: (ResultCode.NOT_AUTHORIZED, 60)}
    talk.want()
    talk.run(30)
    assert (len(talk.sent), len(talk.of(MappingRefused))) == (2, 1)
    talk.deliver(
        answer(talk.sent[1].octets, epoch=talk.server.epoch(talk.now), result=ResultCode.NOT_AUTHORIZED, lifetime=60)
    )
    assert (len(talk.of(MappingRefused)), talk.client.counters["late"]) == (1, 1)
    talk.run(35)
    assert len(talk.sent) == 3


def test_iwf_173_an_absurdly_long_refusal_is_cut_to_half_an_hour() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (2, 4294967295)}
    talk.want(lease=None)
    talk.run(1801)
    assert [event.lifetime for event in talk.of(MappingRefused)] == [1800, 1800]


def test_iwf_091_the_same_request_under_another_key_is_refused_without_a_packet() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (11, 600)}
    talk.want("a")
    talk.run(1)
    talk.drop("a")
    assert talk.of(MappingReleased) == [MappingReleased("a", 0)]
    talk.run(99)
    talk.want("b")
    assert talk.of(MappingRefused)[1:] == [MappingRefused("b", 11, 501)]
    assert len(talk.sent) == 1
    talk.want("b", external_port=8081)
    assert len(talk.sent) == 2


def test_iwf_161_what_was_lost_for_good_is_asked_for_less_and_less_often_but_every_half_hour() -> None:
    talk = Dialogue()
    talk.server.longest = 120
    talk.want(lease=None)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 30)}
    talk.run(6 * 3600)
    lost_at = next(at for at, event in talk.events if isinstance(event, MappingLost))
    again = [sent.at for sent in talk.maps if sent.at > lost_at]
    pauses = [b - a for a, b in itertools.pairwise(again)]
    assert pauses[0] >= 30
    assert all(a - 1 <= b <= 1801 for a, b in itertools.pairwise(pauses))
    assert pauses[-1] >= 1799
    talk.server.refuse = {}
    talk.run(1801)
    assert talk.client.grant("web") is not None


def test_a_refused_renewal_keeps_the_grant_until_it_ends() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(lease=None)
    talk.run(1)
    talk.server.refuse = {0: (10, 30)}
    talk.run(400)
    assert [event.result for event in talk.of(MappingRefused)] == [10]
    assert talk.client.grant("web") is not None
    talk.run(300)
    assert talk.of(MappingLost) == [MappingLost("web")]


def test_iwf_090_another_port_than_the_exact_one_is_given_back_and_refused() -> None:
    talk = Dialogue()
    talk.server.port = 8081
    talk.want()
    talk.run(1)
    assert talk.of(MappingRefused) == [MappingRefused("web", ResultCode.CANNOT_PROVIDE_EXTERNAL, 5)]
    assert [sent.lifetime for sent in talk.sent] == [3600, 0]
    assert talk.server.mappings == {}
    assert not talk.of(MappingGranted)
    assert not talk.of(MappingReleased)


def test_iwf_090_what_is_given_back_is_told_for_as_long_as_it_may_live() -> None:
    talk = Dialogue()
    talk.server.port = 8081
    talk.server.scripted = lambda sent: [] if sent.lifetime == 0 and talk.now < 2500 else None
    talk.want()
    talk.run(1)
    talk.drop()
    talk.run(2600)
    assert {sent.lifetime for sent in talk.sent[1:]} == {0}
    assert 2500 <= talk.sent[-1].at < 1000 + 3600
    assert talk.server.mappings == {}


def test_iwf_090_another_address_than_the_one_suggested_is_given_back_too() -> None:
    talk = Dialogue()
    talk.want(external_address=IPv4Address("203.0.113.5"))
    talk.run(1)
    assert [event.result for event in talk.of(MappingRefused)] == [11]
    assert talk.server.mappings == {}


@pytest.mark.parametrize("host", [OWN, HOST], ids=["cascaded", "routed"])
def test_iwf_094_the_address_that_an_internal_host_has_is_suggested_for_what_it_opens_next(host: IPv4Address) -> None:
    talk = Dialogue()
    for port in (8080, 8081):
        talk.want(str(port), internal_address=host, internal_port=port, external_port=port)
        talk.run(1)
    talk.want("another host's", internal_address=IPv4Address("192.168.1.60"))
    assert [sent.suggested_address for sent in talk.sent] == [
        mapped("0.0.0.0"), mapped("203.0.113.77"), mapped("0.0.0.0"),
    ]  # fmt: skip
    assert [sent.suggested_port for sent in talk.sent] == [8080, 8081, 8080]


def test_iwf_094_a_port_that_is_to_be_had_at_another_address_only_is_taken_there() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.server.address = mapped("203.0.113.78")
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=11, lifetime=1800)]
        if sent.suggested_address == EXTERNAL
        else None
    )
    talk.want("next", internal_port=8081, external_port=8081)
    talk.run(1)
    assert [sent.suggested_address for sent in talk.sent[1:]] == [EXTERNAL, mapped("0.0.0.0")]
    assert not talk.of(MappingRefused)
    granted = talk.of(MappingGranted)[-1]
    assert (granted.key, str(granted.external_address)) == ("next", "203.0.113.78")  # type: ignore[attr-defined]
    talk.want("last", internal_port=8082, external_port=8082)
    assert talk.sent[-1].suggested_address == mapped("203.0.113.78"), "where it was given one last"


def test_iwf_094_no_address_is_suggested_when_the_host_has_none_any_more() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.drop()
    talk.run(1)
    talk.want("next", internal_port=8081, external_port=8081)
    assert talk.sent[-1].suggested_address == mapped("0.0.0.0")


def test_any_port_will_do_when_none_is_exact() -> None:
    talk = Dialogue()
    talk.server.port = 6598
    talk.want(exact=False)
    talk.run(1)
    assert [event.external_port for event in talk.of(MappingGranted)] == [6598]


def test_iwf_197_a_mapping_update_changes_the_address_of_an_exact_mapping() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    update = answer(
        talk.sent[0].octets, epoch=talk.server.epoch(talk.now), lifetime=3000, address=mapped("203.0.113.9")
    )
    talk.deliver(update)
    granted = talk.of(MappingGranted)[-1]
    assert (granted.external_address, granted.external_port, granted.lifetime) == (
        IPv4Address("203.0.113.9"),
        8080,
        3000,
    )


def test_an_update_that_takes_the_exact_port_away_ends_the_grant() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.deliver(answer(talk.sent[0].octets, epoch=talk.server.epoch(talk.now), port=9999))
    assert talk.of(MappingLost) == [MappingLost("web")]
    assert [event.result for event in talk.of(MappingRefused)] == [11]
    assert talk.sent[-1].lifetime == 0


def test_iwf_090_a_late_word_about_the_replaced_port_is_not_the_answer() -> None:
    talk = Dialogue(rtt=0.5)
    talk.want()
    talk.run(1)
    old = talk.sent[0].octets
    talk.want(external_port=9090)
    assert talk.of(MappingLost) == [MappingLost("web")]
    talk.run(0.7)
    assert [(sent.lifetime, sent.suggested_port) for sent in talk.sent[1:]] == [(0, 0), (3600, 9090)]
    talk.deliver(answer(old, epoch=talk.server.epoch(talk.now)))
    talk.run(1)
    assert [event.external_port for event in talk.of(MappingGranted)] == [8080, 9090]
    assert talk.client.counters["outdated"] == 1
    assert not talk.of(MappingRefused)


def test_an_external_address_that_nobody_can_use_is_no_grant() -> None:
    talk = Dialogue()
    for address in ("0.0.0.0", "2001:db8::1"):
        talk.server.address = mapped(address)
        talk.want(exact=False)
        talk.run(4)
    assert not talk.of(MappingGranted)
    assert talk.client.counters["unusable_grant"] >= 2


def test_a_drop_during_the_create_deletes_what_may_have_been_made() -> None:
    talk = Dialogue(rtt=0.5)
    talk.want()
    talk.run(0.1)
    talk.drop()
    assert [sent.lifetime for sent in talk.sent] == [3600, 0]
    talk.run(0.45)
    assert not talk.of(MappingReleased), "the create's answer is not the delete's"
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    assert not talk.of(MappingGranted)
    assert talk.server.mappings == {}


def test_a_drop_before_anything_was_sent_sends_nothing() -> None:
    talk = Dialogue()
    talk.client.want(wanted_mapping(), talk.now)
    talk.drop()
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    assert talk.sent == []


def test_a_mapping_known_from_before_is_deleted_at_the_server_even_when_not_asked_for_again() -> None:
    talk = Dialogue()
    talk.client.want(wanted_mapping(nonce=NONCE), talk.now)
    talk.drop()
    assert [sent.octets for sent in talk.sent] == [VECTORS["V5 request"]]


def test_dropping_what_nobody_wants_is_answered() -> None:
    talk = Dialogue()
    talk.drop("never")
    assert talk.of(MappingReleased) == [MappingReleased("never", 0)]


def test_wanting_it_again_cancels_the_drop() -> None:
    talk = Dialogue(rtt=0.5)
    talk.want()
    talk.run(1)
    talk.drop()
    talk.want()
    assert [sent.lifetime for sent in talk.sent] == [3600, 0]
    talk.run(2)
    assert [sent.lifetime for sent in talk.sent] == [3600, 0, 3600]
    assert not talk.of(MappingReleased)
    assert talk.client.grant("web") is not None


def test_a_second_answer_to_a_delete_does_not_end_the_new_mapping() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.drop()
    delete = talk.sent[-1].octets
    talk.want("web2")
    talk.run(1)
    assert talk.client.grant("web2") is not None
    talk.deliver(answer(delete, epoch=talk.server.epoch(talk.now)))
    talk.run(5)
    assert talk.client.grant("web2") is not None
    assert talk.sent[-1].lifetime > 0


def test_a_refused_delete_is_told() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.server.delete_result = (2, 1800)
    talk.drop()
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("web", ResultCode.NOT_AUTHORIZED)]


def test_an_unanswered_delete_ends_when_the_grant_would_have_ended() -> None:
    talk = Dialogue()
    talk.want(lease=200)
    talk.run(1)
    talk.server.silent = True
    talk.drop()
    talk.run(150)
    assert not talk.of(MappingReleased)
    talk.run(60)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    deletes = talk.maps[1:]
    assert len({sent.octets for sent in deletes}) == 1
    assert len(deletes) >= 5


@pytest.mark.parametrize("seed", range(5))
def test_an_unanswered_delete_of_what_was_never_granted_ends_after_four_packets(seed: int) -> None:
    talk = Dialogue(seed=seed)
    talk.server.silent = True
    talk.want()
    talk.run(1)
    talk.drop()
    talk.run(200)
    assert [sent.lifetime for sent in talk.maps] == [3600, 0, 0, 0, 0]
    assert talk.of(MappingReleased) == [MappingReleased("web", ResultCode.NETWORK_FAILURE)]


def test_one_internal_tuple_belongs_to_one_key() -> None:
    talk = Dialogue()
    talk.want("a")
    with pytest.raises(ValueError, match="internal tuple"):
        talk.want("b")
    talk.run(1)
    assert talk.client.grant("a") is not None
    talk.want("b", protocol=Protocol.UDP)
    talk.run(1)
    assert talk.client.grant("b") is not None


def test_a_key_that_moves_to_another_tuple_leaves_the_old_one() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.want(internal_port=8081)
    assert [(sent.internal_port, sent.lifetime) for sent in talk.sent[1:]] == [(8080, 0), (8081, 3600)]
    talk.run(1)
    assert len(talk.server.mappings) == 1
    assert talk.of(MappingLost) == [MappingLost("web")]
    assert not talk.of(MappingReleased)
    assert talk.client.grant("web") is not None


HOST_A, HOST_B = IPv4Address("198.51.100.9"), IPv4Address("198.51.100.10")


def prefixes(sent: object) -> list[tuple[int, bytes]]:
    return [(data[1], data[4:]) for code, data in sent.options if code == FILTER]  # type: ignore[attr-defined]


def test_iwf_096_filters_are_replaced_on_create_and_renewal() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(remote_hosts=(HOST_A, HOST_B))
    talk.run(600)
    pair = [(0, mapped("0.0.0.0")), (128, mapped("198.51.100.9")), (128, mapped("198.51.100.10"))]
    assert len(talk.sent) >= 2
    assert all(prefixes(sent) == pair for sent in talk.sent)
    talk.drop()
    assert (talk.sent[-1].lifetime, talk.sent[-1].codes) == (0, [])


def test_other_remote_hosts_are_told_at_once_and_none_clears_them() -> None:
    talk = Dialogue()
    wanted = talk.want(remote_hosts=(HOST_A,))
    talk.run(1)
    for hosts, expected in (((HOST_B,), 2), ((), 1)):
        talk.client.want(replace(wanted, remote_hosts=hosts), talk.now)
        talk.flush()
        assert len(prefixes(talk.sent[-1])) == expected
        assert prefixes(talk.sent[-1])[0][0] == 0
        talk.run(1)
    assert len(talk.sent) == 3


def test_more_remote_hosts_than_a_packet_holds_are_left_to_the_router() -> None:
    talk = Dialogue()
    hosts = tuple(IPv4Address(0xC6336400 + n) for n in range(36))
    talk.want(internal_address=HOST, remote_hosts=hosts[:35], description="x" * 200)
    assert len(talk.sent[0].octets) <= 1100
    assert len(prefixes(talk.sent[0])) == 36
    talk.want("more", internal_port=9, remote_hosts=hosts)
    assert prefixes(talk.sent[1]) == []


def test_iwf_037_a_long_description_is_cut_on_the_wire() -> None:
    talk = Dialogue()
    talk.want(description="µ" * 100)
    assert talk.sent[0].options[-1] == (DESCRIPTION, "µ".encode() * 64)


def test_who_wants_a_tuple_that_is_being_deleted_hears_of_a_standing_refusal() -> None:
    talk = Dialogue()
    talk.want("a")
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 600)}
    talk.want("full", internal_port=81, external_port=81)
    talk.run(1)
    talk.drop("a")
    talk.want("b")
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("a", 0)]
    assert [(event.key, event.result) for event in talk.of(MappingRefused)] == [("full", 8), ("b", 8)]
    talk.drop("b")
    assert [event.key for event in talk.of(MappingReleased)] == ["a", "b"]


def test_an_exact_wish_without_a_port_takes_any_and_keeps_it() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(external_port=0)
    talk.run(1)
    talk.want(external_port=0)
    talk.run(600)
    assert [sent.suggested_port for sent in talk.sent[:2]] == [0, 8080]
    assert all(sent.lifetime for sent in talk.sent)


def test_a_mapping_that_the_server_calls_gone_is_asked_for_again() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(100)
    talk.deliver(answer(talk.sent[0].octets, epoch=talk.server.epoch(talk.now), lifetime=0))
    talk.run(1)
    assert [sent.lifetime for sent in talk.sent] == [4294967295, 4294967295]
    assert not talk.of(MappingLost)


def test_what_is_ignored_is_counted_by_its_reason() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.want()
    good = answer(talk.sent[0].octets, epoch=5)
    talk.deliver(good[:24] + bytes(12) + good[36:])
    talk.deliver(good[:41] + b"\x01" + good[42:])
    talk.deliver(good, (OWN, 5351))
    assert talk.client.counters == {
        "sent": 1, "received": 3, "wrong_nonce": 1, "no_match": 1, "wrong_source": 1,
    }  # fmt: skip


def test_a_lease_that_is_over_is_not_asked_for() -> None:
    talk = Dialogue()
    talk.want(lease=-1)
    talk.run(10)
    assert talk.sent == []
    talk.want(lease=60)
    assert len(talk.sent) == 1


def test_a_create_is_not_repeated_after_its_lease() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.want(lease=20)
    talk.run(100)
    assert max(sent.at for sent in talk.maps) < 1020


def test_what_was_given_back_is_dropped_without_a_packet() -> None:
    talk = Dialogue()
    talk.server.port = 8081
    talk.want()
    talk.run(1)
    talk.drop()
    assert len(talk.sent) == 2
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]


def test_each_drop_is_answered_once() -> None:
    talk = Dialogue(rtt=0.5)
    talk.want()
    talk.run(1)
    talk.drop()
    talk.drop()
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    talk.drop()
    assert len(talk.of(MappingReleased)) == 2


def test_a_drop_without_a_network_ends_all_the_same() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.want()
    talk.client.address_changed(None, talk.now)
    talk.drop()
    talk.run(60)
    assert talk.of(MappingReleased) == [MappingReleased("web", ResultCode.NETWORK_FAILURE)]
    assert len(talk.sent) == 1


def test_so_does_the_drop_of_a_mapping_known_from_before_of_which_nothing_could_be_sent() -> None:
    talk = Dialogue()
    talk.client.address_changed(None, talk.now)
    talk.want(nonce=NONCE)
    talk.drop()
    talk.run(60)
    assert talk.of(MappingReleased) == [MappingReleased("web", ResultCode.NETWORK_FAILURE)]
    assert talk.sent == []


def test_a_wish_made_before_the_network_is_there_waits_for_it() -> None:
    client = PcpClient(server=SERVER, server_identity="wan", secret=b"secret", rng=random.Random(1))
    client.want(wanted_mapping(nonce=NONCE), 0.0)
    assert client.datagrams_to_send(0.0) == []
    client.address_changed(OWN, 0.0)
    assert [octets[24:] for octets in client.datagrams_to_send(0.0)] == [VECTORS["V2 request"][24:]]


def test_two_clients_with_one_secret_agree_on_nonces_per_server() -> None:
    def nonce(identity: str) -> bytes:
        client = PcpClient(server=SERVER, server_identity=identity, secret=b"secret", rng=random.Random())
        client.address_changed(OWN, 0.0)
        client.want(wanted_mapping(), 0.0)
        return client.datagrams_to_send(0.0)[0][24:36]

    assert nonce("wan") == nonce("wan") != nonce("wan2")


def test_another_suggestion_is_sent_at_once_while_nothing_is_granted() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.want(exact=False)
    talk.want(exact=False, external_port=9090)
    assert [sent.suggested_port for sent in talk.sent] == [8080, 9090]


def test_what_was_assigned_is_suggested_when_the_mapping_is_lost() -> None:
    talk = Dialogue()
    talk.server.port, talk.server.longest = 9090, 120
    talk.want(exact=False, lease=None)
    talk.run(1)
    talk.server.silent = True
    talk.run(125)
    assert talk.of(MappingLost)
    assert (talk.maps[-1].suggested_port, talk.maps[-1].suggested_address) == (9090, EXTERNAL)


@pytest.mark.parametrize(
    ("result", "packets"), [(ResultCode.USER_EX_QUOTA, 1), (ResultCode.CANNOT_PROVIDE_EXTERNAL, 0)]
)
def test_what_was_over_the_quota_is_asked_for_again_once_something_was_given_back(result: int, packets: int) -> None:
    talk = Dialogue()
    talk.want("held")
    talk.run(1)
    talk.server.refuse = {0: (result, 600)}
    talk.want("more", internal_port=81, external_port=81)
    talk.run(1)
    talk.drop("more")
    talk.server.refuse = {}
    talk.drop("held")
    talk.run(1)
    before = len(talk.sent)
    talk.want("again", internal_port=81, external_port=81)
    assert len(talk.sent) - before == packets
