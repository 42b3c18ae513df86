# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier loses, announces and moves what it holds as RFC 6887 section 14 says, or in silence."""

from __future__ import annotations

import pytest

from tests.lab.simulated_carrier.asking import (
    EXACT,
    EXTERNAL,
    EXTERNAL2,
    HOST,
    NONCE,
    PEER,
    WAN,
    Carrier,
    Reply,
    announce_request,
    description,
    only_from,
    third_party,
)
from tests.lab.simulated_carrier.server import ALL_HOSTS


def test_a_restart_forgets_everything_and_announces_it_ten_times() -> None:
    carrier = Carrier()
    carrier.map(80, 9000)
    carrier.now = 1000
    carrier.map(80, 9000)
    carrier.server.restart(1000)
    assert carrier.table() == []
    sent = carrier.sent_until(2000)
    assert [at - 1000 for at, _, _ in sent] == [0] + [0.25 * (2**n - 1) for n in range(1, 10)]
    assert {to for _, _, to in sent} == {(ALL_HOSTS, 5350)}
    assert [Reply(data).epoch for _, data, _ in sent] == [int(at - 1000) for at, _, _ in sent]
    assert sent[0][1] == bytes([2, 0x80]) + bytes(22)


def test_a_restart_ends_the_announcements_of_the_one_before() -> None:
    carrier = Carrier()
    carrier.server.restart(1000)
    carrier.server.restart(1000)
    assert len(carrier.sent_until(2000)) == 10


@pytest.mark.parametrize("announce", [None, True])
def test_a_silent_state_loss_shows_in_nothing_but_the_table(announce: bool | None) -> None:
    carrier = Carrier("silent_state_loss")
    carrier.map(80, 9000)
    carrier.now = 100
    carrier.server.restart(100, announce=announce)
    assert carrier.table() == []
    assert bool(carrier.sent_until(1000)) == bool(announce)
    carrier.now = 100
    assert carrier.ask(announce_request(WAN)).epoch == 100


def test_state_can_be_lost_behind_the_clients_backs() -> None:
    carrier = Carrier()
    carrier.map(80, 9000)
    carrier.now = 50
    carrier.server.lose_state()
    assert (carrier.table(), carrier.sent_until(1000)) == ([], [])
    assert carrier.ask(announce_request(WAN)).epoch == 50


def test_another_external_address_moves_the_mappings_and_updates_their_clients_three_times() -> None:
    carrier = Carrier(announces=False)
    carrier.map(80, 9000, options=third_party(HOST) + EXACT + only_from(PEER) + description("game"))
    carrier.now = 50
    carrier.server.use_addresses([EXTERNAL2], 50)
    sent = carrier.sent_until(100)
    assert [at for at, _, _ in sent] == [50, 50.25, 50.75]
    for _, data, to in sent:
        update = Reply(data)
        assert to == (WAN, 40000)
        assert (update.result, update.external_address, update.external_port) == (0, EXTERNAL2, 9000)
        assert update.options == third_party(HOST) + only_from(PEER)
        assert (update.epoch, update.lifetime) == (0, 550)


def test_an_update_that_breaks_a_promise_is_a_refusal() -> None:
    carrier = Carrier(announces=False)
    carrier.map(80, 9000, address=EXTERNAL, options=EXACT)
    carrier.server.use_addresses([EXTERNAL2], 0)
    assert [Reply(data).result for _, data, _ in carrier.sent_until(100)] == [11] * 3
    assert carrier.table() == []


def test_a_mapping_that_is_deleted_meanwhile_is_not_updated() -> None:
    carrier = Carrier(announces=False)
    carrier.map(80, 9000)
    carrier.server.use_addresses([EXTERNAL2], 0)
    carrier.map(80, lifetime=0, nonce=NONCE)
    assert carrier.sent_until(100) == []
