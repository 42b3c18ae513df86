# SPDX-License-Identifier: Apache-2.0
"""Sockets after their last response: each is closed in the end, whatever becomes of its peer."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import struct

import pytest

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


@virtual
async def test_a_socket_whose_peer_has_reset_it_does_not_part():
    ours, theirs = tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    select.select([ours], [], [], 5)
    parting = PartingSockets(asyncio.get_running_loop())
    parting.add(ours)
    assert ours.fileno() < 0


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH])
@pytest.mark.parametrize("ended_by", ["a look", "the end", "another one"])
def test_an_error_of_one_socket_is_its_end_and_disturbs_no_other(number, ended_by):
    """ETIMEDOUT is what TCP_USER_TIMEOUT leaves."""

    @virtual
    async def run():
        parting = PartingSockets(asyncio.get_running_loop())
        (plain, theirs), (other, others_peer) = nonblocking_pair(), nonblocking_pair()
        broken = Broken(plain, number)
        parting.add(broken)
        parting.add(other)
        if ended_by == "the end":
            parting.close()
        elif ended_by == "another one":
            for _ in range(http_parting.PARTING_LIMIT):
                parting.add(nonblocking_pair()[0])
            assert broken.fileno() < 0
        await asyncio.sleep(http_parting.LOOK_INTERVAL)
        assert broken.fileno() < 0
        others_peer.close()
        await asyncio.sleep(http_parting.LOOK_INTERVAL * 2)
        assert other.fileno() < 0
        theirs.close()

    run()


@pytest.mark.parametrize("ended_by", ["the end", "another one"])
def test_what_has_come_by_the_end_of_a_socket_does_not_make_it_a_reset(ended_by):
    """The kernel sends an RST for a socket that is closed with bytes unread, and the response may be lost by it."""

    @virtual
    async def run():
        parting = PartingSockets(asyncio.get_running_loop())
        ours, theirs = tcp_pair()
        ours.sendall(b"response")
        parting.add(ours)
        theirs.sendall(b"more")
        select.select([ours], [], [], 5)
        if ended_by == "another one":
            for _ in range(http_parting.PARTING_LIMIT):
                parting.add(nonblocking_pair()[0])
        else:
            parting.close()
        assert ours.fileno() < 0
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert theirs.recv(100) == b"response"
        theirs.close()
        parting.close()

    run()


class Broken(socket.socket):
    """A socket that can be read no more."""

    def __init__(self, sock, number):
        super().__init__(fileno=sock.detach())
        self._number = number

    def recv(self, *_):
        raise OSError(self._number, os.strerror(self._number))


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, theirs


def nonblocking_pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs
