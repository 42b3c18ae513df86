# SPDX-License-Identifier: Apache-2.0
"""Client and server engine over a bad link: what is wanted is there, whatever gets lost and whoever restarts."""

from __future__ import annotations

import itertools
import random

import pytest

from igdpcp.pcp.client import MappingGranted, MappingLost, MappingReleased
from igdpcp.pcp.timing import RAND, Timing
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.two_engines import HALF_WAY, TwoEngines

PATTERNS = list(itertools.product([False, True], repeat=3))
IRT = Timing().irt
SPREAD = 1 + RAND


@pytest.mark.parametrize("requests", PATTERNS, ids=lambda p: "".join("x" if lost else "." for lost in p))
@pytest.mark.parametrize("replies", PATTERNS, ids=lambda p: "".join("x" if lost else "." for lost in p))
def test_whichever_of_the_first_packets_are_lost_the_mapping_is_made_once(
    requests: tuple[bool, ...], replies: tuple[bool, ...]
) -> None:
    pair = TwoEngines()
    pair.link.switches.set(lose_requests=list(requests), lose_replies=list(replies))
    pair.want(8080)
    pair.run(200)
    assert pair.table() == {8080: 8080}
    first = pair.of(MappingGranted)[0]
    assert (first.external_port, pair.of(MappingLost)) == (8080, [])
    needed = _transmissions_until_answered(requests, replies)
    asked = [request for request in pair.requests if request.internal_port == 8080]
    if needed <= Timing().mrc:  # beyond, it is also asked whether the server is there at all
        assert len(pair.requests) == needed
        latest = sum(IRT * 2**number * SPREAD ** (number + 1) for number in range(needed - 1)) + 2 * HALF_WAY
        assert next(at for at, event in pair.events if event is first) - asked[0].at <= latest
    pair.drop(8080)
    pair.run(200)
    assert (pair.table(), [event.key for event in pair.of(MappingReleased)]) == ({}, ["8080"])


def _transmissions_until_answered(requests: tuple[bool, ...], replies: tuple[bool, ...]) -> int:
    lost_replies = iter(replies)
    for number in itertools.count():
        lost = requests[number] if number < len(requests) else False
        if not lost and not next(lost_replies, False):
            return number + 1
    raise AssertionError


@pytest.mark.parametrize("seed", range(8))
def test_duplicates_and_detours_change_nothing(seed: int) -> None:
    pair = TwoEngines(seed=seed)
    pair.link.switches.set(loss=0.2, duplicate=0.3, reorder=0.5)
    for port in range(8000, 8020):
        pair.want(port)
    pair.run(300)
    for port in range(8000, 8010):
        pair.drop(port)
    pair.run(300)
    kept = {port: port for port in range(8010, 8020)}
    assert pair.table() == kept
    assert {int(key): grant.external_port for key, grant in pair.granted.items()} == kept


@pytest.mark.parametrize("seed", range(12))
def test_restarts_of_either_side_at_any_moment_end_with_what_is_wanted(seed: int) -> None:
    chance = random.Random(seed)
    pair = TwoEngines(profile=PROFILES["lifetime_120"], seed=seed)
    pair.link.switches.set(loss=0.2)
    ports = range(8000, 8010)
    for port in ports:
        pair.want(port)
    for _ in range(10):
        pair.run(chance.uniform(0, 150))
        if chance.random() < 0.5:
            pair.server.restart(pair.now, announce=chance.random() < 0.5)
        else:
            pair.restart_client()
            for port in ports:
                pair.want(port)
    pair.link.switches.set(loss=0.0)
    pair.run(400)
    assert pair.table() == {port: port for port in ports}
    assert {int(key): grant.external_port for key, grant in pair.granted.items()} == pair.table()


@pytest.mark.parametrize(
    "profile", ["silent_state_loss", "nonce_takeover", "recycle_delay", "error_lifetime_0", "dual"]
)
def test_a_lost_state_comes_back_with_the_same_ports_whatever_the_server_is_like(profile: str) -> None:
    pair = TwoEngines(profile=PROFILES[profile])
    for port in range(8000, 8050):
        pair.want(port)
    pair.run(10)
    before = pair.table()
    pair.server.restart(pair.now)
    pair.run(90000 if profile == "silent_state_loss" else 60)
    assert pair.table() == before
    assert len(before) == 50
