# SPDX-License-Identifier: Apache-2.0
"""The epoch of the LAN's PCP and NAT-PMP server, and telling hosts when another one begins.

It is this server's own (RFC 7648 section 4): what the carrier loses, the daemon asks for again by itself. It begins
anew with the server, and when what hosts were told is no longer where the internet finds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address

from igdpcp.iwf.internal_tuples import InternalTuples

ANNOUNCEMENTS = 10  # RFC 6887 section 14.1.3, RFC 6886 section 3.2.1
SHORTEST = 60.0  # seconds of an epoch that ends because promises were broken: hosts can have a hand in that
FIRST_GAP = 0.25  # seconds between the first two; each further gap is twice as long
LOOK_DELAY = 1.0  # seconds in which changes of the table are one


class PcpEpoch:
    """``say`` is called whenever hosts are to be told the epoch, and ``address``."""

    def __init__(
        self,
        tuples: InternalTuples,
        outside: Callable[[], IPv4Address | None],
        uses: Callable[[IPv4Address], bool],
        say: Callable[[], None],
    ) -> None:
        """``tuples`` know what hosts were told of. ``outside`` tells the external address, ``uses`` whether any mapping
        is at that one.
        """
        self.address: IPv4Address | None = None  # the latest one that was known
        self._tuples = tuples
        self._outside = outside
        self._uses = uses
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._said = 0
        self._next: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._check: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> int:
        """RFC 6887 section 8.5."""
        return int(self._loop.time() - self._began)

    def announce(self) -> None:
        """Tell hosts, who may not hear it each time, from now on at growing distances."""
        self.address = self.address or self._outside()
        if self._next:
            self._next.cancel()
        self._said = 0
        self._announce_once()

    def look_again(self) -> None:
        """What hosts were told may be so no more. Cheap: it is called with every change of the table."""
        if self._look is None and self._outside() not in (None, self.address):
            self._look = self._loop.call_later(LOOK_DELAY, self._compare)
        if self._check is None and self._tuples.promises:
            rest = SHORTEST - (self._loop.time() - self._began)
            self._check = self._loop.call_later(max(rest, LOOK_DELAY), self._keep_promises)

    def stop(self) -> None:
        for timer in (self._next, self._look, self._check):
            if timer:
                timer.cancel()
        self._next = self._look = self._check = None

    def _compare(self) -> None:
        """A carrier may give several addresses: the former one has changed only when no mapping has it any more."""
        self._look = None
        address = self._outside()
        if address is None or address == self.address or (self.address and self._uses(self.address)):
            return
        if self.address:
            self._began = self._loop.time()
            self._tuples.broken_promises()  # whoever hears of this needs no other word
        self.address = address
        self.announce()

    def _keep_promises(self) -> None:
        """A host whose port was given up or moved asks again when it hears of another epoch (RFC 6887 section 8.5)."""
        self._check = None
        if self._tuples.broken_promises():
            self._began = self._loop.time()
            self.announce()

    def _announce_once(self) -> None:
        self._say()
        self._said += 1
        gap = FIRST_GAP * 2 ** (self._said - 1)
        self._next = self._loop.call_later(gap, self._announce_once) if self._said < ANNOUNCEMENTS else None
