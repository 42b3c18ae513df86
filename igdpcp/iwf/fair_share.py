# SPDX-License-Identifier: Apache-2.0
"""The last mappings are for hosts that hold few: no host can take them all, and keep the others waiting.

``total`` mappings can be had: ``max_mappings``, or the carrier's quota where that is less and has been met. A host's
fair share is ``total`` divided by the hosts that hold some or were refused one lately; one that is alone may have all.
While more than the last ``total / LAST_PART`` are free, whoever asks gets one. Of these last ones a host gets one only
while it holds less than its fair share, and less than are free. So a host that holds none gets one whenever one is
free; and when none was free, the first ones that are given back go to hosts that hold none.

What the operator wants uses mappings up, but is no host's. What the router has granted alone uses nothing of a quota.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.table import MappingTable

LAST_PART = 8
WANTING_SECONDS = 600.0  # who was refused one is waited for so long
WANTING_LIMIT = 256  # hosts
QUOTA_SECONDS = 1800.0  # after the carrier last said so its quota is believed; the longest that a refusal counts


def are_the_last(free: int, total: int) -> bool:
    """Whether so many free ones are not for everybody."""
    return free <= max(1, total // LAST_PART)


def may_have_of_the_last(held: int, free: int, total: int, hosts: int) -> bool:
    """Whether a host that holds ``held`` may have one of them; ``hosts``: how many hold some or want some."""
    return hosts == 1 or (held < max(1, total // hosts) and held < free)


class FairShare:
    """Knows how many there are, and who waits for one."""

    def __init__(self, limit: int, table: MappingTable, clock: Callable[[], float]) -> None:
        """``limit`` is what the router itself allows."""
        self._limit = limit
        self._table = table
        self._clock = clock
        self._quota = 0  # the carrier's, as it was when it was met
        self._quota_until = float("-inf")
        self._wanting: dict[IPv4Address, float] = {}

    def _total_and_free(self) -> tuple[int, int]:
        """How many mappings can be had, and how many of these nobody has."""
        table = self._table
        total, free = self._limit, self._limit - table.counted
        if self._clock() < self._quota_until:
            quota, alone = max(self._quota, table.at_carrier), table.listed - table.at_carrier
            total, free = min(total, quota), min(free, quota - table.counted + alone)
        return total, free

    def quota_met(self, client: IPv4Address | None, coming: int) -> None:
        """The carrier has refused one more than it has granted by now, to this host or (None) to the operator.

        ``coming``: how many it has granted of which the table does not say so yet.
        """
        if client:
            self._want(client)
        self._quota, self._quota_until = self._table.at_carrier + coming, self._clock() + QUOTA_SECONDS

    def forget_quota(self) -> None:
        """The carrier that said so is not asked now, or it is another one."""
        self._quota_until = float("-inf")

    def admit(self, client: IPv4Address) -> None:
        """As ``check``, for a host that wants one now: it waits for one from now on, or no more."""
        try:
            self.check(client)
        except Refusal:
            self._want(client)
            raise
        self._wanting.pop(client, None)

    def check(self, client: IPv4Address, *, joins: bool = False) -> None:
        """Raises Refusal when this host may not have one more. Whether the carrier has one left is for it to say.

        ``joins``: to the carrier it is one with a mapping that is there, and uses nothing of its quota.
        """
        held = self._table.held_by(client)
        if self._table.counted >= self._limit:
            raise Refusal(Reason.QUOTA, f"max_mappings is {self._limit}")
        total, free = (self._limit, self._limit - self._table.counted) if joins else self._total_and_free()
        if held and are_the_last(free, total) and not may_have_of_the_last(held, free, total, self._hosts(client)):
            raise Refusal(Reason.UNFAIR, f"{client} holds {held} of {total}")

    def _hosts(self, client: IPv4Address) -> int:
        waiting = {host for host, until in self._wanting.items() if until > self._clock()}
        return len(waiting | self._table.clients() | {client})

    def _want(self, client: IPv4Address) -> None:
        self._wanting.pop(client, None)
        if len(self._wanting) >= WANTING_LIMIT:
            del self._wanting[next(iter(self._wanting))]
        self._wanting[client] = self._clock() + WANTING_SECONDS
