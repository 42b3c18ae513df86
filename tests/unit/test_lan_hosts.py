# SPDX-License-Identifier: Apache-2.0
"""A host is known by its link-layer address, whatever addresses it gives itself."""

from __future__ import annotations

from ipaddress import ip_address

from igdpcp.daemon import lan_hosts
from igdpcp.daemon.lan_hosts import REMEMBERED_LIMIT, REMEMBERED_SECONDS, LanHosts, by_address
from igdpcp.model import IPAddress

A, A6, B, UNKNOWN, UNKNOWN_TOO = (
    ip_address(text) for text in ("192.168.1.50", "fe80::50", "192.168.1.60", "2600::1", "2600::2")
)
TABLE = {A: b"\2AAAAA", A6: b"\2AAAAA", B: b"\2BBBBB"}
LAN, GUEST = "br-lan", "br-guest"


class Kernel:
    """Its neighbour table, the same on every LAN, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, IPAddress]] = []
        self.table = dict(TABLE)

    def look_up(self, device: str, address: IPAddress) -> bytes:
        self.asked.append((device, address))
        return self.table.get(address, b"")

    def hosts(self) -> LanHosts:
        return LanHosts(self.look_up, lambda: self.now)


def test_all_addresses_of_one_host_are_one_and_another_host_is_another() -> None:
    hosts = Kernel().hosts()
    assert hosts.host_of(A, LAN) == hosts.host_of(A6, LAN) == hosts.host_or_stranger(A, LAN)
    assert hosts.host_of(A, LAN) != hosts.host_of(B, LAN)


def test_the_same_addresses_on_another_lan_are_another_host() -> None:
    hosts = Kernel().hosts()
    assert hosts.host_of(A6, LAN) != hosts.host_of(A6, GUEST)
    assert by_address(A6, LAN) != by_address(A6, GUEST)


def test_an_address_that_the_kernel_does_not_know_is_a_host_or_one_of_the_strangers() -> None:
    hosts = Kernel().hosts()
    assert hosts.host_of(UNKNOWN, LAN) == by_address(UNKNOWN, LAN) != hosts.host_of(UNKNOWN_TOO, LAN)
    assert hosts.host_or_stranger(UNKNOWN, LAN) == hosts.host_or_stranger(UNKNOWN_TOO, LAN)
    assert hosts.host_or_stranger(UNKNOWN, LAN) != hosts.host_or_stranger(UNKNOWN, GUEST)
    assert hosts.host_or_stranger(UNKNOWN, LAN) != hosts.host_or_stranger(A, LAN)


def test_the_kernel_is_asked_again_after_a_moment_only() -> None:
    kernel = Kernel()
    hosts = kernel.hosts()
    before = [hosts.host_of(A, LAN) for _ in range(1000)]
    assert kernel.asked == [(LAN, A)]
    kernel.table[A] = b"\2CCCCC"
    kernel.now += REMEMBERED_SECONDS
    assert hosts.host_of(A, LAN) not in before


def test_an_address_that_searched_before_the_kernel_knew_it_is_no_host_of_its_own_when_it_connects() -> None:
    kernel = Kernel()
    hosts = kernel.hosts()
    strangers = hosts.host_or_stranger(UNKNOWN, LAN)
    kernel.table[UNKNOWN] = TABLE[A]
    assert hosts.host_of(UNKNOWN, LAN) == hosts.host_of(A, LAN)
    assert hosts.host_or_stranger(UNKNOWN, LAN) == hosts.host_of(A, LAN) != strangers


def test_a_flood_of_searches_from_a_forged_address_makes_few_look_ups() -> None:
    kernel = Kernel()
    hosts = kernel.hosts()
    for _ in range(1000):
        hosts.host_or_stranger(UNKNOWN, LAN)
    assert kernel.asked == [(LAN, UNKNOWN)]


def test_what_is_remembered_is_bounded() -> None:
    hosts = Kernel().hosts()
    for number in range(3 * REMEMBERED_LIMIT):
        hosts.host_of(ip_address(number), LAN)
        assert len(hosts._remembered) <= REMEMBERED_LIMIT
    assert lan_hosts.REMEMBERED_SECONDS <= 1.0
