# SPDX-License-Identifier: Apache-2.0
"""What a silence proves: when a server is LOST, when it has to be asked, and what says nothing about it."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingLost, ServerState, ServerStateChanged
from igdpcp.pcp.liveness import PROBE_INTERVAL_MAX
from igdpcp.pcp.message import ResultCode
from igdpcp.pcp.timing import Timing
from tests.support.pcp_script import OWN, Dialogue, Sent, answer

NEW_OWN = IPv4Address("100.64.99.99")
PATIENCE, LAST_CHANCE = Timing().patience, Timing().last_chance
LOST = ServerStateChanged(ServerState.LOST, "4 transmissions unanswered")


def held(lifetime: int = 7200) -> Dialogue:
    """One mapping that is renewed, at a server that is ACTIVE."""
    talk = Dialogue()
    talk.server.longest = lifetime
    talk.want(lease=None)
    talk.run(1)
    return talk


def until_a_packet_is_lost(talk: Dialogue) -> None:
    sent = len(talk.sent)
    talk.server.drop = 1
    while len(talk.sent) == sent:
        talk.run(0.5)


def burst(talk: Dialogue, count: int, nonce: bytes = b"") -> None:
    for port in range(9000, 9000 + count):
        talk.want(str(port), internal_port=port, external_port=port, lease=None, nonce=nonce)


def states(talk: Dialogue) -> list[ServerState]:
    return [event.state for event in talk.of(ServerStateChanged)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("later", [1, PATIENCE - 1, PATIENCE + 0.01, 600])
def test_a_lost_renewal_and_a_burst_afterwards_do_not_make_a_server_lost_that_answers(later: float) -> None:
    talk = held()
    until_a_packet_is_lost(talk)
    talk.run(later)
    burst(talk, 3)
    talk.run(1)
    assert states(talk) == [ServerState.ACTIVE]
    assert len(talk.of(MappingGranted)) >= 4


def test_a_burst_late_in_a_silence_waits_for_three_transmissions() -> None:
    talk = held()
    talk.server.silent = True
    until_a_packet_is_lost(talk)
    talk.run(PATIENCE - 1)
    burst(talk, 3)
    since = talk.now
    talk.run(LAST_CHANCE - 0.01)
    assert states(talk) == [ServerState.ACTIVE]
    assert len([sent for sent in talk.maps if sent.at >= since]) == 9
    talk.run(0.1)
    assert states(talk) == [ServerState.ACTIVE, ServerState.LOST]


def test_a_renewal_that_nobody_answers_makes_us_ask_and_the_answer_settles_it() -> None:
    talk = held()
    for _ in range(2):
        until_a_packet_is_lost(talk)
        renewed = talk.sent[-1].at
        talk.run(100)
        asked = [sent.at - renewed for sent in talk.sent if not sent.is_map and sent.at > renewed]
        assert asked == [pytest.approx(PATIENCE)]
    assert states(talk) == [ServerState.ACTIVE]


def test_a_server_that_stopped_is_lost_two_silences_after_the_first_renewal() -> None:
    talk = held()
    talk.server.silent = True
    until_a_packet_is_lost(talk)
    renewed = talk.sent[-1].at
    talk.run(2 * PATIENCE - 1)
    assert states(talk) == [ServerState.ACTIVE]
    talk.run(1)
    assert [at for at, event in talk.events if event == LOST] == [renewed + 2 * PATIENCE]


def test_however_much_is_sent_to_a_silent_server_it_is_lost_after_one_silence() -> None:
    talk = held()
    talk.server.silent = True
    since = talk.now
    for second in range(int(PATIENCE) + 1):
        talk.want(str(second), internal_port=9000 + second, external_port=9000 + second)
        talk.run(1)
    assert [at for at, event in talk.events if isinstance(event, ServerStateChanged)][1:] == [since + PATIENCE]


def test_without_a_network_no_silence_counts() -> None:
    talk = Dialogue()
    talk.server.silent = True
    talk.want(lease=None)
    talk.run(PATIENCE - 1)
    talk.client.address_changed(None, talk.now)
    talk.run(600)
    assert states(talk) == []
    talk.client.address_changed(OWN, talk.now)
    talk.run(PATIENCE - 1)
    assert states(talk) == []
    talk.run(1)
    assert states(talk) == [ServerState.LOST]


@pytest.mark.parametrize("down", [0, 600])
def test_iwf_016_at_another_address_of_ours_the_server_is_asked_before_it_is_active(down: float) -> None:
    talk = held()
    talk.server.silent = True
    if down:
        talk.client.address_changed(None, talk.now)
        talk.run(down)
    talk.client.address_changed(NEW_OWN, talk.now)
    assert (talk.client.state, talk.client.since) == (ServerState.PROBING, talk.now)
    talk.run(10)
    assert talk.client.state is ServerState.PROBING
    assert [sent.is_map for sent in talk.sent if sent.at == 1001 + down] == [False, True]
    talk.server.silent = False
    talk.run(20)
    assert states(talk) == [ServerState.ACTIVE, ServerState.PROBING, ServerState.ACTIVE]


def test_a_server_that_is_silent_towards_the_new_address_is_lost_after_one_silence() -> None:
    talk = held()
    talk.server.silent = True
    talk.client.address_changed(NEW_OWN, talk.now)
    talk.run(PATIENCE - 0.1)
    assert states(talk)[-1] is ServerState.PROBING
    talk.run(0.2)
    assert states(talk)[-1] is ServerState.LOST


def test_the_address_of_before_the_outage_leaves_the_server_as_it_was() -> None:
    talk = held()
    talk.client.address_changed(None, talk.now)
    talk.run(5)
    talk.client.address_changed(OWN, talk.now)
    talk.run(5)
    assert states(talk) == [ServerState.ACTIVE]
    assert not talk.of(MappingLost)


def refuses_all(talk: Dialogue, result: int, lifetime: int) -> None:
    def refuse(sent: Sent) -> list[bytes]:
        return [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=result, lifetime=lifetime)]

    talk.server.scripted = refuse


@pytest.mark.parametrize("result", [ResultCode.ADDRESS_MISMATCH, ResultCode.UNSUPP_VERSION, ResultCode.UNSUPP_OPCODE])
def test_a_server_that_refuses_everything_for_0_seconds_is_asked_ever_less_but_every_quarter_of_an_hour(
    result: int,
) -> None:
    talk = Dialogue()
    refuses_all(talk, result, 0)
    burst(talk, 20)
    talk.run(7200)
    sent = len(talk.sent)
    talk.run(7200)
    assert sent <= 60
    assert 8 <= len(talk.sent) - sent <= 16
    assert max(later - earlier for earlier, later in itertools.pairwise(talk.times())) <= PROBE_INTERVAL_MAX + 5


def asked_again_after(talk: Dialogue, result: int) -> float:
    """How long mappings of an earlier process wait when the server refuses everything, for 0 seconds, from now on."""
    refuses_all(talk, result, 0)
    burst(talk, 20, nonce=b"n" * 12)
    talk.run(1)
    sent, since = len(talk.sent), talk.sent[-1].at
    talk.run(3600)
    return talk.sent[sent].at - since


def test_many_refusals_at_one_moment_count_as_one() -> None:
    assert asked_again_after(Dialogue(), ResultCode.ADDRESS_MISMATCH) == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("then", ["granted", "another address"])
def test_a_server_that_worked_meanwhile_or_is_asked_from_elsewhere_starts_with_a_short_refusal(then: str) -> None:
    talk = Dialogue()
    refuses_all(talk, ResultCode.ADDRESS_MISMATCH, 0)
    talk.want(lease=None)
    talk.run(300)
    if then == "granted":
        talk.server.scripted = None
        talk.run(900)
        assert talk.client.grant("web") is not None
    else:
        talk.client.address_changed(NEW_OWN, talk.now)
        talk.client.drop("web", talk.now)
    assert asked_again_after(talk, ResultCode.ADDRESS_MISMATCH) == pytest.approx(5, abs=0.1)
