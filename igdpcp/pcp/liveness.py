# SPDX-License-Identifier: Apache-2.0
"""Whether the server is there: unanswered transmissions, and the ANNOUNCE train that asks (RFC 6887 section 14.1)."""

from __future__ import annotations

import random

from igdpcp.pcp.events import ServerState
from igdpcp.pcp.timing import Timing, error_lifetime

PROBE_INTERVAL_MAX = 900.0  # a lost server is asked at least this often


def pause(lifetime: int, refusals: int) -> float:
    """How long a server that refused everything, ``refusals`` times in a row, is not asked, in seconds.

    What the server said counts (RFC 6887 section 7.4); where it said too little, a lost server's interval is enough.
    """
    return min(error_lifetime(lifetime, refusals), max(error_lifetime(lifetime), PROBE_INTERVAL_MAX))


class Liveness:
    """The server's state, from what was sent and what came back."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.state = ServerState.PROBING
        self.reason = "not asked yet"
        self.since: float | None = None
        self.unanswered = 0
        self._deadline: float | None = None

    def transmitted(self, now: float) -> None:
        """A packet left that should be answered."""
        self.unanswered += 1
        if self._deadline is None:
            self._deadline = now + self._timing.patience
        if self.unanswered == self._timing.mrc:
            self._deadline = max(self._deadline, now + self._timing.last_chance)

    def begin_anew(self) -> None:
        """Something valid came, or what was sent before says nothing (any more)."""
        self.unanswered = 0
        self._deadline = None

    def deadline(self) -> float | None:
        """When a silence is long enough to mean something: LOST if it ``is_proved``, else that somebody has to ask."""
        return None if self.state is ServerState.LOST else self._deadline

    @property
    def is_proved(self) -> bool:
        """Whether enough was sent: a renewal is one packet, and the next may leave hours later."""
        return self.unanswered >= self._timing.mrc

    def enter(self, state: ServerState, reason: str, now: float) -> bool:
        """Set state and reason; whether one of them is new."""
        if (state, reason) == (self.state, self.reason):
            return False
        if state is not self.state:
            self.since = now
        self.state, self.reason = state, reason
        return True


class Probe:
    """A train of ANNOUNCE requests: MRC of them, or without end while the server is lost."""

    def __init__(self, timing: Timing, rng: random.Random) -> None:
        self._timing = timing
        self._rng = rng
        self._timeout: float | None = None
        self._last = float("-inf")
        self._sent = 0
        self.running = False
        self.timer: float | None = None
        self.queued = False

    def start(self, now: float) -> float:
        """Begin a train; returns when its first packet is due, never closer than IRT to the last one."""
        self.running, self._sent, self._timeout = True, 0, None
        return max(now, self._last + self._timing.irt)

    def postpone(self) -> None:
        """Ask from now on at the slowest pace."""
        self.running, self._timeout = True, PROBE_INTERVAL_MAX

    def stop(self) -> None:
        """It was answered."""
        self.running = self.queued = False
        self.timer = None

    def transmitted(self, now: float, *, endless: bool) -> float | None:
        """One packet of the train left; returns when the next one is due."""
        self._sent += 1
        self._last = now
        self._timeout = self._timing.retransmission(self._timeout, self._rng, PROBE_INTERVAL_MAX)
        if not endless and self._sent >= self._timing.mrc > 0:
            self.running = False
            return None
        return now + min(self._timeout, PROBE_INTERVAL_MAX)
