# SPDX-License-Identifier: Apache-2.0
"""Sockets after their last response: each is closed in the end, whatever becomes of its peer."""

from __future__ import annotations

import asyncio
import socket

from igdpcp.daemon import http_parting
from igdpcp.daemon.http_parting import PartingSockets
from tests.support.virtual_time import virtual


@virtual
async def test_a_parting_socket_is_closed_when_its_peer_has_ended():
    parting = PartingSockets(asyncio.get_running_loop())
    ours, theirs = nonblocking_pair()
    parting.add(ours)
    assert theirs.recv(1) == b""
    theirs.sendall(b"more")
    await asyncio.sleep(http_parting.LOOK_INTERVAL * 2)
    assert ours.fileno() >= 0
    theirs.close()
    await asyncio.sleep(http_parting.LOOK_INTERVAL * 2)
    assert ours.fileno() < 0


@virtual
async def test_a_parting_socket_is_closed_in_the_end_whatever_its_peer_does():
    parting = PartingSockets(asyncio.get_running_loop())
    ours, theirs = nonblocking_pair()
    parting.add(ours)
    await asyncio.sleep(http_parting.PARTING_TIMEOUT - http_parting.LOOK_INTERVAL)
    assert ours.fileno() >= 0
    await asyncio.sleep(http_parting.LOOK_INTERVAL * 3)
    assert ours.fileno() < 0
    theirs.close()


@virtual
async def test_only_so_many_sockets_part_at_a_time():
    parting = PartingSockets(asyncio.get_running_loop())
    pairs = [nonblocking_pair() for _ in range(http_parting.PARTING_LIMIT + 1)]
    for ours, _ in pairs:
        parting.add(ours)
    assert [ours.fileno() < 0 for ours, _ in pairs] == [True] + [False] * http_parting.PARTING_LIMIT
    parting.close()
    assert all(ours.fileno() < 0 for ours, _ in pairs)
    for _, theirs in pairs:
        theirs.close()


def nonblocking_pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs
