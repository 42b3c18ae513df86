# SPDX-License-Identifier: Apache-2.0
"""Remote hosts that a server does not let in, or keep out: what is left of the mapping, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingLost, MappingRefused
from igdpcp.pcp.conduct import Conduct
from igdpcp.pcp.message import ResultCode
from tests.pcp.test_pcp_remote_hosts import EXCESSIVE, AddingServer, X, Y, Z, filters, granted, hosts
from tests.support.pcp_script import FILTER, Dialogue, Sent, answer, mapped

Script = Callable[[Sent], list[bytes] | None]
INSISTING = Conduct(insists_on=frozenset([FILTER]))
CLEARED = [(0, mapped("0.0.0.0"))]


def holding(most: int, talk: Dialogue) -> Script:
    """A server that has room for that many remote hosts of a mapping."""
    return lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=EXCESSIVE, lifetime=1800)]
        if len(hosts(sent)) > most
        else None
    )


def repeating(kept: IPv4Address, talk: Dialogue) -> Script:
    """A server whose success repeats the FILTER of no other remote host."""

    def script(sent: Sent) -> list[bytes]:
        reply = answer(sent.octets, epoch=talk.server.epoch(sent.at))
        octets = reply[:60]
        for code, data in sent.options:
            if code != FILTER or data[1] == 0 or data[4:20] == mapped(str(kept)):
                octets += bytes([code, 0]) + len(data).to_bytes(2, "big") + data + bytes(-len(data) % 4)
        return [octets]

    return script


def outcomes(talk: Dialogue) -> list[type]:
    kinds = (MappingGranted, MappingRefused, MappingLost)
    return [type(event) for _, event in talk.events if isinstance(event, kinds)]


def test_iwf_097_who_is_refused_while_the_grant_is_in_doubt_does_not_cost_the_others_theirs() -> None:
    talk = Dialogue(conduct=INSISTING)
    talk.server.scripted = holding(1, talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.deliver(answer(bytes([2, 0]) + bytes(22), epoch=0))
    for wanted in (X, Y), (X,):
        talk.want(remote_hosts=wanted, lease=None)
        talk.run(1)
    assert outcomes(talk) == [MappingGranted, MappingRefused, MappingGranted]
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y], [X]]


def test_iwf_097_what_is_refused_again_for_those_who_had_it_is_lost() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.server.refuse = {0: (ResultCode.CANNOT_PROVIDE_EXTERNAL, 1800)}
    talk.deliver(answer(bytes([2, 0]) + bytes(22), epoch=0))
    talk.run(30)
    assert outcomes(talk)[:3] == [MappingGranted, MappingRefused, MappingLost]


def test_iwf_097_who_leaves_while_the_grant_is_in_doubt_may_end_it() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.deliver(answer(bytes([2, 0]) + bytes(22), epoch=0))
    talk.server.refuse = {0: (ResultCode.CANNOT_PROVIDE_EXTERNAL, 1800)}
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    assert outcomes(talk) == [MappingGranted, MappingRefused, MappingLost]


@pytest.mark.parametrize("joined", [(X, Y), ()], ids=["another", "everybody"])
def test_iwf_097_174_what_is_renewed_without_filters_has_those_before_until_they_are_cleared(
    joined: tuple[IPv4Address, ...],
) -> None:
    talk = Dialogue()
    talk.server.longest = 1000
    talk.server.scripted = holding(1, talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.want("other", internal_port=9, external_port=9, remote_hosts=(Y, Z), lease=None)
    talk.run(700)
    assert (talk.maps[-1].internal_port, filters(talk.maps[-1])) == (8080, [])
    talk.want(remote_hosts=joined, lease=None)
    talk.run(1)
    assert (filters(talk.maps[-1]), granted(talk)[-1]) == (CLEARED, ())


@pytest.mark.parametrize("insists", [True, False])
def test_iwf_097_174_what_lets_everybody_in_ends_where_nobody_keeps_them_out(insists: bool) -> None:
    talk = Dialogue(conduct=INSISTING if insists else Conduct())
    talk.server.refuse = {FILTER: (ResultCode.UNSUPP_OPTION, 1800)}
    talk.want(remote_hosts=(), lease=None)
    talk.run(1)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(10)
    assert (len(talk.server.mappings), MappingLost in outcomes(talk)) == ((0, True) if insists else (1, False))


def test_iwf_097_who_is_refused_does_not_end_what_lets_nobody_else_in() -> None:
    talk = Dialogue(conduct=INSISTING)
    talk.server.scripted = holding(1, talk)
    for wanted in (X,), (X, Y):
        talk.want(remote_hosts=wanted, lease=None)
        talk.run(1)
    assert (outcomes(talk), len(talk.maps)) == ([MappingGranted, MappingRefused], 2)


@pytest.mark.parametrize("repeats", [True, False])
def test_iwf_097_a_late_word_for_everybody_is_no_answer_for_some(repeats: bool) -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(), lease=None)
    talk.run(1)
    talk.server.silent = True
    talk.want(remote_hosts=(X,), lease=None)
    late = answer(talk.maps[0].octets, epoch=talk.server.epoch(talk.now))
    talk.deliver(late)
    assert (granted(talk), talk.client.counters["late"]) == ([()], 1)
    talk.server.silent = False
    if not repeats:
        talk.server.scripted = lambda sent: [answer(sent.octets[:60], epoch=talk.server.epoch(sent.at))]
    talk.run(3.5)
    assert ([hosts(sent) for sent in talk.maps], granted(talk)) == ([[], [X], [X]], [(), (X,)])


def test_iwf_097_a_refusal_stands_whoever_came_first() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NOT_AUTHORIZED, 1800)}
    for wanted in (X, Y), (X,), (Y, X):
        talk.want(remote_hosts=wanted, lease=None)
        talk.run(1)
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y]]


def test_iwf_097_174_what_is_deleted_for_its_filters_is_in_doubt_until_it_is_there_again() -> None:
    talk = Dialogue()
    AddingServer(talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.want(remote_hosts=(), lease=None)
    assert (talk.sent[-1].lifetime, talk.client.doubts("web")) == (0, True)
    talk.run(1)
    assert (granted(talk)[-1], talk.client.doubts("web")) == ((), False)


@pytest.mark.parametrize("insists", [True, False])
@pytest.mark.parametrize("before", [(), (X,)], ids=["new", "held"])
def test_iwf_097_174_a_success_that_repeats_too_few_filters_says_that_they_are_too_many(
    insists: bool, before: tuple[IPv4Address, ...]
) -> None:
    talk = Dialogue(conduct=INSISTING if insists else Conduct())
    talk.server.scripted = repeating(X, talk)
    if before:
        talk.want(remote_hosts=before, lease=None)
        talk.run(1)
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(3.5)
    assert ([sent.lifetime for sent in talk.maps].count(0), MappingLost in outcomes(talk)) == (not before, False)
    if insists:
        assert outcomes(talk)[-1] is MappingRefused
    else:
        assert (filters(talk.maps[-1]), granted(talk)[-1]) == (CLEARED if before else [], ())


@pytest.mark.parametrize("kept", [X, Y], ids=["the one before", "the new one"])
def test_iwf_097_those_before_are_asked_for_again_unless_the_server_has_just_them(kept: IPv4Address) -> None:
    talk = Dialogue(conduct=INSISTING)
    talk.server.scripted = repeating(kept, talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(3.5)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    assert outcomes(talk) == [MappingGranted, MappingRefused, MappingGranted]
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y], [X, Y], *([] if kept == X else [[X]])]
