# SPDX-License-Identifier: Apache-2.0
"""Messages of nf_tables' netlink: put together, sent, answered, taken apart."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache

Attributes = dict[int, bytes]
Counted = tuple[int, int]  # packets, bytes
_Message = tuple[int, int, bytes]  # kind, flags, payload

# linux/netfilter/nf_tables.h: enum nf_tables_msg_types, and the attributes of its messages
GETRULE, NEWSETELEM, GETSETELEM, DELSETELEM, GETGEN = 7, 12, 13, 14, 16
GEN_ID = 1
RULE_TABLE, RULE_CHAIN = 1, 2
LIST_TABLE, LIST_SET, LIST_ELEMENTS, LIST_ELEM = 1, 2, 3, 1
ELEM_KEY, ELEM_DATA, ELEM_TIMEOUT, ELEM_EXPIRATION, ELEM_EXPR = 1, 2, 4, 5, 7
DATA_VALUE = 1
EXPR_NAME, EXPR_DATA = 1, 2
COUNTER, COUNTER_BYTES, COUNTER_PACKETS = b"counter\0", 1, 2
LONG = struct.Struct(">Q")

NLM_F_CREATE = 0x400  # linux/netlink.h, as what follows
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NETLINK_NETFILTER, _SOL_NETLINK, _NETLINK_CAP_ACK = 12, 270, 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11  # linux/netfilter/nfnetlink.h
_NFNL_SUBSYS_NFTABLES = 10
_NFPROTO_INET = 1  # linux/netfilter.h
_SO_SNDBUFFORCE = 31 if os.uname().machine.startswith("mips") else 32  # asm/socket.h

_HEADER = struct.Struct("=LHHLL")  # netlink(7): struct nlmsghdr
_FAMILY = struct.Struct(">BBH")  # linux/netfilter/nfnetlink.h: struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # linux/netlink.h: struct nlattr, its length with itself, and its type
_VALUE = struct.Struct("=HHHH")  # two such heads, one in the other
_ERROR = struct.Struct("=l")
_NESTED, _TYPE = 0x8000, 0x3FFF  # NLA_F_NESTED, NLA_TYPE_MASK
_ALIGNED = 4
_SPACE = 65536  # the kernel fills at most half of it at a time
_ANSWER_SECONDS = 5.0  # the kernel answers at once, or not at all
_KEPT_FREE = 32  # octets of a buffer that a message cannot have
_SETS = 64  # remembered


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, filled up to whole words."""
    length = _ATTRIBUTE.size + len(value)
    filled = -length % _ALIGNED
    packed = _ATTRIBUTE.pack(length, kind) + value
    return packed + bytes(filled) if filled else packed


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds these."""
    return attribute(kind | _NESTED, b"".join(attributes))


def value(kind: int, octets: bytes) -> bytes:
    """An attribute that holds a value: the key of an element, or its data."""
    length = _ATTRIBUTE.size + len(octets)
    filled = -length % _ALIGNED
    packed = _VALUE.pack(_ATTRIBUTE.size + length + filled, kind | _NESTED, length, DATA_VALUE) + octets
    return packed + bytes(filled) if filled else packed


@lru_cache(_SETS)
def set_of(table: str, name: str) -> bytes:
    """The attributes that say which set or map of which table a message is about."""
    return attribute(LIST_TABLE, table.encode() + b"\0") + attribute(LIST_SET, name.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _TYPE, data[at + _ATTRIBUTE.size : at + length]
        at += max(length, _ATTRIBUTE.size) + -length % _ALIGNED


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A message about tables of family ``inet``."""
    return _packed(_NFNL_SUBSYS_NFTABLES << 8 | kind, flags, _FAMILY.pack(_NFPROTO_INET, 0, 0) + body)


def dump(kind: int, body: bytes) -> Iterator[Attributes]:
    """The attributes of each message of a long answer. Raises OSError."""
    with _socket(_ANSWER_SECONDS) as sock:  # of its own: whoever asks may leave the rest of the answer in it
        sock.send(message(kind, _NLM_F_DUMP, body))
        while True:
            for answer, _, payload in _messages(sock.recv(_SPACE)):
                if answer == _NLMSG_ERROR:
                    raise _error(payload)
                if answer == _NLMSG_DONE:
                    return
                yield _said(payload)


class Connection:
    """For questions about single things, and for changes; to the network namespace in which it is first used.

    It stays open: the kernel lets whoever closes a socket wait until all is freed that was deleted, which takes many
    times as long as a change.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def ask(self, kind: int, body: bytes) -> Attributes:
        """The attributes of the one message that is the answer. Raises OSError."""
        answer, _, payload = self._exchange(message(kind, 0, body))[0]
        if answer == _NLMSG_ERROR:
            raise _error(payload)
        return _said(payload)

    def commit(self, messages: Iterable[bytes]) -> None:
        """Carry all of them out in one transaction, or none. Raises OSError: why the first one was refused."""
        *others, last = messages
        length, kind, flags, *rest = _HEADER.unpack_from(last)
        answered = _HEADER.pack(length, kind, flags | _NLM_F_ACK, *rest) + last[_HEADER.size :]
        subsystem = _FAMILY.pack(0, 0, _NFNL_SUBSYS_NFTABLES)
        begin, end = (_packed(kind, 0, subsystem) for kind in (_BATCH_BEGIN, _BATCH_END))
        for answer, _, payload in self._exchange(b"".join((begin, *others, answered, end))):
            if answer == _NLMSG_ERROR and (error := _error(payload)).errno:
                raise error

    def close(self) -> None:
        """Let go of it; it is opened again when it is used."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _exchange(self, sent: bytes) -> list[_Message]:
        """What the kernel has answered, at least one message: it does all while it takes what is sent."""
        sock = self._opened()
        answers: list[_Message] = []
        try:
            _make_room(sock, len(sent))
            sock.send(sent)
            with suppress(BlockingIOError):
                while True:
                    answers += _messages(sock.recv(_SPACE))
            if not answers:
                raise OSError(errno.ENODATA, "no answer")
        except BaseException:
            self.close()  # what is still in it would be taken for the answer to what comes next
            raise
        return answers

    def _opened(self) -> socket.socket:
        if self._socket is None:
            sock = _socket(timeout=0)
            sock.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # errors without the message that is refused
            self._socket = sock
        return self._socket


def _socket(timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    sock.settimeout(timeout)
    return sock


def _make_room(sock: socket.socket, size: int) -> None:
    """Let one message of this size be sent where that is allowed; else sending it says that it is too long."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < size + _KEPT_FREE:
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)  # of which the kernel makes twice as much
        except PermissionError:  # in a container
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def _said(payload: bytes) -> Attributes:
    return dict(attributes(payload[_FAMILY.size :]))


def _packed(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body


def _messages(answer: bytes) -> Iterator[_Message]:
    """Kind, flags and payload of each."""
    at = 0
    while at < len(answer):
        length, kind, flags, *_ = _HEADER.unpack_from(answer, at)
        yield kind, flags, answer[at + _HEADER.size : at + length]
        at += length + -length % _ALIGNED


def _error(payload: bytes) -> OSError:
    code = -_ERROR.unpack_from(payload)[0]
    return OSError(code, os.strerror(code))
