# SPDX-License-Identifier: Apache-2.0
"""The pinholes that are open or being opened, by UniqueID and by what they let in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Address

from igdpcp.model import UNIQUE_IDS, Pinhole, PinholeRequest, Protocol

_Passage = tuple[IPv6Address | None, int, IPv6Address, int, Protocol]


def _passage(request: PinholeRequest) -> _Passage:
    """What makes two requests the same one (WANIPv6FirewallControl:1, AddPinhole)."""
    return request.remote_host, request.remote_port, request.client, request.client_port, request.protocol


class PinholeTable:
    """Listing order is the order of age.

    UniqueIDs are given in turn, so that one that is free again is not soon another's. They begin by chance: an earlier
    process gave some too.
    """

    def __init__(self) -> None:
        self._pinholes: dict[int, Pinhole] = {}
        self._by_passage: dict[_Passage, int] = {}
        self._held: Counter[IPv6Address] = Counter()
        self._last = random.choice(UNIQUE_IDS)

    def __len__(self) -> int:
        return len(self._pinholes)

    def __iter__(self) -> Iterator[Pinhole]:
        return iter(list(self._pinholes.values()))

    def get(self, id: int) -> Pinhole | None:
        return self._pinholes.get(id)

    def find(self, request: PinholeRequest) -> Pinhole | None:
        """The pinhole that lets in just what this request asks for."""
        id = self._by_passage.get(_passage(request))
        return self._pinholes[id] if id else None

    def held_by(self, client: IPv6Address) -> int:
        """How many pinholes lead to this address."""
        return self._held[client]

    def add(self, request: PinholeRequest, lease_ends: float) -> Pinhole:
        """A pinhole with an id of its own; fewer than there are ids must be held."""
        pinhole = Pinhole(self._next_id(), request, lease_ends)
        self._last = pinhole.id
        self.restore(pinhole)
        return pinhole

    def restore(self, pinhole: Pinhole) -> None:
        """Take in one of an earlier process, whose id and passage are free."""
        self._pinholes[pinhole.id] = pinhole
        self._by_passage[_passage(pinhole.request)] = pinhole.id
        self._held[pinhole.request.client] += 1

    def update(self, pinhole: Pinhole) -> None:
        """Put a version with another lease in the old one's place."""
        self._pinholes[pinhole.id] = pinhole

    def forget(self, id: int) -> None:
        request = self._pinholes.pop(id).request
        del self._by_passage[_passage(request)]
        self._held[request.client] -= 1
        if not self._held[request.client]:
            del self._held[request.client]

    def _next_id(self) -> int:
        id = self._last
        while True:
            id = id + 1 if id + 1 in UNIQUE_IDS else UNIQUE_IDS.start
            if id not in self._pinholes:
                return id
