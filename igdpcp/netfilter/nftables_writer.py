# SPDX-License-Identifier: Apache-2.0
"""Elements of sets and maps, written to nf_tables by netlink.

libnftables can do it too, but for each change it reads what the table has in it, whatever little is to be changed, and
one thread has to wait for another. That is most of what a change costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from igdpcp.errors import RulesetError
from igdpcp.netfilter import nftables_netlink as netlink
from igdpcp.netfilter.nftables_netlink import Connection, Counted, attribute, nested

_MESSAGE = 32768  # an attribute has at most 65535 octets, and so have the elements of one message together


def element(key: bytes, data: bytes = b"", *, timeout: int = 0, counted: Counted | None = None) -> bytes:
    """An element as a message has it.

    ``timeout`` in seconds, 0: none. ``counted``: packets and bytes that it has counted already.
    """
    said = netlink.value(netlink.ELEM_KEY, key)
    if data:
        said += netlink.value(netlink.ELEM_DATA, data)
    if timeout:
        said += attribute(netlink.ELEM_TIMEOUT, netlink.LONG.pack(1000 * timeout))
    if counted is not None:
        said += _counter(*counted)
    return nested(netlink.LIST_ELEM, said)


class NftablesWriter:
    """Writes to table ``inet NAME``."""

    def __init__(self, table: str, connection: Connection) -> None:
        self._table = table
        self._connection = connection

    def add(self, name: str, elements: Iterable[bytes]) -> Iterator[bytes]:
        """Messages that add these elements to a set or map; one that is there with other data is refused."""
        return self._messages(netlink.NEWSETELEM, netlink.NLM_F_CREATE, name, elements)

    def delete(self, name: str, elements: Iterable[bytes]) -> Iterator[bytes]:
        """Messages that delete these elements; one that is not there is refused."""
        return self._messages(netlink.DELSETELEM, 0, name, elements)

    def flush(self, name: str) -> bytes:
        """The message that deletes all elements of a set or map."""
        return netlink.message(netlink.DELSETELEM, 0, netlink.set_of(self._table, name))

    def commit(self, messages: Iterable[bytes]) -> None:
        """Carry these messages out in one transaction; raises RulesetError when one of them is refused."""
        try:
            self._connection.commit(messages)
        except OSError as error:
            why = error.strerror or error
            raise RulesetError(f"nftables table inet {self._table} cannot be written: {why}") from error

    def _messages(self, kind: int, flags: int, name: str, elements: Iterable[bytes]) -> Iterator[bytes]:
        body = netlink.set_of(self._table, name)
        part: list[bytes] = []
        size = 0
        for each in elements:
            if size + len(each) > _MESSAGE:
                yield netlink.message(kind, flags, body + nested(netlink.LIST_ELEMENTS, *part))
                part, size = [], 0
            part.append(each)
            size += len(each)
        if part:
            yield netlink.message(kind, flags, body + nested(netlink.LIST_ELEMENTS, *part))


def _counter(packets: int, bytes_: int) -> bytes:
    numbers = ((netlink.COUNTER_BYTES, bytes_), (netlink.COUNTER_PACKETS, packets))
    counts = nested(netlink.EXPR_DATA, *(attribute(kind, netlink.LONG.pack(number)) for kind, number in numbers))
    return nested(netlink.ELEM_EXPR, attribute(netlink.EXPR_NAME, netlink.COUNTER), counts)
