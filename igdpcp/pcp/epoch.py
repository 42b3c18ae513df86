# SPDX-License-Identifier: Apache-2.0
"""The epoch check: does the server's clock say that it lost its mappings (RFC 6887 section 8.5)."""

from __future__ import annotations

TOLERATED_STEP_BACK = 1  # seconds
TOLERATED_LAG = 2  # seconds


class EpochRecord:
    """The last epoch a server sent, and when it came."""

    def __init__(self) -> None:
        self.server_time: int | None = None
        self.client_time = 0.0

    def check(self, epoch: int, now: float) -> bool:
        """Whether ``epoch`` fits what the server sent before; it is the new record in any case."""
        previous, since = self.server_time, now - self.client_time
        self.server_time, self.client_time = epoch, now
        return previous is None or _fits(epoch - previous, since)


def _fits(server_delta: int, client_delta: float) -> bool:
    if server_delta < -TOLERATED_STEP_BACK:
        return False
    if client_delta + TOLERATED_LAG < server_delta - _sixteenth(server_delta):
        return False
    return server_delta + TOLERATED_LAG >= client_delta - _sixteenth(client_delta)


def _sixteenth(delta: float) -> int:
    return int(delta / 16)
