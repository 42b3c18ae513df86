# SPDX-License-Identifier: Apache-2.0
"""Hears from the kernel that somebody else changed the nftables ruleset: a firewall that is loaded anew, above all.

Legacy iptables has nothing of the kind: whoever depends on its rules has to look now and then. So whoever waits here is
woken now and then, too, and may not hear of everything: what has changed is for him to find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Collection

from igdpcp.log import line
from igdpcp.net.source_filter import attach, instruction

LOG = logging.getLogger("igdpcp.net")
SETTLE_SECONDS = 0.1  # a firewall is loaded in several steps
# What changes rules for each packet or name that a host asks for makes us look no oftener than this, and for no larger
# share of the time.
PAUSE_SECONDS = 1.0
PAUSES_PER_LOOK = 9.0
UNKNOWN = "unknown"
READ_LIMIT = 64  # notifications read at once; what is left wakes the next one that waits

_NETLINK_NETFILTER = 12  # linux/netlink.h
_NFNLGRP_NFTABLES = 7  # linux/netfilter/nfnetlink.h
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15  # linux/netfilter/nf_tables.h: one for each transaction, behind all others
_NFTA_GEN_PROC_PID, _NFTA_GEN_PROC_NAME = 2, 3
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1  # netlink(7)
_ATTRIBUTES_OFFSET = 20  # behind struct nlmsghdr and struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with itself, type
_SPACE = 8192

# linux/bpf_common.h, linux/filter.h
_LOAD_HALF, _LOAD_WORD, _LOAD_WORD_AT_X, _LOAD, _LOAD_X = 0x28, 0x20, 0x40, 0x00, 0x01
_JUMP_IF_EQUAL, _TO_X, _RETURN = 0x15, 0x07, 0x06
_FIND_ATTRIBUTE = 0xFFFFF000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR: from offset A on, of type X
_DROP, _PASS = 0, 0xFFFFFFFF


class RulesetNews:
    """Woken by transactions of others, of all tables in this network namespace.

    Those of the thread that makes it are no news, nor are those of the threads ``others_of_ours`` (native ids). Where
    the kernel cannot tell anything, that is logged, and only time wakes.
    """

    def __init__(self, *others_of_ours: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._returned = self._loop.time()
        self._socket: socket.socket | None = None
        try:
            self._socket = _listening((threading.get_native_id(), *others_of_ours))
        except OSError as error:
            LOG.warning(line("ruleset_not_watched", reason=error.strerror, remedy="looked at now and then"))

    def close(self) -> None:
        """End it; nobody may wait any more."""
        if self._socket:
            self._socket.close()

    async def wait(self, at_most: float) -> str | None:
        """The program that changed the ruleset, soon after it did; None when ``at_most`` seconds went by.

        Whoever looks and waits again by turns does so at a bounded rate, whatever others do.
        """
        started = self._loop.time()
        await asyncio.sleep(max(PAUSE_SECONDS, PAUSES_PER_LOOK * (started - self._returned)))
        try:
            heard = await self._hear(started + at_most - self._loop.time())
            if not heard:
                return None
            await asyncio.sleep(SETTLE_SECONDS)
            return self._read()
        finally:
            self._returned = self._loop.time()

    async def _hear(self, seconds: float) -> bool:
        """Whether there is something to be read. Nothing wakes the loop but the first thing that comes."""
        heard: asyncio.Future[bool] = self._loop.create_future()
        timer = self._loop.call_later(max(0.0, seconds), _tell, heard, False)
        if self._socket:
            self._loop.add_reader(self._socket, _tell, heard, True)
        try:
            return await heard
        finally:
            timer.cancel()
            if self._socket:
                self._loop.remove_reader(self._socket)

    def _read(self) -> str:
        assert self._socket is not None
        changed_by = UNKNOWN
        with contextlib.suppress(OSError):  # ENOBUFS too: there was more than is remembered
            for _ in range(READ_LIMIT):
                changed_by = _process_name(self._socket.recv(_SPACE))
        return changed_by


def _tell(heard: asyncio.Future[bool], answer: bool) -> None:
    if not heard.done():
        heard.set_result(answer)


def _listening(ours: Collection[int]) -> socket.socket:
    """A socket that gets the last notification of each transaction but ours; raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    try:
        attach(sock, _transactions_of_others(ours))
        sock.bind((0, 0))
        sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
    except OSError:
        sock.close()
        raise
    return sock


def _transactions_of_others(ours: Collection[int]) -> list[bytes]:
    """A filter program. Numbers in a message are in network order to it, and its type is in the machine's."""
    newgen = socket.htons(_NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_NEWGEN)
    return [
        instruction(_LOAD_HALF, 4),
        instruction(_JUMP_IF_EQUAL, newgen, otherwise=7 + len(ours)),
        instruction(_LOAD, _ATTRIBUTES_OFFSET),
        instruction(_LOAD_X, _NFTA_GEN_PROC_PID),
        instruction(_LOAD_WORD, _FIND_ATTRIBUTE),
        instruction(_JUMP_IF_EQUAL, 0, then=2 + len(ours)),
        instruction(_TO_X, 0),
        instruction(_LOAD_WORD_AT_X, _ATTRIBUTE.size),
        *(instruction(_JUMP_IF_EQUAL, thread, then=len(ours) - at) for at, thread in enumerate(ours)),
        instruction(_RETURN, _PASS),
        instruction(_RETURN, _DROP),
    ]


def _process_name(message: bytes) -> str:
    at = _ATTRIBUTES_OFFSET
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _NFTA_GEN_PROC_NAME:
            return message[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode(errors="replace")
        at += max(length, _ATTRIBUTE.size) + -length % 4
    return UNKNOWN
