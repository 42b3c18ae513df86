# SPDX-License-Identifier: Apache-2.0
"""Options that a server does not take: what is left out, for how long, and what never is."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingRefused, ServerState
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import DESCRIPTION, FILTER, PREFER_FAILURE, THIRD_PARTY, Dialogue, answer, mapped

UNSUPP, MALFORMED, EXCESSIVE = ResultCode.UNSUPP_OPTION, ResultCode.MALFORMED_OPTION, ResultCode.EXCESSIVE_REMOTE_PEERS
REMOTE = (IPv4Address("198.51.100.9"),)
HOST = IPv4Address("192.168.1.50")


@pytest.mark.parametrize("result", [UNSUPP, MALFORMED])
def test_the_description_goes_first(result: int) -> None:
    talk = Dialogue()
    talk.server.refuse = {DESCRIPTION: (result, 1800)}
    talk.want(description="game", remote_hosts=REMOTE)
    talk.run(1)
    assert [sent.codes for sent in talk.sent] == [
        [PREFER_FAILURE, FILTER, FILTER, DESCRIPTION],
        [PREFER_FAILURE, FILTER, FILTER],
    ]
    assert talk.client.grant("web") is not None
    assert not talk.of(MappingRefused)


def test_what_a_server_does_not_take_is_remembered_for_its_other_mappings_and_no_longer() -> None:
    talk = Dialogue()
    talk.server.refuse = {DESCRIPTION: (UNSUPP, 600)}
    talk.want("a", description="x")
    talk.run(100)
    talk.want("b", internal_port=81, external_port=81, description="x")
    assert talk.sent[-1].codes == [PREFER_FAILURE]
    talk.run(600)
    talk.want("c", internal_port=82, external_port=82, description="x")
    assert talk.sent[-1].codes == [PREFER_FAILURE, DESCRIPTION]


def test_a_malformed_filter_pair_is_repeated_without_the_clearing_one() -> None:
    talk = Dialogue()
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=MALFORMED, lifetime=30)]
        if any(code == FILTER and data[1] == 0 for code, data in sent.options)
        else None
    )
    talk.want(remote_hosts=REMOTE)
    talk.run(1)
    filters = [data for code, data in talk.sent[-1].options if code == FILTER]
    assert [(data[1], data[4:]) for data in filters] == [(128, mapped("198.51.100.9"))]
    assert talk.client.grant("web") is not None


@pytest.mark.parametrize("result", [UNSUPP, EXCESSIVE])
def test_filters_are_left_to_the_router_when_the_server_has_none(result: int) -> None:
    talk = Dialogue()
    talk.server.refuse = {FILTER: (result, 1800)}
    talk.want(remote_hosts=REMOTE)
    talk.run(1)
    assert talk.sent[-1].codes == [PREFER_FAILURE]
    assert talk.client.grant("web") is not None


def test_without_prefer_failure_the_port_is_checked_here() -> None:
    talk = Dialogue()
    talk.server.refuse = {PREFER_FAILURE: (UNSUPP, 1800)}
    talk.want()
    talk.run(1)
    assert [event.external_port for event in talk.of(MappingGranted)] == [8080]
    talk.server.port = 9999
    talk.want("other", internal_port=81, external_port=81)
    talk.run(1)
    assert [(event.key, event.result) for event in talk.of(MappingRefused)] == [("other", 11)]
    assert [(sent.internal_port, sent.lifetime, sent.codes) for sent in talk.sent[-2:]] == [(81, 3600, []), (81, 0, [])]


def test_third_party_is_never_left_out() -> None:
    talk = Dialogue()
    talk.server.refuse = {THIRD_PARTY: (UNSUPP, 1800)}
    talk.want(internal_address=IPv4Address("192.168.1.50"), description="x", remote_hosts=REMOTE)
    talk.run(10)
    assert all(THIRD_PARTY in sent.codes for sent in talk.sent)
    assert talk.sent[-1].codes == [THIRD_PARTY]
    assert [event.result for event in talk.of(MappingRefused)] == [UNSUPP]


def test_a_second_copy_of_an_old_error_leaves_nothing_more_out() -> None:
    talk = Dialogue(rtt=0.5)
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=UNSUPP, lifetime=30)] * 2
        if DESCRIPTION in sent.codes
        else None
    )
    talk.want(description="x")
    talk.run(3)
    assert [sent.codes for sent in talk.sent] == [[PREFER_FAILURE, DESCRIPTION], [PREFER_FAILURE]]
    assert talk.client.counters["no_match"] == 1


def test_a_renewal_sheds_too_but_keeps_its_distance() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(lease=None, description="x")
    talk.run(1)
    talk.server.refuse = {DESCRIPTION: (UNSUPP, 1800)}
    talk.run(400)
    assert [sent.codes for sent in talk.sent[1:]] == [[PREFER_FAILURE, DESCRIPTION], [PREFER_FAILURE]]
    assert talk.sent[2].at - talk.sent[1].at >= 4
    assert not talk.of(MappingRefused)


def test_iwf_173_no_resources_holds_all_new_mappings_and_says_so() -> None:
    talk = Dialogue()
    talk.server.refuse = {0: (ResultCode.NO_RESOURCES, 30)}
    talk.want("a")
    talk.run(10)
    talk.want("b", internal_port=81, external_port=81)
    assert len(talk.sent) == 1
    assert talk.of(MappingRefused) == [MappingRefused("a", 8, 30), MappingRefused("b", 8, 21)]
    talk.server.refuse = {}
    talk.run(30)
    assert {event.key for event in talk.of(MappingGranted)} == {"a", "b"}


def test_a_renewal_refused_for_its_old_address_is_repeated_for_any_address() -> None:
    talk = Dialogue()
    talk.server.longest = 600
    talk.want(lease=None)
    talk.run(1)
    talk.server.address = mapped("203.0.113.200")
    talk.server.scripted = lambda sent: (
        [answer(sent.octets, epoch=talk.server.epoch(sent.at), result=11, lifetime=1800)]
        if sent.suggested_address == mapped("203.0.113.77")
        else None
    )
    talk.run(400)
    assert talk.sent[-1].suggested_address == mapped("0.0.0.0")
    assert not talk.of(MappingRefused)
    assert talk.of(MappingGranted)[-1].external_address == IPv4Address("203.0.113.200")


def test_iwf_056_a_server_that_maps_for_no_other_host_is_not_asked_to_again_before_its_refusal_ends() -> None:
    talk = Dialogue()
    talk.server.refuse = {THIRD_PARTY: (5, 300)}
    talk.want("1", internal_address=HOST, lease=None)
    talk.run(1)
    asked = len(talk.maps)
    for port in (8081, 8082):
        talk.want(str(port), internal_address=HOST, internal_port=port, external_port=port, lease=None)
    talk.run(200)
    assert len(talk.maps) == asked
    assert {event.key: event.result for event in talk.of(MappingRefused)} == {"1": 5, "8081": 5, "8082": 5}
    assert (talk.client.state, talk.client.usable) == (ServerState.ACTIVE, False)
    assert "THIRD_PARTY" in talk.client.reason
    talk.want("own", internal_port=8083, external_port=8083, lease=None)
    talk.run(1)
    assert talk.client.grant("own")


def test_a_server_that_takes_third_party_in_the_end_is_usable_again() -> None:
    talk = Dialogue()
    talk.server.refuse = {THIRD_PARTY: (5, 30)}
    talk.want("1", internal_address=HOST, lease=None)
    talk.run(1)
    talk.server.refuse = {}
    talk.run(100)
    assert talk.client.grant("1")
    assert talk.client.usable
