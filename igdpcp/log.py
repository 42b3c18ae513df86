# SPDX-License-Identifier: Apache-2.0
"""Log lines of the form ``event=refused client=192.168.1.5 reason="..."``, one per decision."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from igdpcp.values import dataclass

REMEMBERED_LINES = 10
VALUE_LIMIT = 200  # what a LAN host sent may reach the log, but not fill it
LINES_BURST = 10  # of one event and host, at once
LINES_PER_SECOND = 1.0  # and in the long run
KEYS_LIMIT = 64  # keys with a budget of their own

_QUOTED = " \"'=\\"  # a value with one of these would end elsewhere for who splits the line as a shell does


def _quote(value: Any) -> str:
    text = str(value)
    if len(text) > VALUE_LIMIT:
        text = text[:VALUE_LIMIT] + "..."
    if text and text.isascii() and text.isprintable() and not any(c in _QUOTED for c in text):
        return text
    return json.dumps(text).replace("\x7f", "\\u007f")


def line(event: str, **fields: Any) -> str:
    """The text of one log line; None fields are left out, everything else is escaped to printable ASCII."""
    parts = [f"event={event}"]
    parts += [f"{key}={_quote(value)}" for key, value in fields.items() if value is not None]
    return " ".join(parts)


@dataclass(slots=True)
class _Budget:
    used_until: float  # when the whole burst can be had again
    refused: int = 0


class RateLimit:
    """A budget for each key: ``burst`` things at once, ``per_second`` in the long run (token buckets).

    Memory is bounded: while ``KEYS_LIMIT`` keys have used some of theirs, all that come new share one budget.
    """

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._spacing = 1 / per_second
        self._reach = (burst - 0.5) * self._spacing  # half of one more than needed: floats do not add up exactly
        self._clock = clock
        self._budgets: dict[Hashable, _Budget] = {}
        self._shared = _Budget(clock())

    def take(self, key: Hashable) -> int | None:
        """None: refused. Else allowed, and how many of this key were refused since the last that was allowed."""
        now = self._clock()
        budget = self._budgets.get(key) or self._new(key, now)
        start = max(budget.used_until, now)
        if start - now > self._reach:
            budget.refused += 1
            return None
        budget.used_until = start + self._spacing
        refused, budget.refused = budget.refused, 0
        return refused

    def _new(self, key: Hashable, now: float) -> _Budget:
        if len(self._budgets) >= KEYS_LIMIT:
            self._budgets = {k: budget for k, budget in self._budgets.items() if budget.used_until > now}
            if len(self._budgets) >= KEYS_LIMIT:
                return self._shared
        return self._budgets.setdefault(key, _Budget(now))


class SparingLog:
    """Writes the lines that others cause, only so many of each event and host; the next one tells how many not."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._limit = RateLimit(LINES_BURST, LINES_PER_SECOND, clock)

    def write(self, level: int, event: str, client: object, exc_info: bool = False, **fields: Any) -> None:
        """A line of what ``client`` (None: no host) caused; ``exc_info``: with the traceback of what is handled now."""
        if not self._logger.isEnabledFor(level):
            return
        suppressed = self._limit.take((event, client))
        if suppressed is not None:
            text = line(event, client=client, **fields, suppressed=suppressed or None)
            self._logger.log(level, text, exc_info=exc_info)


class RecentTroubles(logging.Handler):
    """Keeps the last warnings and errors, each with the monotonic time when it came, for the status."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[tuple[float, str]] = deque(maxlen=REMEMBERED_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((time.monotonic(), record.getMessage()))


def setup(level: str) -> RecentTroubles:
    """Send all log lines of level ``level`` and above to stderr, where procd picks them up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("level=%(levelname)s %(message)s"))
    recent = RecentTroubles()
    root = logging.getLogger("igdpcp")
    root.handlers[:] = [handler, recent]
    root.setLevel(level.upper())
    root.propagate = False
    return recent
