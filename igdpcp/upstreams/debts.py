# SPDX-License-Identifier: Apache-2.0
"""What is to be given back and cannot be told now: nobody is asked, or another server than the one that holds it."""

from __future__ import annotations

from collections.abc import Callable

from igdpcp.model import UpstreamRequest

DEBTS_MAX = 4096  # beyond it the oldest are left to their lifetime


class Debts:
    """Deletions in the order in which they became due; ``dropped``: how many were too many."""

    def __init__(self) -> None:
        self._owed: dict[str, UpstreamRequest] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, request: UpstreamRequest) -> UpstreamRequest | None:
        """Owe the deletion of this mapping; returns what is owed no longer because it was too many."""
        self._owed.pop(request.id, None)
        self._owed[request.id] = request
        if len(self._owed) <= DEBTS_MAX:
            return None
        self.dropped += 1
        return self._owed.pop(next(iter(self._owed)))

    def forget(self, id: str) -> UpstreamRequest | None:
        """It is wanted again; returns what was owed."""
        return self._owed.pop(id, None)

    def take(self, chosen: Callable[[UpstreamRequest], bool]) -> list[UpstreamRequest]:
        """Those that are ``chosen``, which are owed no longer."""
        taken = [request for request in self._owed.values() if chosen(request)]
        for request in taken:
            del self._owed[request.id]
        return taken
