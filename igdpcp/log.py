# SPDX-License-Identifier: Apache-2.0
"""Log lines of the form ``event=refused client=192.168.1.5 reason="..."``, one per decision."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from typing import Any

REMEMBERED_LINES = 10
VALUE_LIMIT = 200  # what a LAN host sent may reach the log, but not fill it


def _quote(value: Any) -> str:
    text = str(value)
    if len(text) > VALUE_LIMIT:
        text = text[:VALUE_LIMIT] + "..."
    if text and text.isascii() and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    return json.dumps(text).replace("\x7f", "\\u007f")


def line(event: str, **fields: Any) -> str:
    """The text of one log line; None fields are left out, everything else is escaped to printable ASCII."""
    parts = [f"event={event}"]
    parts += [f"{key}={_quote(value)}" for key, value in fields.items() if value is not None]
    return " ".join(parts)


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
