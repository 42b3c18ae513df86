# SPDX-License-Identifier: Apache-2.0
"""Five thousand mappings: paced, kept for days, and without growing."""

from __future__ import annotations

from collections import Counter

from igdpcp.pcp.client import MappingGranted, MappingLost, MappingRefused, StateLossDetected
from igdpcp.pcp.pacing import WAKE_SPACING
from tests.support.pcp_script import Dialogue
from tests.vectors.pcp_vectors import VECTORS

MAPPINGS = 5000
PER_SECOND = 26  # 25, and one for where the second is cut


def busiest_second(times: list[float]) -> int:
    return max(Counter(int(at) for at in times).values())


def test_five_thousand_mappings_are_made_and_recreated_at_the_common_pace() -> None:
    talk = Dialogue()
    for number in range(MAPPINGS):
        talk.want(str(number), internal_port=1024 + number, external_port=1024 + number, lease=None)
    talk.run(MAPPINGS / 25 + 10)
    assert len(talk.of(MappingGranted)) == MAPPINGS
    made = len(talk.sent)
    assert made == MAPPINGS
    talk.server.restart(talk.now)
    talk.run(3)
    talk.deliver(VECTORS["V1 unsolicited response"])
    talk.run(MAPPINGS / 25 + 10)
    assert len(talk.of(StateLossDetected)) == 1
    assert len(talk.sent) == 2 * MAPPINGS
    assert busiest_second([sent.at for sent in talk.sent[made:]]) <= PER_SECOND
    assert len(talk.server.mappings) == MAPPINGS


def test_five_thousand_mappings_of_the_shortest_lifetime_are_kept_without_bursts() -> None:
    talk = Dialogue()
    talk.server.longest = 120
    for number in range(MAPPINGS):
        talk.want(str(number), internal_port=1024 + number, external_port=1024 + number, lease=None)
    talk.run(MAPPINGS / 25 + 10)
    made = len(talk.sent)
    talk.run(300)
    assert not talk.of(MappingLost)
    renewals = [sent.at for sent in talk.sent[made:]]
    assert len(renewals) >= 300 / 75 * MAPPINGS * 0.9
    assert busiest_second(renewals) <= 2.5 * MAPPINGS / 120 * (1 + WAKE_SPACING) + 1


def test_renewals_of_a_thousand_mappings_that_were_made_at_once_are_spread() -> None:
    talk = Dialogue()
    talk.server.longest = 3600
    for number in range(1000):
        talk.want(str(number), internal_port=1024 + number, external_port=1024 + number, lease=None)
    talk.run(1)
    made = len(talk.sent)
    talk.run(3600)
    assert busiest_second([sent.at for sent in talk.sent[made:]]) <= PER_SECOND


def test_what_somebody_waits_for_overtakes_a_recovery() -> None:
    talk = Dialogue()
    for number in range(500):
        talk.want(str(number), internal_port=1024 + number, external_port=1024 + number, lease=None)
    talk.run(60)
    talk.deliver(VECTORS["V1 unsolicited response"])
    talk.run(8)
    talk.want("now", internal_port=80, external_port=80)
    assert talk.sent[-1].internal_port == 80


def test_thirty_days_with_a_lossy_path_lose_nothing() -> None:
    talk = Dialogue(seed=3)
    talk.server.longest = 7200
    count = 0

    def every_fourth_is_lost(sent: object) -> list[bytes] | None:
        nonlocal count
        count += 1
        return [] if count % 4 == 0 else None

    talk.server.scripted = every_fourth_is_lost
    for number in range(5):
        talk.want(str(number), internal_port=1024 + number, external_port=1024 + number, lease=None)
    talk.run(30 * 86400)
    assert not talk.of(MappingLost)
    assert not talk.of(MappingRefused)
    assert all(talk.client.grant(str(number)) for number in range(5))
    assert len(talk.maps) < 5 * 30 * 12 * 2.6
    assert len(talk.sent) - len(talk.maps) < count / 4 * 1.4, "one question for each that is lost"


def test_one_short_grant_makes_no_bursts_when_it_is_gone() -> None:
    talk = Dialogue()
    talk.server.shortest = talk.server.longest = 1
    talk.want("brief", internal_port=80, external_port=80)
    talk.run(1)
    talk.drop("brief")
    talk.server.shortest = talk.server.longest = 120
    for number in range(1500):
        talk.want(str(number), internal_port=1024 + number, external_port=1024 + number, lease=None)
    talk.run(1)
    made = len(talk.sent)
    talk.run(240)
    assert not talk.of(MappingLost)
    assert busiest_second([sent.at for sent in talk.sent[made:]]) <= 2.5 * 1500 / 120 * (1 + WAKE_SPACING) + 1
