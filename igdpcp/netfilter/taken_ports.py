# SPDX-License-Identifier: Apache-2.0
"""Ports that belong to somebody, and a quick answer whether one does."""

from __future__ import annotations

from collections.abc import Iterable

from igdpcp.model import Protocol
from igdpcp.values import dataclass

BOTH = frozenset(Protocol)
NAMED_LIMIT = 4096  # of how many it is remembered to whom they belong
_PORTS = 65536


@dataclass(frozen=True, slots=True)
class TakenPorts:
    """Ports of some protocols, and in words whose they are."""

    protocols: frozenset[Protocol]
    ports: range
    by: str


def port_range(text: str) -> range | None:
    """One port, or the first and the last with a colon or a dash between; None when it is neither."""
    first, _, last = text.replace(":", "-").partition("-")
    if not (first.isdecimal() and (last or first).isdecimal()):
        return None
    low, high = int(first[:6]), int((last or first)[:6])
    return range(low, high + 1) if 0 < low <= high < _PORTS else None


class PortIndex:
    """Some kilobytes and a microsecond, however many ports are taken."""

    def __init__(self, taken: Iterable[TakenPorts] = ()) -> None:
        taken = list(taken)
        self._named = taken[:NAMED_LIMIT]
        self._bits = dict.fromkeys(Protocol, 0)
        for each in taken:
            for protocol in each.protocols:
                self._bits[protocol] |= ((1 << len(each.ports)) - 1) << each.ports.start

    def __contains__(self, key: tuple[Protocol, int]) -> bool:
        return bool(self._bits[key[0]] >> key[1] & 1)

    def by(self, protocol: Protocol, port: int) -> str:
        """Whose it is, for people."""
        found = (each.by for each in self._named if protocol in each.protocols and port in each.ports)
        return next(found, "a rule of the firewall")
