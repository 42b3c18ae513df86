# SPDX-License-Identifier: Apache-2.0
"""Elements of sets and maps, and how many rules chains have, read from nf_tables by netlink.

libnftables can do it too, but to look for one element it reads all of the table, and all that it reads it holds at
once. Here one element is one question, and a whole set passes by piece by piece.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator

from igdpcp.errors import RulesetError
from igdpcp.values import dataclass

Attributes = dict[int, bytes]
ANSWER_SECONDS = 5.0  # the kernel answers at once, or not at all

_NETLINK_NETFILTER = 12  # linux/netlink.h
_NLM_F_REQUEST, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x10, 0x300  # linux/netlink.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3  # netlink(7)
_NFNL_SUBSYS_NFTABLES = 10  # linux/netfilter/nfnetlink.h
_NFPROTO_INET = 1  # linux/netfilter.h
# linux/netfilter/nf_tables.h: enum nf_tables_msg_types, and the attributes of its messages
_GETRULE, _GETSETELEM = 7, 13
_RULE_TABLE, _RULE_CHAIN = 1, 2
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ELEM = 1, 2, 3, 1
_ELEM_KEY, _ELEM_DATA, _ELEM_EXPIRATION, _ELEM_EXPR = 1, 2, 5, 7
_DATA_VALUE = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2

_HEADER = struct.Struct("=LHHLL")  # netlink(7): struct nlmsghdr
_FAMILY = struct.Struct(">BBH")  # linux/netfilter/nfnetlink.h: struct nfgenmsg
_ATTRIBUTE = struct.Struct("=HH")  # linux/netlink.h: struct nlattr, its length with itself, and its type
_ERROR = struct.Struct("=l")
_LONG = struct.Struct(">Q")
_NESTED, _TYPE = 0x8000, 0x3FFF  # NLA_F_NESTED, NLA_TYPE_MASK
_ALIGNED = 4
_SPACE = 65536  # the kernel fills at most half of it at a time


@dataclass(frozen=True, slots=True)
class Element:
    """An element as the kernel holds it.

    ``key`` and ``data`` are filled up with zeros to whole words of 4 bytes. ``left`` are its seconds, infinite where it
    has no timeout; ``counted`` are packets and bytes.
    """

    key: bytes
    data: bytes
    left: float
    counted: tuple[int, int]


class NftablesReader:
    """Reads table ``inet NAME`` of the network namespace in which its caller's thread is.

    Raises RulesetError, also when what is to be read does not exist.
    """

    def __init__(self, table: str) -> None:
        self._table = table.encode() + b"\0"
        self.disturbed = False  # while the last reading went on, the ruleset changed: it may have left out something

    def elements(self, name: str) -> Iterator[Element]:
        """All elements of a set or map."""
        for answer in self._ask(_GETSETELEM, _NLM_F_DUMP, self._set(name)):
            yield from _elements(answer)

    def element(self, name: str, key: bytes) -> Element | None:
        """The element with this key; None also where there is no such set."""
        wanted = _attribute(_LIST_ELEM | _NESTED, _attribute(_ELEM_KEY | _NESTED, _attribute(_DATA_VALUE, key)))
        answers = self._ask(_GETSETELEM, 0, self._set(name) + _attribute(_LIST_ELEMENTS | _NESTED, wanted))
        return next((element for answer in answers for element in _elements(answer)), None)

    def rules(self) -> Counter[str]:
        """How many rules each chain of the table has that has any."""
        answers = self._ask(_GETRULE, _NLM_F_DUMP, _attribute(_RULE_TABLE, self._table))
        return Counter(answer[_RULE_CHAIN].rstrip(b"\0").decode() for answer in answers)

    def _set(self, name: str) -> bytes:
        return _attribute(_LIST_TABLE, self._table) + _attribute(_LIST_SET, name.encode() + b"\0")

    def _ask(self, kind: int, flags: int, body: bytes) -> Iterator[Attributes]:
        """The attributes of each message of the answer; none where a single thing is asked for that is not there."""
        self.disturbed = False
        length = _HEADER.size + _FAMILY.size + len(body)
        header = _HEADER.pack(length, _NFNL_SUBSYS_NFTABLES << 8 | kind, _NLM_F_REQUEST | flags, 0, 0)
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
                sock.settimeout(ANSWER_SECONDS)
                sock.send(header + _FAMILY.pack(_NFPROTO_INET, 0, 0) + body)
                for changed, payload in _messages(sock, dump=bool(flags)):
                    self.disturbed |= changed
                    yield dict(_attributes(payload[_FAMILY.size :]))
        except OSError as error:
            if error.errno != errno.ENOENT or flags:
                table = self._table[:-1].decode()
                raise RulesetError(f"nftables table inet {table} cannot be read: {error.strerror or error}") from error


def _messages(sock: socket.socket, *, dump: bool) -> Iterator[tuple[bool, bytes]]:
    """Of one answer: whether the ruleset changed meanwhile, and the message's payload. Raises OSError."""
    while True:
        answer = sock.recv(_SPACE)
        at = 0
        while at < len(answer):
            length, kind, flags, *_ = _HEADER.unpack_from(answer, at)
            payload = answer[at + _HEADER.size : at + length]
            if kind == _NLMSG_ERROR:
                code = -_ERROR.unpack_from(payload)[0]
                raise OSError(code, os.strerror(code))
            if kind == _NLMSG_DONE:
                return
            yield bool(flags & _NLM_F_DUMP_INTR), payload
            if not dump:
                return
            at += length + -length % _ALIGNED


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % _ALIGNED)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _TYPE, data[at + _ATTRIBUTE.size : at + length]
        at += max(length, _ATTRIBUTE.size) + -length % _ALIGNED


def _elements(answer: Attributes) -> Iterator[Element]:
    for _, nested in _attributes(answer.get(_LIST_ELEMENTS, b"")):
        element = dict(_attributes(nested))
        left = element.get(_ELEM_EXPIRATION)
        yield Element(
            key=_value(element[_ELEM_KEY]),
            data=_value(element[_ELEM_DATA]) if _ELEM_DATA in element else b"",
            left=_LONG.unpack(left)[0] / 1000 if left else math.inf,
            counted=_counted(element[_ELEM_EXPR]) if _ELEM_EXPR in element else (0, 0),
        )


def _value(data: bytes) -> bytes:
    value = dict(_attributes(data)).get(_DATA_VALUE, b"")
    return value + bytes(-len(value) % _ALIGNED)


def _counted(expression: bytes) -> tuple[int, int]:
    attributes = dict(_attributes(expression))
    if attributes.get(_EXPR_NAME) != b"counter\0":
        return 0, 0
    counter = dict(_attributes(attributes[_EXPR_DATA]))
    packets, bytes_ = (_LONG.unpack(counter[kind])[0] for kind in (_COUNTER_PACKETS, _COUNTER_BYTES))
    return packets, bytes_
