# SPDX-License-Identifier: Apache-2.0
"""When the DHCP lease of a LAN host has ended: dnsmasq's file, torn or absent, marks, and clocks that jump."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.net.leases import CONFIRM_SECONDS, FILE_LIMIT, GRACE_SECONDS, LOOK_SECONDS, DhcpLeases

A, B = IPv4Address("192.168.1.50"), IPv4Address("192.168.1.60")
HOST, OTHER_HOST = "02:00:00:00:00:50", "02:00:00:00:00:99"
LEASE = 43200
NOW = 1_800_000_000


@dataclass
class Router:
    """A file of leases, marks, and two clocks that go on together unless the wall clock jumps."""

    directory: Path
    clients: tuple[IPv4Address, ...] = (A, B)
    at: float = 100.0
    jumped: float = NOW
    leases: DhcpLeases = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.leases = DhcpLeases(self.file, self.directory, lambda: self.at, lambda: self.at + self.jumped)

    @property
    def file(self) -> Path:
        return self.directory / "dhcp.leases"

    @property
    def wall(self) -> int:
        return int(self.at + self.jumped)

    def say(self, *lines: str) -> None:
        self.file.write_text("".join(f"{text}\n" for text in lines))

    def mark(self, address: IPv4Address) -> Path:
        path = self.directory / f"ended.{address}"
        path.write_text(f"{HOST}\n")
        return path

    def ended(self, seconds: float = 0.0) -> set[IPv4Address]:
        """Whose leases have ended, looked at as often as the daemon does for so long."""
        found = set(self.leases.ended(self.clients))
        until = self.at + seconds
        while self.at < until:
            self.at = min(self.at + LOOK_SECONDS, until)
            found |= self.leases.ended(self.clients)
        return found


def lease(expires: float, address: IPv4Address = A, mac: str = HOST, client_id: str = "*") -> str:
    return f"{expires:.0f} {mac} {address} pc {client_id}"


@pytest.fixture
def router(tmp_path: Path) -> Router:
    return Router(tmp_path)


def test_iwf_190_a_lease_ends_when_its_expiry_has_passed(router: Router) -> None:
    router.say(lease(router.wall + LEASE), lease(0, B))
    assert router.ended(LEASE - 1) == set()
    assert router.ended(GRACE_SECONDS + 2 * LOOK_SECONDS) == {A}


def test_iwf_190_a_marked_lease_has_ended_after_a_moments_grace_and_is_told_until_settled(router: Router) -> None:
    mark = router.mark(A)
    assert router.ended(GRACE_SECONDS - 1) == set()
    assert router.ended(1) == router.ended(1) == {A}
    router.leases.settled([A])
    assert not mark.exists()
    assert router.ended(2 * GRACE_SECONDS) == set()


def test_iwf_190_a_mark_counts_also_for_a_file_that_still_has_the_lease(router: Router) -> None:
    router.say(lease(router.wall + LEASE))
    assert router.ended() == set()
    router.mark(A)
    assert router.ended(GRACE_SECONDS) == {A}


def test_iwf_190_a_mark_outlives_the_daemon(router: Router) -> None:
    router.mark(A)
    assert router.ended() == set()
    router.start()
    assert router.ended(GRACE_SECONDS) == {A}


def test_iwf_190_another_host_at_the_address_ends_the_lease_of_the_first_without_grace(router: Router) -> None:
    router.say(lease(router.wall + LEASE))
    assert router.ended() == set()
    router.say(lease(router.wall + LEASE, mac=OTHER_HOST))
    assert router.ended() == set()
    assert router.ended(CONFIRM_SECONDS) == {A}
    router.leases.settled([A])
    assert router.ended(LEASE / 2) == set()
    assert router.ended(LEASE / 2 + GRACE_SECONDS + LOOK_SECONDS) == {A}


def test_iwf_191_a_file_that_is_read_half_written_ends_nothing(router: Router) -> None:
    whole = lease(router.wall + LEASE)
    router.say(whole)
    assert router.ended() == set()
    router.say(lease(router.wall + LEASE, mac=OTHER_HOST))
    assert router.ended() == set()
    router.say(whole)
    router.at += CONFIRM_SECONDS
    assert router.ended() == set()
    router.say(whole[:20])
    assert router.ended(2 * GRACE_SECONDS) == set()


@pytest.mark.parametrize("client_ids", [("*", "*"), ("01:aa", "01:bb")])
def test_iwf_191_a_renewed_lease_does_not_end(router: Router, client_ids: tuple[str, str]) -> None:
    router.say(lease(router.wall + LEASE, client_id=client_ids[0]))
    assert router.ended(LEASE / 2) == set()
    router.say(lease(router.wall + LEASE, client_id=client_ids[1]))
    assert router.ended(LEASE - 1) == set()


def test_iwf_191_a_host_that_keeps_its_client_id_may_change_its_mac(router: Router) -> None:
    router.say(lease(router.wall + LEASE, client_id="ff:01"))
    assert router.ended() == set()
    router.say(lease(router.wall + LEASE, mac=OTHER_HOST, client_id="ff:01"))
    assert router.ended(2 * GRACE_SECONDS) == set()


def test_iwf_191_a_lease_that_is_had_again_in_time_does_not_end(router: Router) -> None:
    router.say(lease(router.wall + 10))
    assert router.ended(10 + GRACE_SECONDS - 1) == set()
    router.say(lease(router.wall + LEASE))
    assert router.ended(2 * GRACE_SECONDS) == set()
    mark = router.mark(A)
    assert router.ended(GRACE_SECONDS - 1) == set()
    mark.unlink()
    assert router.ended(GRACE_SECONDS) == set()
    router.mark(A)
    assert router.ended(GRACE_SECONDS - 1) == set()


def test_iwf_191_absence_is_no_end(router: Router) -> None:
    router.say(lease(router.wall + LEASE))
    assert router.ended() == set()
    router.say()
    assert router.ended(100) == set()
    router.file.unlink()
    assert router.ended(100) == set()
    router.file.mkdir()
    assert router.ended(100) == set()


def test_iwf_190_a_lease_that_is_gone_from_the_file_ends_with_its_time(router: Router) -> None:
    router.say(lease(router.wall + 100))
    assert router.ended() == set()
    router.say()
    assert router.ended(100 + GRACE_SECONDS + LOOK_SECONDS) == {A}


def test_iwf_191_a_clock_that_jumps_ahead_ends_nothing(router: Router) -> None:
    router.jumped = 0
    router.say(lease(router.wall + LEASE))
    assert router.ended() == set()
    router.jumped = NOW
    assert router.ended(100) == set()
    router.mark(A)  # dnsmasq's lease has expired by the new time; the host has it as before
    assert router.ended(LEASE - 200) == set()
    assert router.ended(100 + 2 * GRACE_SECONDS) == {A}


def test_iwf_190_a_clock_that_jumps_back_keeps_no_lease(router: Router) -> None:
    router.say(lease(router.wall + 100))
    assert router.ended() == set()
    router.jumped = 0
    assert router.ended(100 + GRACE_SECONDS + LOOK_SECONDS) == {A}


@pytest.mark.parametrize("expires", [NOW - 10, LEASE, 1])
def test_iwf_191_a_lease_that_was_never_seen_running_is_not_believed_to_have_ended(
    router: Router, expires: int
) -> None:
    """It was written before the clock jumped, or by a dnsmasq that writes durations."""
    router.say(lease(expires))
    assert router.ended(100) == set()


def test_only_who_has_mappings_is_looked_for_and_their_marks_alone_stay(router: Router) -> None:
    router.clients = (B,)
    mark = router.mark(A)
    router.say(lease(router.wall + 10), lease(router.wall + 10, B))
    assert router.ended(10 + GRACE_SECONDS + LOOK_SECONDS) == {B}
    assert not mark.exists()


def test_a_client_that_comes_later_is_found_in_a_file_that_has_not_changed(router: Router) -> None:
    router.clients = ()
    router.say(lease(router.wall + 100))
    assert router.ended(10) == set()
    router.clients = (A,)
    assert router.ended(90 + GRACE_SECONDS + LOOK_SECONDS) == {A}


@pytest.mark.parametrize(
    "text",
    [
        "duid 00:01:00:01", "1 2", "-5 x 192.168.1.50 pc *", f"{'9' * 25} x 192.168.1.50 pc *",
        "x x 192.168.1.50 pc *", "1 x 192.168.001.050 pc *", f"{math.inf} x 192.168.1.50 pc *", "\0\xff",
        "1800000200 7 2600:1::50 pc 00:01",
    ],
)  # fmt: skip
def test_what_is_no_lease_is_passed_over(router: Router, text: str) -> None:
    router.say(text, lease(router.wall + 10, B), text)
    assert router.ended(10 + GRACE_SECONDS + LOOK_SECONDS) == {B}


def test_a_file_without_end_is_read_to_a_limit(router: Router) -> None:
    router.say("x" * FILE_LIMIT, lease(router.wall + 10, B))
    assert router.ended(100) == set()


@pytest.mark.parametrize("name", ["ended.", "ended.x", "ended.192.168.1.50.new", "ended.1.2.3"])
def test_a_mark_that_names_no_address_says_nothing(router: Router, name: str) -> None:
    (router.directory / name).touch()
    assert router.ended(100) == set()


def test_there_may_be_no_directory_yet(tmp_path: Path) -> None:
    router = Router(tmp_path / "none")
    assert router.ended(100) == set()
