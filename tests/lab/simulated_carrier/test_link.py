# SPDX-License-Identifier: Apache-2.0
"""The simulated carrier's link loses, repeats, delays and overtakes as its switches say, and the same for one seed."""

from __future__ import annotations

import pytest

from tests.lab.simulated_carrier.link import DETOUR, Link


def link(seed: int = 1, **switches: object) -> Link:
    made = Link(seed)
    made.switches.set(**switches)
    return made


def test_by_itself_it_delivers_everything_at_once() -> None:
    assert (link().request(5.0), link().reply(5.0)) == ([5.0], [5.0])


def test_chosen_datagrams_of_one_direction_are_lost() -> None:
    lossy = link(lose_requests=[True, False, True], lose_replies=[False, True])
    assert [len(lossy.request(0)) for _ in range(4)] == [0, 1, 0, 1]
    assert [len(lossy.reply(0)) for _ in range(3)] == [1, 0, 1]


def test_a_ratio_of_both_directions_is_lost() -> None:
    lossy = link(loss=0.3)
    lost = sum(not lossy.request(0) for _ in range(500)) + sum(not lossy.reply(0) for _ in range(500))
    assert 200 < lost < 400


def test_datagrams_are_repeated_delayed_and_overtaken() -> None:
    assert link(duplicate=1.0).request(1.0) == [1.0, 1.0]
    assert link(reorder=1.0).request(1.0) == [1.0 + DETOUR]
    assert link(delay=250).reply(1.0) == [1.25]
    assert link(delay=250).request(1.0) == [1.0]


def test_the_same_seed_makes_the_same_choices() -> None:
    def fate(seed: int) -> list[list[float]]:
        lossy = link(seed, loss=0.3, duplicate=0.3, reorder=0.3)
        return [lossy.request(float(n)) for n in range(100)]

    assert fate(7) == fate(7) != fate(8)


def test_an_unknown_switch_is_an_error() -> None:
    with pytest.raises(KeyError):
        link(lose=1)
