# SPDX-License-Identifier: Apache-2.0
"""The carrier's mappings: who holds which external port, until when, and who may have the next one."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.lab.simulated_carrier.packets import MapRequest
from tests.lab.simulated_carrier.profiles import Profile
from tests.support.pcp_octets import (
    CANNOT_PROVIDE_EXTERNAL,
    CLIENT_PORT,
    LONG,
    PCP_PORT,
    SHORT,
    USER_EX_QUOTA,
    Refusal,
)

NETWORK_FAILURE, NO_RESOURCES = 7, 8  # RFC 6887 section 7.4
TCP, UDP = 6, 17
COMPANION = {TCP: UDP, UDP: TCP}
NEVER_GIVEN = {(UDP, CLIENT_PORT), (UDP, PCP_PORT)}  # RFC 6887 section 11.3
ANY_ADDRESS = ("0.0.0.0", "::")

Key = tuple[int, str, int]  # protocol, internal address, internal port
External = tuple[int, str, int]  # protocol, external address, external port


@dataclass(frozen=True, slots=True)
class Translation:
    """What the NAT does for one mapping; ``peers``: the only remote hosts let in, empty for all."""

    protocol: int
    internal: str
    internal_port: int
    external: str
    external_port: int
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One mapping. ``nonce`` None: made over NAT-PMP. ``request`` came last for it, from ``client``."""

    translation: Translation
    nonce: bytes | None
    ends: float
    description: bytes = b""
    request: MapRequest | None = None
    client: tuple[str, int] = ("", 0)

    @property
    def key(self) -> Key:
        return self.translation.protocol, self.translation.internal, self.translation.internal_port

    @property
    def external(self) -> External:
        return self.translation.protocol, self.translation.external, self.translation.external_port

    def rest(self, now: float) -> int:
        """Whole seconds that are left."""
        return max(0, math.ceil(self.ends - now))


@dataclass(frozen=True, slots=True)
class Wish:
    """An external port that is wanted for ``key``; ``exact``: this one or none. ``nonce`` as in an Entry."""

    key: Key
    nonce: bytes | None
    port: int = 0
    address: str = ANY_ADDRESS[0]
    exact: bool = False


@dataclass(slots=True)
class NatChanges:
    """What the NAT has to do so that packets follow the table, in this order."""

    removed: list[Translation] = field(default_factory=list)
    added: list[Translation] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.removed or self.added)


