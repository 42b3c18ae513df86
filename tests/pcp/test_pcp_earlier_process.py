# SPDX-License-Identifier: Apache-2.0
"""A mapping of an earlier process is wanted with its nonce and address; the carrier may have another one by now."""

from __future__ import annotations

from ipaddress import IPv4Address

from igdpcp.pcp.client import MappingGranted, MappingLost, MappingRefused
from tests.support.pcp_script import EXTERNAL, PREFER_FAILURE, Dialogue, Sent, answer, mapped

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
