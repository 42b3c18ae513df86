# SPDX-License-Identifier: Apache-2.0
"""Nobody is flooded: what nobody waits for takes its turn, and forged announcements cost no more than real ones."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from igdpcp.pcp.client import MappingGranted, MappingReleased, StateLossDetected
from igdpcp.pcp.pacing import PACKET_RATE
from igdpcp.pcp.timing import RECOVERY_DELAY
from tests.support.pcp_script import Dialogue, wanted_mapping

MAPPINGS = 200
HOST = IPv4Address("198.51.100.9")
PER_SECOND = PACKET_RATE + 1  # one for where the second is cut


def crowd(talk: Dialogue, *, urgent: bool) -> None:
    for n in range(MAPPINGS):
        wanted = wanted_mapping(str(n), internal_port=2000 + n, external_port=2000 + n, lease=None)
        talk.client.want(wanted, talk.now, urgent=urgent)
    talk.flush()


def announcement(epoch: int) -> bytes:
    return struct.pack("!BBBBII12x", 2, 0x80, 0, 0, 0, epoch)


def test_wishes_that_nobody_waits_for_take_their_turn_and_are_overtaken() -> None:
    talk = Dialogue()
    crowd(talk, urgent=False)
    talk.run(1)
    assert len(talk.maps) <= PER_SECOND
    talk.want("now", internal_port=80, external_port=80)
    assert talk.maps[-1].internal_port == 80
    talk.run(MAPPINGS / PACKET_RATE)
    assert len(talk.of(MappingGranted)) == MAPPINGS + 1


def test_wishes_that_are_waited_for_leave_at_once() -> None:
    talk = Dialogue()
    crowd(talk, urgent=True)
    assert len(talk.maps) == MAPPINGS


@pytest.mark.parametrize(("moved", "remote_hosts"), [(1000, ()), (0, (HOST,))], ids=["another port", "a filter"])
def test_changes_that_nobody_waits_for_take_their_turn(moved: int, remote_hosts: tuple[IPv4Address, ...]) -> None:
    talk = Dialogue()
    crowd(talk, urgent=True)
    talk.run(1)
    before = len(talk.maps)
    for n in range(MAPPINGS):
        wanted = wanted_mapping(
            str(n), internal_port=2000 + n, external_port=2000 + n + moved, lease=None, remote_hosts=remote_hosts
        )
        talk.client.want(wanted, talk.now, urgent=False)
    talk.flush()
    talk.run(1)
    assert 0 < len(talk.maps) - before <= 2 * PER_SECOND  # to replace one takes its deletion and another request


def test_what_left_at_once_does_not_hold_up_what_takes_its_turn() -> None:
    """After many requests a recovery must not wait for a debt to be paid off."""
    talk = Dialogue()
    crowd(talk, urgent=True)
    wanted = wanted_mapping("turn", internal_port=80, external_port=80, lease=None)
    talk.client.want(wanted, talk.now, urgent=False)
    talk.flush()
    talk.run(2 / PACKET_RATE)
    assert talk.maps[-1].internal_port == 80


def test_deletions_that_nobody_waits_for_take_their_turn_and_are_overtaken() -> None:
    talk = Dialogue()
    crowd(talk, urgent=True)
    talk.run(60)
    made = len(talk.maps)
    for n in range(MAPPINGS - 1):
        talk.client.drop(str(n), talk.now, urgent=False)
    talk.run(1)
    assert len(talk.maps) - made <= PER_SECOND
    talk.drop(str(MAPPINGS - 1))
    last = talk.maps[-1]
    assert (last.internal_port, last.lifetime) == (2000 + MAPPINGS - 1, 0)
    talk.run(MAPPINGS / PACKET_RATE)
    assert (len(talk.of(MappingReleased)), talk.server.mappings) == (MAPPINGS, {})


@pytest.mark.parametrize("epochs", [(5, 1_000_000_000), (7, 3, 1)])
def test_forged_announcements_cause_no_more_than_two_recoveries(epochs: tuple[int, ...]) -> None:
    talk = Dialogue()
    for n in range(20):
        talk.want(str(n), internal_port=2000 + n, external_port=2000 + n, lease=None)
    talk.run(60)
    made, granted = len(talk.maps), len(talk.of(MappingGranted))
    for n in range(400):
        talk.deliver(announcement(epochs[n % len(epochs)]))
        talk.run(RECOVERY_DELAY / 400)
    assert 1 <= len(talk.of(StateLossDetected)) <= 2
    talk.run(3 * RECOVERY_DELAY)
    assert 20 <= len(talk.maps) - made <= 60
    assert len(talk.of(MappingGranted)) - granted == len(talk.maps) - made


def test_a_server_that_loses_its_state_later_is_recovered_all_the_same() -> None:
    talk = Dialogue()
    talk.want()
    talk.run(60)
    for recovered in (1, 2, 3):
        talk.server.restart(talk.now)
        talk.deliver(announcement(0))
        talk.run(2 * RECOVERY_DELAY)
        assert len(talk.of(StateLossDetected)) == recovered
        assert len(talk.server.mappings) == 1
        talk.run(600)
