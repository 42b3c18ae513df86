# SPDX-License-Identifier: Apache-2.0
"""When a PCP client sends again: retransmission, renewal and error lifetimes (RFC 6887 sections 8.1.1, 8.3, 11.2.1)."""

from __future__ import annotations

import math
import random

from igdpcp.pcp.message import LIFETIME_MAX
from igdpcp.values import dataclass

RAND = 0.1  # section 8.1.1: every computed timeout varies by this much
PATIENCE = 15  # in IRTs: four transmissions, at 0, 1, 3 and 7, and the last timeout
LAST_CHANCE = 4  # in IRTs: three transmissions, at 0, 1 and 3, of a request that came late in a silence
RENEWAL_GAP = 4.0  # section 11.2.1: two renewals of one mapping are never closer
SCHEDULED_LIFETIME_MAX = 86400  # section 15: an absurdly long lifetime is treated like a sane one
RECOVERY_DELAY = 5.0  # section 14.1.3: all clients together must not flood a server that lost its state
ERROR_LIFETIME_FLOOR = 5.0  # servers in the field send errors with lifetime 0
ERROR_LIFETIME_CAP = 1800.0  # section 7.4: a long error lifetime

_LAST_WINDOW = 32  # further windows would be narrower than any clock can tell
_ROUNDING = 0.001  # a float's error must not round a whole second up


@dataclass(frozen=True, slots=True)
class Timing:
    """Retransmission parameters of RFC 6887 section 8.1.1, in seconds; MRC as in RFC 7488 section 2."""

    irt: float = 3.0
    mrc: int = 4
    mrt: float = 1024.0

    @property
    def patience(self) -> float:
        """How long four transmissions take that nobody answers."""
        return PATIENCE * self.irt

    @property
    def last_chance(self) -> float:
        """How long the last of the transmissions that prove a silence waits for its answer at least."""
        return LAST_CHANCE * self.irt

    def retransmission(self, previous: float | None, rng: random.Random, ceiling: float = math.inf) -> float:
        """The timeout after a transmission, given the one before it (None: this was the first transmission)."""
        base = self.irt if previous is None else min(2 * previous, self.mrt, ceiling)
        return base * (1 + rng.uniform(-RAND, RAND))


def renewal(lifetime: float, attempt: int, earliest: float, rng: random.Random) -> tuple[int, float] | None:
    """The next renewal of a mapping, ``attempt`` or a later one, as its number and its time since the grant.

    ``earliest`` is the first moment allowed, on the same scale. A window that lies before it is skipped. None: the
    lifetime ends before another renewal may be sent.
    """
    for number in range(attempt, _LAST_WINDOW):
        opens = lifetime * (1 - 2.0**-number)
        closes = opens + lifetime / 2.0 ** (number + 2)
        if earliest <= closes:
            return number, max(rng.uniform(opens, closes), earliest)
    return None


def error_lifetime(lifetime: int, refusals: int = 1) -> float:
    """How long the same request is not repeated after it was refused ``refusals`` times in a row.

    The floor doubles with each refusal, so that a server which always says 0 is not asked every five seconds.
    """
    floor = min(ERROR_LIFETIME_FLOOR * 2.0 ** min(refusals - 1, _LAST_WINDOW), ERROR_LIFETIME_CAP)
    return min(max(float(lifetime), floor), ERROR_LIFETIME_CAP)


def remaining(until: float | None, now: float) -> int:
    """The Requested Lifetime for a lease that ends at ``until`` (None: as long as possible); 0 when it is over."""
    if until is None:
        return LIFETIME_MAX
    return min(max(math.ceil(until - now - _ROUNDING), 0), LIFETIME_MAX)
