# SPDX-License-Identifier: Apache-2.0
"""When mappings end by themselves: lease and lifetime are two things, and one timer waits for what comes first."""

from __future__ import annotations

from collections.abc import Callable

from igdpcp.iwf.background import Timers
from igdpcp.model import Mapping, MappingState

ROUNDING = 1.0  # a grant that ends this near to its lease ends with it: lifetimes are whole seconds


class Deadlines(Timers[str]):
    """Calls ``lease_ended``, or ``unrenewed`` when the grant has ended before and nobody has renewed it."""

    def __init__(self, *, lease_ended: Callable[[str], None], unrenewed: Callable[[str], None]) -> None:
        super().__init__(self._end_grant)
        self._lease_ended = lease_ended
        self._unrenewed = unrenewed
        self._leases: dict[str, float] = {}  # when they end, of those whose grants end before

    def watch(self, mapping: Mapping) -> None:
        """To be called with each new version of a mapping."""
        grant, lease_ends = mapping.grant, mapping.first_end
        counts = grant and mapping.state is MappingState.ACTIVE
        if grant and counts and (lease_ends is None or grant.ends + ROUNDING < lease_ends):
            self.set(mapping.id, grant.ends)
            if lease_ends is not None:
                self._leases[mapping.id] = lease_ends
        elif lease_ends is not None:
            self.set(mapping.id, lease_ends, self._lease_ended)
        else:
            self.stop(mapping.id)

    def set(self, id: str, at: float, callback: Callable[[str], None] | None = None) -> None:
        self._leases.pop(id, None)
        super().set(id, at, callback)

    def stop(self, id: str) -> None:
        self._leases.pop(id, None)
        super().stop(id)

    def _end_grant(self, id: str) -> None:
        lease_ends = self._leases.pop(id, None)
        if lease_ends is not None:
            self.set(id, lease_ends, self._lease_ended)
        self._unrenewed(id)
