# SPDX-License-Identifier: Apache-2.0
"""What a client may choose: the longest lifetime, the options it insists on, the announcements it heeds."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingRefused, StateLossDetected
from igdpcp.pcp.conduct import Conduct
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_octets import ANNOUNCE
from tests.support.pcp_script import DESCRIPTION, FILTER, PREFER_FAILURE, Dialogue

UNSUPP = ResultCode.UNSUPP_OPTION
REMOTE = (IPv4Address("198.51.100.9"),)
CAPPED = Conduct(lifetime_cap=65535)


@pytest.mark.parametrize(
    ("conduct", "lease", "requested"),
    [
        (Conduct(), 3600, 3600), (Conduct(), 100000, 100000), (Conduct(), None, 0xFFFFFFFF),
        (CAPPED, 3600, 3600), (CAPPED, 100000, 65535), (CAPPED, None, 65535),
    ],
)  # fmt: skip
def test_iwf_150_151_the_requested_lifetime_is_the_lease_up_to_the_cap(
    conduct: Conduct, lease: float | None, requested: int
) -> None:
    talk = Dialogue(conduct=conduct)
    talk.want(lease=lease)
    assert talk.sent[0].lifetime == requested


def test_iwf_153_157_a_lease_beyond_the_cap_is_renewed_until_it_ends() -> None:
    talk = Dialogue(conduct=CAPPED)
    talk.want(lease=100000)
    talk.run(100000)
    assert all(sent.lifetime <= 65535 for sent in talk.sent)
    assert talk.sent[-1].lifetime == pytest.approx(100000 - (talk.sent[-1].at - 1000), abs=1)
    ends = [event.ends for event in talk.of(MappingGranted)]
    assert ends[-1] == pytest.approx(101000, abs=2)


def test_iwf_092_who_insists_on_prefer_failure_is_refused_by_a_server_without_it() -> None:
    talk = Dialogue(conduct=Conduct(insists_on=frozenset({PREFER_FAILURE})))
    talk.server.refuse = {PREFER_FAILURE: (UNSUPP, 1800)}
    talk.want()
    talk.run(10)
    assert [sent.codes for sent in talk.sent] == [[PREFER_FAILURE]]
    assert [event.result for event in talk.of(MappingRefused)] == [UNSUPP]


@pytest.mark.parametrize("result", [UNSUPP, ResultCode.EXCESSIVE_REMOTE_PEERS])
def test_iwf_174_who_insists_on_filters_never_asks_for_more_than_was_wanted(result: int) -> None:
    talk = Dialogue(conduct=Conduct(insists_on=frozenset({FILTER})))
    talk.server.refuse = {DESCRIPTION: (UNSUPP, 1800), FILTER: (result, 1800)}
    talk.want(remote_hosts=REMOTE, description="game")
    talk.run(10)
    assert talk.sent
    assert all(FILTER in sent.codes for sent in talk.sent)
    assert [event.result for event in talk.of(MappingRefused)] == [result]
    assert talk.client.grant("web") is None


def announcement(epoch: int) -> bytes:
    return bytes([2, 0x80 | ANNOUNCE, 0, 0]) + bytes(4) + epoch.to_bytes(4, "big") + bytes(12)


@pytest.mark.parametrize(("heeds", "again"), [(True, 1), (False, 0)])
def test_iwf_194_an_announced_loss_of_state_is_recovered_from_at_once_unless_switched_off(
    heeds: bool, again: int
) -> None:
    talk = Dialogue(conduct=Conduct(heeds_announcements=heeds))
    talk.want()
    talk.run(100)
    before = len(talk.maps)
    talk.server.restart(talk.now)
    talk.deliver(announcement(0))
    talk.run(10)
    assert len(talk.maps) - before == again
    assert len(talk.of(StateLossDetected)) == again


def test_iwf_198_without_announcements_the_next_answer_still_tells_of_the_loss() -> None:
    talk = Dialogue(conduct=Conduct(heeds_announcements=False))
    talk.server.longest = 600
    talk.want(lease=None)
    talk.run(100)
    talk.want("other", internal_port=81, external_port=81, lease=None)
    talk.run(1)
    talk.server.restart(talk.now)
    talk.deliver(announcement(0))
    talk.run(500)
    assert len(talk.of(StateLossDetected)) == 1
    assert len(talk.server.mappings) == 2


def test_iwf_198_an_answer_to_our_own_announce_is_an_answer() -> None:
    talk = Dialogue(conduct=Conduct(heeds_announcements=False))
    talk.want()
    talk.run(100)
    talk.server.restart(talk.now)
    talk.client.announce(talk.now)
    talk.run(10)
    assert len(talk.of(StateLossDetected)) == 1
