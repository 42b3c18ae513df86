# SPDX-License-Identifier: Apache-2.0
"""A server that stops, comes back, restarts or cannot be used; and another address of our own."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import (
    MappingGranted,
    MappingLost,
    MappingRefused,
    MappingReleased,
    ServerState,
    ServerStateChanged,
    StateLossDetected,
)
from igdpcp.pcp.liveness import PROBE_INTERVAL_MAX
from tests.support.pcp_script import OWN, PREFER_FAILURE, SERVER, THIRD_PARTY, Dialogue, answer, mapped
from tests.vectors.pcp_vectors import VECTORS

NEW_OWN = IPv4Address("100.64.99.99")
HOST = IPv4Address("192.168.1.50")


def states(talk: Dialogue) -> list[tuple[ServerState, str]]:
    return [(event.state, event.reason) for event in talk.of(ServerStateChanged)]


def test_an_announcement_finds_the_server() -> None:
    talk = Dialogue()
    assert talk.client.state is ServerState.PROBING
    talk.client.announce(talk.now)
    talk.flush()
    assert [sent.octets for sent in talk.sent] == [VECTORS["V1 request"]]
    talk.run(60)
    assert states(talk) == [(ServerState.ACTIVE, "answers")]
    assert talk.client.last_epoch == 87000
    assert len(talk.sent) == 1


def test_four_unanswered_announcements_and_the_last_timeout_make_it_lost() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.client.announce(talk.now)
    talk.flush()
    talk.run(44.9)
    assert len(talk.sent) == 4
    assert talk.client.state is ServerState.PROBING
    talk.run(0.2)
    assert states(talk) == [(ServerState.LOST, "4 transmissions unanswered")]


def test_a_burst_of_unanswered_requests_is_not_enough_without_the_silence() -> None:
    talk = Dialogue()
    talk.server.silent = True
    for port in range(8000, 8010):
        talk.want(str(port), internal_port=port, external_port=port)
    talk.run(40)
    assert talk.client.state is ServerState.PROBING
    talk.run(6)
    assert talk.client.state is ServerState.LOST


def test_an_answer_to_any_mapping_keeps_the_server_active() -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: [] if sent.internal_port == 81 else None
    talk.want("deaf", internal_port=81, external_port=81)
    for n in range(20):
        talk.run(10)
        talk.want(f"m{n}", internal_port=9000 + n, external_port=9000 + n)
    assert states(talk) == [(ServerState.ACTIVE, "answers")]


def test_a_lost_server_is_probed_slower_and_slower_but_every_quarter_of_an_hour() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.client.announce(talk.now)
    talk.flush()
    talk.run(20000)
    gaps = [b - a for a, b in itertools.pairwise(talk.times())]
    assert all(gap >= 2.7 for gap in gaps)
    assert max(gaps) <= 900.01
    assert gaps[-1] == pytest.approx(900, abs=90)


def test_a_lost_server_that_answers_gets_all_that_waits() -> None:
    talk = Dialogue()
    talk.server.silent = True
    for port in range(8000, 8100):
        talk.want(str(port), internal_port=port, external_port=port, lease=None)
    talk.run(600)
    assert talk.client.state is ServerState.LOST
    talk.server.silent = False
    talk.run(900)
    since = next(at for at, event in talk.events if event == ServerStateChanged(ServerState.ACTIVE, "answers"))
    granted = [at - since for at, event in talk.events if isinstance(event, MappingGranted)]
    assert len(granted) == 100
    assert max(granted) <= 5
    after = [sent.at for sent in talk.sent if sent.at >= since]
    assert all(sum(start <= at < start + 1 for at in after) <= 26 for start in after)


def test_packets_to_a_lost_server_keep_their_distance() -> None:
    talk = Dialogue()
    talk.server.silent = True
    for port in range(8000, 8050):
        talk.want(str(port), internal_port=port, external_port=port, lease=None)
    talk.run(46)
    lost_at = talk.events[-1][0]
    talk.run(2000)
    times = [sent.at for sent in talk.sent if sent.at > lost_at]
    assert all(b - a >= 2.999 for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("name", ["V13 natpmp refusal as drawn", "V13 natpmp refusal as sent"])
def test_a_natpmp_server_is_lost_and_the_reason_says_so(name: str) -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: [VECTORS[name]]
    talk.want()
    talk.run(299)
    assert states(talk) == [(ServerState.LOST, "answers with NAT-PMP only")]
    assert not talk.client.usable
    assert len(talk.sent) == 1
    talk.want("later", internal_port=81)
    assert [(event.key, event.result) for event in talk.of(MappingRefused)] == [("web", 1), ("later", 1)]
    talk.server.scripted = None
    talk.run(10)
    assert states(talk)[-1] == (ServerState.ACTIVE, "answers")
    assert talk.client.grant("web") is not None
    assert talk.client.grant("later") is not None


def test_a_refusal_that_nobody_asked_for_is_ignored() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    for octets in (VECTORS["V13 natpmp refusal as drawn"], bytes.fromhex("0181000100000708") + bytes(16)):
        talk.deliver(octets)
    assert talk.client.state is ServerState.ACTIVE
    assert talk.client.counters["no_match"] == 2


def test_iwf_017_no_version_but_two_is_ever_sent() -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: [b"\x01" + answer(sent.octets, epoch=9, result=1, lifetime=60)[1:24]]
    talk.want(lease=None)
    talk.run(3600)
    assert states(talk) == [(ServerState.LOST, "UNSUPP_VERSION, offers version 1")]
    assert not talk.client.usable
    assert {sent.octets[0] for sent in talk.sent} == {2}
    assert 2 <= len(talk.sent) <= 130
    assert all(b - a >= 2.99 for a, b in itertools.pairwise(talk.times()))


@pytest.mark.parametrize(("result", "reason"), [(4, "UNSUPP_OPCODE"), (12, "ADDRESS_MISMATCH")])
@pytest.mark.parametrize("whole", [True, False])
def test_iwf_014_a_server_that_cannot_be_used_gets_no_map_for_the_error_lifetime(
    result: int, reason: str, whole: bool
) -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=9, result=result, lifetime=600)[: 1100 if whole else 24]] if sent.is_map else None
    )
    talk.want(lease=None)
    talk.run(590)
    assert states(talk) == [(ServerState.LOST, reason)]
    assert len(talk.maps) == 1
    assert [event.result for event in talk.of(MappingRefused)] == [result]
    talk.want("b", internal_port=81)
    assert len(talk.maps) == 1
    talk.server.scripted = None
    talk.run(100)
    assert talk.client.state is ServerState.ACTIVE
    assert talk.client.grant("web") is not None


def test_a_server_that_refused_everything_and_fell_silent_is_asked_at_the_slowest_pace() -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: [answer(sent.octets, epoch=9, result=12, lifetime=600)]
    talk.want(lease=None)
    talk.run(10)
    talk.drop()
    talk.server.silent, talk.server.scripted = True, None
    talk.run(3000)
    asked = [sent.at for sent in talk.sent if not sent.is_map]
    assert len(asked) == 3
    assert all(b - a >= 0.9 * PROBE_INTERVAL_MAX for a, b in itertools.pairwise(asked))


def test_an_announce_answer_does_not_make_a_server_without_map_active() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (4, 600)}
    talk.want()
    talk.run(10)
    talk.client.announce(talk.now)
    talk.run(10)
    assert talk.client.counters["received"] == 2
    assert talk.client.state is ServerState.LOST


def test_iwf_194_a_restarted_server_gets_its_mappings_back_after_at_most_five_seconds() -> None:
    talk = Dialogue()
    talk.server.longest = 7200
    for port in (8080, 8081, 8082):
        talk.want(str(port), internal_port=port, external_port=port, lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.run(3)
    announced_at = talk.now
    talk.deliver(VECTORS["V1 unsolicited response"])
    assert talk.of(StateLossDetected) == [StateLossDetected(3)]
    talk.run(6)
    again = talk.maps[3:]
    assert [sent.internal_port for sent in again] == [8080, 8081, 8082]
    assert all(0 <= sent.at - announced_at <= 5.2 for sent in again)
    assert all(sent.codes == [PREFER_FAILURE] and sent.suggested_port == sent.internal_port for sent in again)
    assert all(sent.suggested_address == mapped("203.0.113.77") for sent in again)
    assert len(talk.server.mappings) == 3
    assert not talk.of(MappingLost)


def test_recovery_repeats_what_is_not_answered() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.server.drop = 1
    talk.deliver(VECTORS["V1 unsolicited response"])
    talk.run(10)
    assert len(talk.maps) == 3
    assert len(talk.server.mappings) == 1


def test_iwf_198_a_renewal_that_shows_a_restart_recreates_the_others_only() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want("a", lease=None)
    talk.run(200)
    talk.want("b", internal_port=81, external_port=81, lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.run(190)
    assert [sent.internal_port for sent in talk.maps] == [8080, 81, 8080, 81]
    assert len(talk.of(StateLossDetected)) == 1


def test_a_mapping_that_is_refused_in_recovery_is_lost() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.server.refuse = {0: (11, 1800)}
    talk.deliver(VECTORS["V1 unsolicited response"])
    talk.run(10)
    assert talk.of(MappingLost) == [MappingLost("web")]
    assert [event.result for event in talk.of(MappingRefused)] == [11]


def test_iwf_188_195_an_epoch_that_fits_or_comes_from_elsewhere_changes_nothing() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(100)
    fitting = bytearray(VECTORS["V1 unsolicited response"])
    fitting[8:12] = talk.server.epoch(talk.now).to_bytes(4, "big")
    talk.deliver(bytes(fitting))
    for source in ((IPv4Address("192.0.2.2"), 5351), (SERVER[0], 5350), ("fe80::1%eth0", 5351), ("nonsense", 5351)):
        talk.deliver(VECTORS["V1 unsolicited response"], source)
    talk.run(10)
    assert len(talk.sent) == 1
    assert not talk.of(StateLossDetected)
    assert talk.client.counters["wrong_source"] == 4


def test_iwf_198_errors_carry_an_epoch_too() -> None:
    talk = Dialogue()
    talk.want("a", lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=1, result=10, lifetime=30)] if sent.internal_port == 81 else None
    )
    talk.want("b", internal_port=81, external_port=81)
    talk.run(10)
    assert [sent.internal_port for sent in talk.maps] == [8080, 81, 8080]


def test_a_new_address_of_ours_recreates_all_from_there() -> None:
    talk = Dialogue()
    talk.want("own", lease=None)
    talk.want("host", internal_address=HOST, internal_port=81, external_port=81, lease=None)
    talk.run(1)
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(1)
    again = talk.maps[2:]
    assert sorted((sent.internal_port, tuple(sent.codes)) for sent in again) == [
        (81, (THIRD_PARTY, PREFER_FAILURE)),
        (8080, (PREFER_FAILURE,)),
    ]
    assert all(sent.octets[8:24] == mapped("100.64.99.99") for sent in again)
    assert talk.client.grant("own") is not None
    talk.want("own", internal_address=NEW_OWN, lease=None)
    assert len(talk.maps) == 4, "the tuple was moved already"


def test_the_same_address_again_changes_nothing() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.client.address_changed(OWN, talk.now)
    talk.run(10)
    assert len(talk.sent) == 1


def test_without_a_network_nothing_is_sent_and_afterwards_all_is() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(lease=None)
    talk.run(1)
    talk.client.address_changed(None, talk.now)
    talk.want("b", internal_port=81, external_port=81, lease=None)
    talk.client.announce(talk.now)
    talk.run(700)
    assert len(talk.sent) == 1
    assert talk.of(MappingLost) == [MappingLost("web")]
    talk.client.address_changed(OWN, talk.now)
    talk.run(10)
    assert {sent.internal_port for sent in talk.maps[1:]} == {81, 8080}
    assert talk.client.grant("web") is not None
    assert talk.client.grant("b") is not None


def test_a_delete_that_belongs_to_the_old_address_is_given_up() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(1)
    talk.server.silent = True
    talk.drop()
    talk.run(1)
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(100)
    assert talk.of(MappingReleased) == [MappingReleased("web", 7)]
    assert len(talk.maps) == 2


def test_refusals_of_the_old_network_do_not_count_in_the_new_one() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (12, 1800)}
    talk.want(lease=None)
    talk.run(1)
    assert talk.client.state is ServerState.LOST
    talk.server.refuse = {}
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(10)
    assert talk.client.state is ServerState.ACTIVE
    assert talk.client.grant("web") is not None


def test_a_version_refusal_is_told_to_all_that_wait_and_leaves_nothing_to_delete() -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: [VECTORS["V13 natpmp refusal as sent"]]
    talk.want()
    talk.run(1)
    assert [(event.key, event.result) for event in talk.of(MappingRefused)] == [("web", 1)]
    talk.drop()
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]
    assert len(talk.sent) == 1


def test_a_delete_is_told_as_soon_as_a_lost_server_is_back() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.server.silent = True
    talk.drop()
    talk.run(3000)
    assert talk.client.state is ServerState.LOST
    talk.server.silent = False
    talk.client.announce(talk.now)
    talk.run(5)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]


def test_a_port_refused_at_the_old_address_is_asked_for_at_the_new_one() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (11, 1800)}
    talk.want()
    talk.run(1)
    talk.server.refuse = {}
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(1)
    assert talk.client.grant("web") is not None


def test_a_delete_for_a_lan_host_goes_on_from_the_new_address() -> None:
    talk = Dialogue()
    talk.want(internal_address=HOST)
    talk.run(1)
    talk.server.silent = True
    talk.drop()
    talk.run(0.1)
    talk.server.silent = False
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(1)
    assert talk.sent[-1].octets[8:24] == mapped("100.64.99.99")
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]


def test_a_mapping_that_is_refused_at_the_new_address_is_lost() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.server.refuse = {0: (11, 1800)}
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(5)
    assert talk.of(MappingLost) == [MappingLost("web")]
