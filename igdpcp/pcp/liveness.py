# SPDX-License-Identifier: Apache-2.0
"""Whether the server is there: unanswered transmissions, and the ANNOUNCE train that asks (RFC 6887 section 14.1)."""

from __future__ import annotations

import random

from igdpcp.pcp.events import ServerState
from igdpcp.pcp.timing import Timing

PROBE_INTERVAL_MAX = 900.0  # a lost server is asked at least this often


class Liveness:
    """The server's state, from what was sent and what came back."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.state = ServerState.PROBING
        self.reason = "not asked yet"
        self.since: float | None = None
        self.unanswered = 0
        self._silent_since: float | None = None

    def transmitted(self, now: float) -> None:
        """A packet left that should be answered."""
        self.unanswered += 1
        if self._silent_since is None:
            self._silent_since = now

    def answered(self) -> None:
        """Something valid came."""
        self.unanswered = 0
        self._silent_since = None

    def deadline(self) -> float | None:
        """When silence alone makes the server LOST, None while too little was sent."""
        if self.state is ServerState.LOST or self._silent_since is None or self.unanswered < max(self._timing.mrc, 1):
            return None
        return self._silent_since + self._timing.patience

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