class MappingTable:
    """Mappings by internal tuple; ``take_changes`` gives what became of their translations."""

    def __init__(self, profile: Profile, addresses: Sequence[str], rng: random.Random) -> None:
        self.profile = profile
        self._addresses = tuple(addresses)
        self._rng = rng
        self._changes = NatChanges()
        self._forget()

    def _forget(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._holders: dict[External, Entry] = {}
        self._resting: dict[External, tuple[float, tuple[object, ...]]] = {}
        self._paired: dict[str, str] = {}
        self.blocks: dict[str, tuple[int, int]] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    def put(self, entry: Entry) -> None:
        """Add an entry, or put it in the place of the one with its key."""
        before = self._entries.get(entry.key)
        if before is None or before.translation != entry.translation:
            if before is not None:
                self._drop(before)
            self._changes.added.append(entry.translation)
        self._entries[entry.key] = self._holders[entry.external] = entry

    def remove(self, entry: Entry, now: float) -> None:
        """End a mapping; its port rests."""
        self._drop(entry)
        self._resting[entry.external] = (now + self.profile.recycle_delay, _owner(entry.key, entry.nonce))

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key], self._holders[entry.external]
        if entry.translation in self._changes.added:
            self._changes.added.remove(entry.translation)  # the NAT never heard of it
        else:
            self._changes.removed.append(entry.translation)

    def expire(self, now: float) -> None:
        for entry in self:
            if entry.ends <= now:
                self.remove(entry, now)

    def next_end(self) -> float | None:
        return min((entry.ends for entry in self._entries.values()), default=None)

    def lose(self) -> None:
        """Everything is forgotten, also who had which port."""
        self._changes.removed += [entry.translation for entry in self]
        self._forget()

    def take_changes(self) -> NatChanges:
        changes, self._changes = self._changes, NatChanges()
        return changes

    @property
    def addresses(self) -> tuple[str, ...]:
        """The external addresses."""
        return self._addresses

    def readdress(self, addresses: Sequence[str], now: float) -> None:
        """Move every mapping to these external addresses, to the same port where that can be."""
        entries = list(self)
        for entry in entries:
            self._drop(entry)
        self._addresses = tuple(addresses)
        self._paired.clear()
        for entry in entries:
            with contextlib.suppress(Refusal):
                address, port = self.assign(Wish(entry.key, entry.nonce, entry.translation.external_port), now)
                moved = replace(entry.translation, external=address, external_port=port)
                self.put(replace(entry, translation=moved))

    # Assigning (RFC 6887 section 11.3)

    def assign(self, wish: Wish, now: float) -> tuple[str, int]:
        """An external address and port for a mapping that is not there yet; raises Refusal."""
        protocol, internal, _ = wish.key
        if self.profile.quota and sum(key[1] == internal for key in self._entries) >= self.profile.quota:
            raise Refusal(USER_EX_QUOTA, SHORT)
        address = self.paired_address(internal)
        low, high = self._ports_of(internal, address)
        free_at = self._free_at(wish, (protocol, address, wish.port), now)
        if wish.address in (*ANY_ADDRESS, address) and free_at <= now:
            return address, wish.port
        if wish.exact:
            raise Refusal(CANNOT_PROVIDE_EXTERNAL, LONG if math.isinf(free_at) else max(1, math.ceil(free_at - now)))
        start = self._rng.randint(low, high)
        for port in (*range(start, high + 1), *range(low, start)):
            if self._free_at(wish, (protocol, address, port), now) <= now:
                return address, port
        raise Refusal(USER_EX_QUOTA if self.profile.port_block else NO_RESOURCES, SHORT)

    def paired_address(self, internal: str) -> str:
        """The external address of an internal one, always the same while it lasts (RFC 4787 section 4.1)."""
        if not self._addresses:
            raise Refusal(NETWORK_FAILURE, SHORT)
        if internal not in self._paired:
            self._paired[internal] = self._addresses[len(self._paired) % len(self._addresses)]
        return self._paired[internal]

    def _ports_of(self, internal: str, address: str) -> tuple[int, int]:
        size, (low, high) = self.profile.port_block, self.profile.ports
        if not size:
            return low, high
        if internal not in self.blocks:
            taken = {block for owner, block in self.blocks.items() if self._paired.get(owner) == address}
            blocks = [(first, first + size - 1) for first in range(low, high - size + 2, size)]
            free = [block for block in blocks if block not in taken]
            if not free:
                raise Refusal(NO_RESOURCES, SHORT)
            self.blocks[internal] = self._rng.choice(free)
        return self.blocks[internal]

    def _free_at(self, wish: Wish, external: External, now: float) -> float:
        """When this port can be given to that client: infinity for never, the past for at once."""
        protocol, address, port = external
        low, high = self._ports_of(wish.key[1], address)
        if not low <= port <= high or (protocol, port) in NEVER_GIVEN:
            return math.inf
        if holder := self._holders.get(external):
            return holder.ends + self.profile.recycle_delay
        companion = self._holders.get((COMPANION[protocol], address, port))
        if companion and self._is_reserved(companion, wish):
            return companion.ends
        until, owner = self._resting.get(external, (-math.inf, ()))
        return -math.inf if owner == _owner(wish.key, wish.nonce) else until

    @staticmethod
    def _is_reserved(companion: Entry, wish: Wish) -> bool:
        """NAT-PMP keeps a port's other protocol for the same client (RFC 6886 section 3.3)."""
        return None in (companion.nonce, wish.nonce) and companion.translation.internal != wish.key[1]


def _owner(key: Key, nonce: bytes | None) -> tuple[object, ...]:
    """Who gets a freed port back before all others (RFC 6887 section 15)."""
    return (*key, nonce)
