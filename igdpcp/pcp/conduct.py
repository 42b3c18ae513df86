# SPDX-License-Identifier: Apache-2.0
"""What a client may choose: how much it asks for, what it insists on, and whose word it takes for a loss of state."""

from __future__ import annotations

from igdpcp.pcp.message import LIFETIME_MAX
from igdpcp.pcp.options import OptionCode
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class Conduct:
    """``lifetime_cap``: the longest lifetime that is requested, in seconds.

    ``insists_on``: codes of options without which nothing is asked for; others are left out where a server does not
    take them. ``heeds_announcements``: an ANNOUNCE that nobody asked for, and that tells of another epoch, makes it
    recover (RFC 6887 section 14.1.3); else only the server's next answer does. ``third_party``: whoever drives it may
    ask on behalf of others.
    """

    lifetime_cap: int = LIFETIME_MAX
    insists_on: frozenset[int] = frozenset()
    heeds_announcements: bool = True
    third_party: bool = True

    @property
    def insists_on_filters(self) -> bool:
        """Whether nobody but the server keeps others out."""
        return OptionCode.FILTER in self.insists_on


STANDARD_CONDUCT = Conduct()
