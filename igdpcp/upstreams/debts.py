# SPDX-License-Identifier: Apache-2.0
"""What is to be given back and cannot be told now: nobody is asked, or another server than the one that holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from igdpcp.model import UpstreamRequest

DEBTS_MAX = 4096  # beyond it the oldest are left to their lifetime


class Debts:
    """Deletions in the order in which they became due; ``dropped``: how many were too many."""

    def __init__(self) -> None:
        self._owed: dict[str, UpstreamRequest] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._owed)

    def add(self, request: UpstreamRequest) -> None:
        """Owe the deletion of this mapping."""
        self._owed.pop(request.id, None)
        self._owed[request.id] = request
        if len(self._owed) > DEBTS_MAX:
            del self._owed[next(iter(self._owed))]
            self.dropped += 1

    def leave(self, request: UpstreamRequest) -> None:
        """Owe it to the server that granted it, while the mapping itself goes on elsewhere under its own id."""
        assert request.grant is not None
        self.add(replace(request, id=f"{request.id} at {request.grant.server}"))

    def forget(self, id: str) -> None:
        """It is wanted again."""
        self._owed.pop(id, None)

    def take(self, chosen: Callable[[UpstreamRequest], bool]) -> list[UpstreamRequest]:
        """Those that are ``chosen``, which are owed no longer."""
        taken = [request for request in self._owed.values() if chosen(request)]
        for request in taken:
            del self._owed[request.id]
        return taken
