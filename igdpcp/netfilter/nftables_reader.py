# SPDX-License-Identifier: Apache-2.0
"""Elements of sets and maps, and how many rules chains have, read from nf_tables by netlink.

libnftables can do it too, but to look for one element it reads all of the table, and all that it reads it holds at
once. Here one element is one question, and a whole set passes by piece by piece.
"""

from __future__ import annotations

import errno
import math
from collections import Counter
from collections.abc import Iterator

from igdpcp.errors import RulesetError
from igdpcp.netfilter import nftables_netlink as netlink
from igdpcp.netfilter.nftables_netlink import Attributes, Connection, Counted, attribute, attributes, nested
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class Element:
    """An element as the kernel holds it.

    ``left`` are its seconds, infinite where it has no timeout; ``counted`` are packets and bytes.
    """

    key: bytes
    data: bytes
    left: float
    counted: Counted


class NftablesReader:
    """Reads table ``inet NAME`` of the network namespace in which its caller's thread is, which is the connection's.

    Raises RulesetError, also when what is to be read does not exist.
    """

    def __init__(self, table: str, connection: Connection) -> None:
        self._table = table
        self._connection = connection

    def elements(self, name: str) -> Iterator[Element]:
        """All elements of a set or map."""
        for answer in self._dump(netlink.GETSETELEM, netlink.set_of(self._table, name)):
            yield from _elements(answer)

    def element(self, name: str, key: bytes) -> Element | None:
        """The element with this key; None also where there is no such set."""
        wanted = nested(netlink.LIST_ELEM, netlink.value(netlink.ELEM_KEY, key))
        body = netlink.set_of(self._table, name) + nested(netlink.LIST_ELEMENTS, wanted)
        try:
            return next(_elements(self._connection.ask(netlink.GETSETELEM, body)), None)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise self._unread(error) from error
            return None

    def generation(self) -> bytes:
        """What is another one after each change of the ruleset, whoever made it.

        A reading during which it changed may have left something out; for elements the kernel does not say so itself.
        """
        try:
            return self._connection.ask(netlink.GETGEN, b"")[netlink.GEN_ID]
        except OSError as error:
            raise self._unread(error) from error

    def rules(self) -> Counter[str]:
        """How many rules each chain of the table has that has any."""
        table = attribute(netlink.RULE_TABLE, self._table.encode() + b"\0")
        answers = self._dump(netlink.GETRULE, table)
        return Counter(answer[netlink.RULE_CHAIN].rstrip(b"\0").decode() for answer in answers)

    def _dump(self, kind: int, body: bytes) -> Iterator[Attributes]:
        try:
            yield from netlink.dump(kind, body)
        except OSError as error:
            raise self._unread(error) from error

    def _unread(self, error: OSError) -> RulesetError:
        return RulesetError(f"nftables table inet {self._table} cannot be read: {error.strerror or error}")


def _elements(answer: Attributes) -> Iterator[Element]:
    for _, held in attributes(answer.get(netlink.LIST_ELEMENTS, b"")):
        element = dict(attributes(held))
        left = element.get(netlink.ELEM_EXPIRATION)
        yield Element(
            key=_value(element[netlink.ELEM_KEY]),
            data=_value(element[netlink.ELEM_DATA]) if netlink.ELEM_DATA in element else b"",
            left=netlink.LONG.unpack(left)[0] / 1000 if left else math.inf,
            counted=_counted(element[netlink.ELEM_EXPR]) if netlink.ELEM_EXPR in element else (0, 0),
        )


def _value(data: bytes) -> bytes:
    return dict(attributes(data)).get(netlink.DATA_VALUE, b"")


def _counted(expression: bytes) -> Counted:
    said = dict(attributes(expression))
    if said.get(netlink.EXPR_NAME) != netlink.COUNTER:
        return 0, 0
    counter = dict(attributes(said[netlink.EXPR_DATA]))
    packets, bytes_ = (
        netlink.LONG.unpack(counter[kind])[0] for kind in (netlink.COUNTER_PACKETS, netlink.COUNTER_BYTES)
    )
    return packets, bytes_
