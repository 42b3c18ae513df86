# SPDX-License-Identifier: Apache-2.0
"""Retransmission, renewal and error times, and the epoch check, against tables worked out by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from igdpcp.pcp.epoch import EpochRecord
from igdpcp.pcp.timing import Timing, error_lifetime, remaining, renewal


class Middle(random.Random):
    """No randomness: the middle of every interval."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_retransmissions_double_up_to_mrt() -> None:
    timing, timeout, at, sent = Timing(), None, 0.0, []
    for _ in range(12):
        sent.append(at)
        timeout = timing.retransmission(timeout, Middle())
        at += timeout
    assert sent == [0, 3, 9, 21, 45, 93, 189, 381, 765, 1533, 2557, 3581]


def test_every_timeout_varies_by_a_tenth() -> None:
    rng = random.Random(7)
    first = [Timing().retransmission(None, rng) for _ in range(500)]
    later = [Timing().retransmission(6.0, rng) for _ in range(500)]
    assert 2.7 <= min(first) < 2.75
    assert 3.25 < max(first) <= 3.3
    assert min(later) >= 10.8
    assert max(later) <= 13.2


WINDOWS = {
    120: [(60, 75), (90, 97.5), (105, 108.75), (112.5, 114.375), (116.25, 117.19)],
    3600: [(1800, 2250), (2700, 2925), (3150, 3262.5), (3375, 3431.25), (3487.5, 3515.63)],
    86400: [(43200, 54000), (64800, 70200), (75600, 78300), (81000, 82350), (83700, 84375)],
}


@pytest.mark.parametrize("lifetime", WINDOWS)
@pytest.mark.parametrize("seed", range(40))
def test_renewals_fall_into_their_windows_and_four_seconds_apart(lifetime: int, seed: int) -> None:
    rng, attempt, last, times = random.Random(seed), 1, -100.0, []
    while planned := renewal(lifetime, attempt, last + 4, rng):
        number, last = planned
        times.append(last)
        if number <= 5:
            opens, closes = WINDOWS[lifetime][number - 1]
            assert opens <= last <= closes
        attempt = number + 1
    assert len(times) >= 4
    assert all(b - a >= 4 for a, b in itertools.pairwise(times))
    assert times[-1] < lifetime


EPOCHS = [
    (1100, 600, True), (1100, 599, True), (1100, 0, False), (1001, 499, True), (1000, 499, True), (1002, 499, False),
    (1001, 498, False), (2600, 2100, True), (2600, 2000, True), (2600, 1998, True), (2600, 1997, False),
    (2600, 2208, True), (2600, 2209, False), (2600, 2210, False), (2600, 2211, False), (1000, 502, True),
    (1000, 503, False), (1003, 500, False), (1002, 500, True),
]  # fmt: skip


@pytest.mark.parametrize(("client", "server", "fits"), EPOCHS)
def test_an_epoch_fits_or_tells_of_state_loss(client: int, server: int, fits: bool) -> None:
    record = EpochRecord()
    assert record.check(500, 1000)
    assert record.check(server, client) is fits
    assert record.check(server + 10, client + 10), "the record is the newest epoch in any case"


@pytest.mark.parametrize(
    ("delta", "accepted"), [(0, (-1, 2)), (100, (92, 108)), (1600, (1498, 1708)), (86400, (80998, 92162))]
)
def test_accepted_epochs_have_exact_limits(delta: int, accepted: tuple[int, int]) -> None:
    def fits(server_delta: int) -> bool:
        record = EpochRecord()
        record.check(100000, 1000)
        return record.check(100000 + server_delta, 1000 + delta)

    low, high = accepted
    assert [fits(d) for d in (low - 1, low, high, high + 1)] == [False, True, True, False]


def test_error_lifetimes_have_a_floor_that_doubles_and_a_cap() -> None:
    assert [error_lifetime(0, n) for n in (1, 2, 3, 20)] == [5, 10, 20, 1800]
    assert [error_lifetime(seconds) for seconds in (30, 1800, 4294967295)] == [30, 1800, 1800]


@pytest.mark.parametrize(
    ("until", "lifetime"), [(None, 4294967295), (3600.1, 3600), (3599.6, 3600), (0.1, 0), (-5.0, 0), (1e12, 4294967295)]
)
def test_the_requested_lifetime_is_what_remains_of_the_lease(until: float | None, lifetime: int) -> None:
    assert remaining(until, 0.1) == lifetime
