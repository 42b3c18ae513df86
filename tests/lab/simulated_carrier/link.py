# SPDX-License-Identifier: Apache-2.0
"""What happens to datagrams between the clients and the server: loss, copies, detours, delay; the same for one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

DETOUR = 0.05  # seconds; what takes it is overtaken by all that is sent meanwhile


@dataclass
class Switches:
    """How the link behaves.

    ``loss``, ``duplicate`` and ``reorder`` are ratios, in both directions. ``lose_requests`` and ``lose_replies`` say
    of the next datagrams of that direction whether each is lost. ``delay`` in milliseconds, of what the server sends.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    lose_requests: list[bool] = field(default_factory=list)
    lose_replies: list[bool] = field(default_factory=list)

    def set(self, **values: object) -> None:
        """Turn switches; KeyError for an unknown one."""
        for name, value in values.items():
            if not hasattr(self, name) or name == "set":
                raise KeyError(name)
            setattr(self, name, value)


class Link:
    """Says when the copies of a datagram arrive."""

    def __init__(self, seed: int) -> None:
        self.switches = Switches()
        self._rng = random.Random(seed)

    def request(self, now: float) -> list[float]:
        """When a datagram to the server arrives: never, once or twice."""
        return self._carry(self.switches.lose_requests, now)

    def reply(self, now: float) -> list[float]:
        """The same for a datagram from the server."""
        return self._carry(self.switches.lose_replies, now + self.switches.delay / 1000)

    def _carry(self, lose: list[bool], at: float) -> list[float]:
        doomed = lose.pop(0) if lose else self._happens(self.switches.loss)
        if doomed:
            return []
        if self._happens(self.switches.reorder):
            at += DETOUR
        return [at, at] if self._happens(self.switches.duplicate) else [at]

    def _happens(self, ratio: float) -> bool:
        return ratio > 0 and self._rng.random() < ratio
