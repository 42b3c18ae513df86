# SPDX-License-Identifier: Apache-2.0
"""A carrier's PCP and NAT-PMP server without its sockets: datagrams and time in, datagrams out.

Two verbs, ``receive`` and ``handle_timer`` (due at ``next_timer``), give what is to be sent; after either of them the
NAT has to do what ``take_nat_changes`` says before that leaves. ``now`` is a monotonic clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.simulated_carrier import natpmp, packets
from tests.lab.simulated_carrier.natpmp import NatPmpServer
from tests.lab.simulated_carrier.pcp_server import RESULT_OCTET, PcpServer
from tests.lab.simulated_carrier.profiles import Profile
from tests.lab.simulated_carrier.table import Entry, MappingTable, NatChanges
from tests.support.pcp_octets import CLIENT_PORT, HEADER, PROTOCOLS, RESPONSE

ALL_HOSTS = "224.0.0.1"
ANNOUNCEMENTS = 10  # RFC 6887 section 14.1.1, RFC 6886 section 3.2.1
UPDATES = 3  # RFC 6887 section 14.2
FIRST_GAP = 0.25  # seconds, each further one doubled; the same sections
SHORTEST_REQUEST = 2
REQUESTS_KEPT = 20000

Source = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A datagram and where it goes."""

    data: bytes
    to: Source


class SimulatedServer:
    """One server. ``counters`` has all it received and answered, ``requests`` the last of them in words."""

    def __init__(self, profile: Profile, addresses: Sequence[str], *, seed: int, now: float, epoch: int = 0) -> None:
        """``epoch``: for how many seconds it has been running."""
        self.counters: Counter[str] = Counter()
        self.requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)
        self._table = MappingTable(profile, addresses, random.Random(seed))
        self._pcp = PcpServer(self._table, self.epoch)
        self._natpmp = NatPmpServer(self._table, self.epoch)
        self._epoch_zero = now - epoch
        self._serial = itertools.count()
        self._planned: list[tuple[float, int, Callable[[float], Outgoing | None]]] = []

    @property
    def profile(self) -> Profile:
        return self._table.profile

    @property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """The port block of each internal address that has one."""
        return self._table.blocks

    def epoch(self, now: float) -> int:
        return int(now - self._epoch_zero)

    def listing(self, now: float) -> list[dict[str, Any]]:
        """The mappings that live, as JSON can say them."""
        self._table.expire(now)
        return [
            {
                "protocol": PROTOCOLS[entry.translation.protocol],
                "external_port": entry.translation.external_port,
                "address": entry.translation.internal,
                "port": entry.translation.internal_port,
                "lifetime": entry.rest(now),
                "filters": list(entry.translation.peers),
                "description": entry.description.decode(),
                "nonce": "" if entry.nonce is None else entry.nonce.hex(),
                "external_address": entry.translation.external,
            }
            for entry in self._table
        ]

    def take_nat_changes(self) -> NatChanges:
        """What became of the translations since this was last asked."""
        return self._table.take_changes()

    # Verbs

    def receive(self, raw: bytes, source: Source, now: float) -> list[Outgoing]:
        """Take a datagram; what goes back."""
        self._table.expire(now)
        self.counters["received"] += 1
        reply = None
        if len(raw) < SHORTEST_REQUEST:
            self.counters["dropped_short"] += 1
        elif raw[1] & RESPONSE:
            self.counters["dropped_response"] += 1
        else:
            self.counters[f"version_{raw[0]}_opcode_{raw[1]}"] += 1
            reply = self._answer(raw, source, now)
        self.note(raw, source, now, None if reply is None else reply[RESULT_OCTET])
        return [] if reply is None else [Outgoing(reply, source)]

    def note(self, raw: bytes, source: Source, now: float, result: int | None) -> None:
        """Remember a request with its result, None when nothing was answered."""
        note = {"at": now, "from": source[0], "from_port": source[1], "result": result}
        self.requests.append(note | packets.in_words(raw))

    def next_timer(self) -> float | None:
        ends = self._table.next_end()
        planned = self._planned[0][0] if self._planned else None
        return min((at for at in (ends, planned) if at is not None), default=None)

    def handle_timer(self, now: float) -> list[Outgoing]:
        """Do what has become due; what is to be sent."""
        self._table.expire(now)
        outgoing = []
        while self._planned and self._planned[0][0] <= now:
            _, _, make = heapq.heappop(self._planned)
            if (datagram := make(now)) is not None:
                outgoing.append(datagram)
        return outgoing

    # What the test wants to happen

    def use_profile(self, profile: Profile) -> None:
        """Behave like this from now on; what was granted stays."""
        self._table.profile = profile

    def restart(self, now: float, *, announce: bool | None = None) -> None:
        """Lose everything; the epoch begins anew unless the profile keeps it. ``announce`` None: as the profile."""
        self._table.lose()
        self._planned.clear()
        self._begin_epoch(now)
        if self.profile.announces if announce is None else announce:
            self.announce(now)

    def lose_state(self) -> None:
        """Lose every mapping, say nothing, and let the epoch go on as if all were there."""
        self._table.lose()

    def announce(self, now: float) -> None:
        """Tell everybody, several times, that the server is there and since when."""
        if self.profile.versions:
            self._plan(now, ANNOUNCEMENTS, lambda at: Outgoing(self._pcp.announcement(at), (ALL_HOSTS, CLIENT_PORT)))
        if self.profile.natpmp:
            self._plan(now, ANNOUNCEMENTS, self._address_announcement)

    def use_addresses(self, addresses: Sequence[str], now: float) -> None:
        """Move all mappings to other external addresses, and say so as the profile does."""
        self._table.readdress(addresses, now)
        self._begin_epoch(now)
        for entry in self._table if self.profile.updates else ():
            if entry.request is not None and not self._pcp.still_fits(entry):
                self._table.remove(entry, now)
            self._plan(now, UPDATES, self._update_of(entry))
        if self.profile.announces:
            self.announce(now)

    # Odds and ends

    def _answer(self, raw: bytes, source: Source, now: float) -> bytes | None:
        if raw[0] == natpmp.VERSION and self.profile.natpmp:
            reply = self._natpmp.answer(raw, source, now)
        elif not self.profile.versions:
            reply = self._natpmp.unsupported_version(raw, now)
        elif raw[0] in self.profile.versions and len(raw) < HEADER:
            reply = None
        else:
            reply = self._pcp.answer(raw, source, now)
        self.counters["dropped_short" if reply is None else f"result_{reply[RESULT_OCTET]}"] += 1
        return reply

    def _plan(self, now: float, copies: int, make: Callable[[float], Outgoing | None]) -> None:
        at, gap = now, FIRST_GAP
        for _ in range(copies):
            heapq.heappush(self._planned, (at, next(self._serial), make))
            at, gap = at + gap, 2 * gap

    def _address_announcement(self, now: float) -> Outgoing:
        return Outgoing(self._natpmp.address_response(ALL_HOSTS, now), (ALL_HOSTS, CLIENT_PORT))

    def _begin_epoch(self, now: float) -> None:
        if self.profile.resets_epoch:
            self._epoch_zero = now

    def _update_of(self, moved: Entry) -> Callable[[float], Outgoing | None]:
        """A Mapping Update that is not sent any more when the mapping is another one by then."""
        held = self._table.get(moved.key)

        def make(now: float) -> Outgoing | None:
            if moved.request is None or self._table.get(moved.key) is not held:
                return None
            return Outgoing(self._pcp.update(moved, moved.request, now), moved.client)

        return make
