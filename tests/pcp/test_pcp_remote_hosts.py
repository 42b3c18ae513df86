# SPDX-License-Identifier: Apache-2.0
"""A mapping whose remote hosts change while it is held: which answer is for whom."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingLost, MappingRefused
from igdpcp.pcp.conduct import Conduct
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import FILTER, Dialogue, Sent, answer, mapped

X, Y, Z = IPv4Address("198.51.100.9"), IPv4Address("198.51.100.10"), IPv4Address("198.51.100.11")
EXCESSIVE = ResultCode.EXCESSIVE_REMOTE_PEERS


def filters(sent: Sent) -> list[tuple[int, bytes]]:
    """Prefix length and address of each."""
    return [(data[1], data[4:20]) for code, data in sent.options if code == FILTER]


def hosts(sent: Sent) -> list[IPv4Address]:
    return [IPv4Address(address[12:]) for prefix, address in filters(sent) if prefix == 128]


def granted(talk: Dialogue) -> list[tuple[IPv4Address, ...]]:
    return [event.remote_hosts for event in talk.of(MappingGranted)]  # type: ignore[attr-defined]


def test_iwf_097_the_event_says_for_whom_it_is() -> None:
    talk = Dialogue()
    for wanted in (X,), (X, Y), (Y,), ():
        talk.want(remote_hosts=wanted)
        talk.run(1)
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y], [Y], []]
    assert all(filters(sent)[0][0] == 0 for sent in talk.maps)
    assert granted(talk) == [(X,), (X, Y), (Y,), ()]
    assert not talk.of(MappingLost)


def test_iwf_097_a_late_answer_about_those_before_is_not_the_answer() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.silent = True
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.deliver(answer(talk.maps[0].octets, epoch=talk.server.epoch(talk.now)))
    assert (granted(talk), talk.client.counters["late"]) == ([(X,)], 1)
    talk.server.silent = False
    talk.run(10)
    assert (hosts(talk.maps[-1]), granted(talk)) == ([X, Y], [(X,), (X, Y)])


@pytest.mark.parametrize("before", [(), (X,)], ids=["new", "held"])
def test_iwf_097_the_answer_to_who_joined_last_is_not_the_answer_to_who_joins_now(before: tuple[IPv4Address]) -> None:
    talk = Dialogue()
    if before:
        talk.want(remote_hosts=before, lease=None)
        talk.run(1)
    talk.server.silent = True
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.want(remote_hosts=(X, Y, Z), lease=None)
    talk.deliver(answer(talk.maps[-2].octets, epoch=talk.server.epoch(talk.now)))
    assert [hosts(sent) for sent in talk.maps[-2:]] == [[X, Y], [X, Y, Z]]
    assert (granted(talk), talk.client.counters["late"]) == ([before] if before else [], 1)
    talk.server.silent = False
    talk.run(10)
    assert (hosts(talk.maps[-1]), granted(talk)[-1]) == ([X, Y, Z], (X, Y, Z))


@pytest.mark.parametrize("result", [ResultCode.SUCCESS, ResultCode.CANNOT_PROVIDE_EXTERNAL, EXCESSIVE])
def test_iwf_097_a_late_word_about_who_left_does_not_end_asking_for_those_who_stay(result: int) -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.silent = True
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.want(remote_hosts=(X,), lease=None)
    talk.deliver(answer(talk.maps[1].octets, epoch=talk.server.epoch(talk.now), result=result, lifetime=1800))
    talk.server.silent = False
    talk.run(10)
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y], [X], [X]]
    assert (granted(talk), talk.of(MappingRefused)) == ([(X,), (X,)], [])
    assert talk.client.counters["late"] == 1


def test_iwf_097_what_is_taken_back_after_a_refusal_costs_no_packet() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X,))
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NOT_AUTHORIZED, 1800)}
    talk.want(remote_hosts=(X, Y))
    talk.run(1)
    talk.want(remote_hosts=(X,))
    talk.run(1)
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y]]
    assert (len(talk.of(MappingRefused)), talk.of(MappingLost)) == (1, [])
    assert talk.client.grant("web")


def test_iwf_097_a_refusal_that_stands_is_told_at_once_and_the_server_not_asked_again() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NOT_AUTHORIZED, 1800)}
    for wanted in (X, Y), (X,), (X, Y):
        talk.want(remote_hosts=wanted, lease=None)
        talk.run(10)
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y]]
    assert [(event.result, event.lifetime) for event in talk.of(MappingRefused)] == [(2, 1800), (2, 1781)]  # type: ignore[attr-defined]
    talk.server.refuse = {}
    talk.run(1781)
    talk.want(remote_hosts=(X,), lease=None)
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(1)
    assert granted(talk)[-1] == (X, Y)


def test_iwf_097_a_refusal_of_who_wanted_to_join_does_not_put_off_the_renewals_of_the_others() -> None:
    talk = Dialogue()
    talk.server.longest = 1000
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NOT_AUTHORIZED, 900)}
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(1)
    talk.server.refuse = {}
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(700)
    assert [hosts(sent) for sent in talk.maps] == [[X], [X, Y], [X]]


def test_iwf_097_174_who_joins_where_the_server_takes_no_filters_is_told_what_is_open_already() -> None:
    talk = Dialogue()
    talk.server.refuse = {FILTER: (ResultCode.UNSUPP_OPTION, 1800)}
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    asked = len(talk.maps)
    talk.want(remote_hosts=(), lease=None)
    assert (len(talk.maps), granted(talk)) == (asked, [(), ()])
    assert talk.of(MappingGranted)[0] == talk.of(MappingGranted)[1]


def with_one_filter() -> Dialogue:
    """With a server that takes no more."""
    talk = Dialogue()
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=EXCESSIVE, lifetime=1800)]
        if len(hosts(sent)) > 1
        else None
    )
    return talk


def test_iwf_097_where_the_server_takes_no_more_filters_those_before_are_cleared() -> None:
    talk = with_one_filter()
    talk.want(remote_hosts=(X,))
    talk.run(1)
    talk.want(remote_hosts=(X, Y))
    talk.run(1)
    assert [filters(sent) for sent in talk.maps[1:]] == [
        [(0, mapped("0.0.0.0")), (128, mapped(str(X))), (128, mapped(str(Y)))],
        [(0, mapped("0.0.0.0"))],
    ]
    assert granted(talk) == [(X,), ()]


def shown_by_another() -> Dialogue:
    """A mapping for one host, and another of which it is known since that the server takes no more filters."""
    talk = with_one_filter()
    talk.server.longest = 1000
    talk.want(remote_hosts=(X,), lease=None)
    talk.want("other", internal_port=81, external_port=81, remote_hosts=(X, Y), lease=None)
    talk.run(1)
    return talk


def test_iwf_097_who_joins_after_a_renewal_without_filters_is_let_in_by_clearing_those_that_stayed() -> None:
    talk = shown_by_another()
    talk.run(600)
    assert [filters(sent) for sent in talk.maps if sent.internal_port == 8080][1:] == [[]]
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(1)
    assert (filters(talk.maps[-1]), granted(talk)[-2:]) == ([(0, mapped("0.0.0.0"))], [(X,), ()])


def test_iwf_097_everybody_is_let_in_by_clearing_the_filters_where_the_server_takes_no_more() -> None:
    talk = shown_by_another()
    talk.want(remote_hosts=(), lease=None)
    talk.run(1)
    assert (filters(talk.maps[-1]), granted(talk)[-1]) == ([(0, mapped("0.0.0.0"))], ())


def test_iwf_097_filters_that_cannot_be_cleared_either_are_a_refusal() -> None:
    talk = Dialogue()
    talk.want(remote_hosts=(X,))
    talk.run(1)
    talk.server.refuse = {FILTER: (EXCESSIVE, 1800)}
    talk.want(remote_hosts=(X, Y))
    talk.run(10)
    assert [event.result for event in talk.of(MappingRefused)] == [EXCESSIVE]  # type: ignore[attr-defined]
    assert (len(talk.maps), talk.client.grant("web") is not None) == (3, True)


class AddingServer:
    """Its FILTERs add up: the clearing one is malformed to it. ``lets_in``: nobody is kept out while it is empty."""

    def __init__(self, talk: Dialogue, *, takes_filters: bool = True) -> None:
        self.talk = talk
        self.takes_filters = takes_filters
        self.lets_in: set[IPv4Address] = set()
        talk.server.scripted = self.answer

    def answer(self, sent: Sent) -> list[bytes] | None:
        result = 0
        if any(prefix == 0 for prefix, _ in filters(sent)):
            result = ResultCode.MALFORMED_OPTION
        elif hosts(sent) and not self.takes_filters:
            result = EXCESSIVE
        if result:
            return [answer(sent.octets, epoch=self.talk.server.epoch(sent.at), result=result, lifetime=60)]
        self.lets_in = self.lets_in | set(hosts(sent)) if sent.lifetime else set()
        return None


@pytest.mark.parametrize("later", [1, 600], ids=["at once", "when it is tried again"])
def test_iwf_097_174_everybody_joins_where_filters_cannot_be_cleared_by_another_mapping(later: float) -> None:
    talk = Dialogue()
    server = AddingServer(talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    assert server.lets_in == {X}
    talk.run(later)
    talk.want(remote_hosts=(), lease=None)
    talk.run(5)
    assert (server.lets_in, granted(talk)) == (set(), [(X,), ()])
    assert [sent.lifetime > 0 for sent in talk.maps[-2:]] == [False, True]
    assert not talk.of(MappingLost)


def test_iwf_097_174_what_was_deleted_for_its_filters_is_lost_when_the_other_mapping_is_refused() -> None:
    talk = Dialogue()
    AddingServer(talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 60)}
    talk.want(remote_hosts=(), lease=None)
    talk.run(5)
    assert [type(event) for _, event in talk.events[-2:]] == [MappingRefused, MappingLost]
    talk.server.refuse = {}
    talk.run(60)
    assert (granted(talk)[-1], len(talk.of(MappingLost))) == ((), 1)


@pytest.mark.parametrize("deletes", [True, False], ids=["it only deletes", "it does nothing"])
def test_iwf_097_174_what_was_deleted_for_its_filters_is_lost_when_silence_follows(deletes: bool) -> None:
    talk = Dialogue()
    AddingServer(talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    talk.server.scripted = lambda sent: None if deletes and sent.lifetime == 0 else []
    talk.want(remote_hosts=(), lease=None)
    talk.run(15)
    assert not talk.of(MappingLost)
    talk.run(60)
    assert len(talk.of(MappingLost)) == 1


def test_iwf_097_174_who_joins_where_filters_can_be_neither_cleared_nor_added_does_so_by_another_mapping() -> None:
    talk = Dialogue()
    server = AddingServer(talk)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(1)
    server.takes_filters = False
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(5)
    assert (server.lets_in, granted(talk)) == (set(), [(X,), ()])


@pytest.mark.parametrize("later", [1, 600], ids=["at once", "when it is tried again"])
@pytest.mark.parametrize("insists", [True, False])
def test_iwf_097_174_who_leaves_is_kept_out_by_another_mapping_if_by_nobody_else(insists: bool, later: float) -> None:
    talk = Dialogue(conduct=Conduct(insists_on=frozenset([FILTER] if insists else [])))
    server = AddingServer(talk)
    talk.want(remote_hosts=(X, Y), lease=None)
    talk.run(later)
    talk.want(remote_hosts=(X,), lease=None)
    talk.run(5)
    assert (server.lets_in, granted(talk)[-1]) == ({X} if insists else {X, Y}, (X,))
    assert [sent.lifetime for sent in talk.maps].count(0) == insists


def test_iwf_097_174_who_joins_where_filters_add_up_loses_no_mapping() -> None:
    talk = Dialogue()
    server = AddingServer(talk)
    for wanted in (X,), (X, Y), (Y,):
        talk.want(remote_hosts=wanted, lease=None)
        talk.run(1)
    assert (server.lets_in, granted(talk)) == ({X, Y}, [(X,), (X, Y), (Y,)])
    assert not talk.of(MappingLost)
