# SPDX-License-Identifier: Apache-2.0
"""Every host has its share of datagrams in a second; what a flood of senders can make it remember is bounded."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv6Address, ip_address

import pytest

from igdpcp.daemon import flood_guard
from igdpcp.daemon.flood_guard import DATAGRAMS_PER_HOST, HOSTS_LIMIT, WINDOW, FloodGuard, plain_address
from igdpcp.net.source_filter import SOURCES_LIMIT
from tests.support.virtual_time import virtual


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> list[tuple[socket.AddressFamily, list[str]]]:
    """What the kernel was told to drop, by the family of the socket."""
    told: list[tuple[socket.AddressFamily, list[str]]] = []
    monkeypatch.setattr(
        flood_guard, "drop_sources", lambda sock, sources: told.append((sock.family, sorted(map(str, sources))))
    )
    return told


@virtual
async def test_a_host_gets_its_share_and_a_new_one_in_the_next_second() -> None:
    guard = FloodGuard()
    admitted = [guard.admits("192.168.1.2") for _ in range(3 * DATAGRAMS_PER_HOST)]
    assert admitted.count(True) == DATAGRAMS_PER_HOST
    assert guard.barred_hosts == 1
    assert guard.admits("192.168.1.3")
    await asyncio.sleep(WINDOW + 0.01)
    assert guard.admits("192.168.1.2")
    guard.close()


@virtual
async def test_the_kernel_is_told_once_and_told_again_when_the_second_is_over(filters) -> None:
    with socket.socket(socket.AF_INET) as ipv4, socket.socket(socket.AF_INET6) as ipv6, socket.socket() as late:
        guard = FloodGuard()
        guard.watch(ipv4)
        guard.watch(ipv6)
        for _ in range(2 * DATAGRAMS_PER_HOST):
            guard.admits("192.168.1.2")
        assert sorted(filters) == [(socket.AF_INET, ["192.168.1.2"]), (socket.AF_INET6, [])]
        guard.watch(late)
        assert filters.pop() == (socket.AF_INET, ["192.168.1.2"])
        guard.forget(late)
        filters.clear()
        for _ in range(DATAGRAMS_PER_HOST + 1):
            guard.admits("fe80::1%br-lan")
        assert sorted(filters) == [(socket.AF_INET, ["192.168.1.2"]), (socket.AF_INET6, ["fe80::1"])]
        filters.clear()
        await asyncio.sleep(WINDOW + 0.01)
        assert sorted(filters) == [(socket.AF_INET, []), (socket.AF_INET6, [])]


@virtual
async def test_many_senders_share_one_share_and_few_are_barred() -> None:
    guard = FloodGuard()
    for number in range(HOSTS_LIMIT + DATAGRAMS_PER_HOST):
        assert guard.admits(f"10.0.{number >> 8}.{number & 255}")
    assert not guard.admits("10.9.9.9")
    assert guard.barred_hosts == 0
    assert guard.admits("10.0.0.1")
    assert len(guard._counts) == HOSTS_LIMIT + 1
    for host in range(2 * SOURCES_LIMIT):
        for _ in range(DATAGRAMS_PER_HOST):
            guard.admits(f"10.0.0.{host}")
    assert guard.barred_hosts == SOURCES_LIMIT
    guard.close()


def test_the_zone_of_a_link_local_address_is_left_out() -> None:
    assert plain_address("fe80::1%br-lan") == IPv6Address("fe80::1")
    assert plain_address("192.168.1.2") == ip_address("192.168.1.2")
