# SPDX-License-Identifier: Apache-2.0
"""A mapping of an earlier process is wanted with its nonce and address; the carrier still has it, or another by now."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingLost, MappingRefused, MappingReleased
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import DESCRIPTION, EXTERNAL, PREFER_FAILURE, Dialogue, Sent, answer, mapped
from tests.vectors.pcp_vectors import VECTORS

FORMER = IPv4Address("203.0.113.1")
NONCE = b"n" * 12
ANY = mapped("0.0.0.0")


def strict(talk: Dialogue) -> None:
    """With PREFER_FAILURE the server grants the suggested address or refuses (RFC 6887 section 13.2)."""

    def answers(sent: Sent) -> list[bytes] | None:
        if sent.is_map and PREFER_FAILURE in sent.codes and sent.suggested_address not in (ANY, EXTERNAL):
            return [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=11, lifetime=1800)]
        return None

    talk.server.scripted = answers


def external(talk: Dialogue) -> list[tuple[str, int]]:
    return [(str(event.external_address), event.external_port) for event in talk.of(MappingGranted)]  # type: ignore[attr-defined]


def test_a_server_that_refuses_the_former_address_is_asked_once_more_without_it() -> None:
    talk = Dialogue()
    strict(talk)
    talk.want(nonce=NONCE, external_address=FORMER)
    talk.run(10)
    assert [sent.suggested_address for sent in talk.maps] == [mapped(str(FORMER)), ANY]
    assert {(sent.nonce, sent.suggested_port) for sent in talk.maps} == {(NONCE, 8080)}
    assert (external(talk), talk.of(MappingRefused)) == ([("203.0.113.77", 8080)], [])


def test_another_address_with_the_right_port_is_accepted() -> None:
    talk = Dialogue()
    talk.want(nonce=NONCE, external_address=FORMER)
    talk.run(60)
    assert (external(talk), talk.of(MappingRefused), talk.of(MappingLost)) == ([("203.0.113.77", 8080)], [], [])
    assert [sent.lifetime for sent in talk.maps if not sent.lifetime] == []


def test_another_port_is_given_back_all_the_same() -> None:
    talk = Dialogue()
    talk.server.port = 4711
    talk.want(nonce=NONCE, external_address=FORMER)
    talk.run(2)
    assert external(talk) == []
    assert [event.result for event in talk.of(MappingRefused)] == [11]  # type: ignore[attr-defined]
    assert [sent.lifetime == 0 for sent in talk.maps] == [False, True]


@pytest.mark.parametrize("result", [ResultCode.NO_RESOURCES, ResultCode.USER_EX_QUOTA, ResultCode.NETWORK_FAILURE])
def test_a_refusal_does_not_make_the_server_forget_so_a_drop_tells_it(result: int) -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (result, 30)}
    talk.want(nonce=NONCE)
    talk.run(1)
    assert [event.result for event in talk.of(MappingRefused)] == [result]  # type: ignore[attr-defined]
    talk.drop()
    assert [(sent.lifetime, sent.nonce) for sent in talk.maps[1:]] == [(0, NONCE)]
    talk.run(1)
    assert talk.of(MappingReleased) == [MappingReleased("web", 0)]


def test_what_was_granted_to_this_process_is_not_forgotten_by_a_refusal_either() -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 30)}
    talk.deliver(VECTORS["V1 unsolicited response"])
    talk.run(10)
    assert talk.of(MappingLost) == [MappingLost("web")]
    talk.drop()
    assert talk.maps[-1].lifetime == 0


def test_a_create_of_which_an_earlier_copy_may_have_been_granted_is_deleted_after_its_refusal() -> None:
    talk = Dialogue()
    talk.server.drop = 1
    talk.want()
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 30)}
    talk.run(5)
    talk.drop()
    assert [sent.lifetime for sent in talk.maps] == [3600, 3600, 0]


def test_a_wish_that_was_refused_with_and_without_its_description_leaves_nothing_to_delete() -> None:
    talk = Dialogue()
    talk.server.refuse = {PREFER_FAILURE: (ResultCode.USER_EX_QUOTA, 30)}
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=ResultCode.UNSUPP_OPTION, lifetime=30)]
        if DESCRIPTION in sent.codes
        else None
    )
    talk.want(description="x")
    talk.run(1)
    talk.drop()
    assert ([sent.lifetime for sent in talk.maps], talk.of(MappingReleased)) == (
        [3600, 3600],
        [MappingReleased("web", 0)],
    )


def test_a_server_without_room_for_anything_new_is_asked_for_what_it_granted_before() -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=ResultCode.NO_RESOURCES, lifetime=1800)]
        if sent.internal_port == 9
        else None
    )
    talk.want("probe", internal_port=9, external_port=0, exact=False)
    talk.run(1)
    talk.want(nonce=NONCE, lease=None)
    talk.want("new", internal_port=81, external_port=81)
    talk.run(1)
    assert talk.client.grant("web") is not None
    assert [(event.key, event.result) for event in talk.of(MappingRefused)] == [("probe", 8), ("new", 8)]  # type: ignore[attr-defined]


def test_what_was_given_back_is_new_again_in_spite_of_its_nonce() -> None:
    talk = Dialogue()
    talk.want(nonce=NONCE)
    talk.run(1)
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 600)}
    talk.want("probe", internal_port=9, external_port=0, exact=False)
    talk.run(1)
    talk.drop()
    talk.want(nonce=NONCE)
    talk.run(1)
    assert [sent.lifetime > 0 for sent in talk.maps] == [True, True, False]
    assert talk.of(MappingRefused)[-1] == MappingRefused("web", ResultCode.NO_RESOURCES, 599)
