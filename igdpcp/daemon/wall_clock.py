# SPDX-License-Identifier: Apache-2.0
"""The date in what is sent to the LAN, as far as this router knows it."""

from __future__ import annotations

import time

from igdpcp.daemon.boot_id import SANE_TIME

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(unix_time: float) -> str:
    """Like "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110 section 5.6.7); empty for a clock that was never set."""
    if unix_time < SANE_TIME:
        return ""
    at = time.gmtime(unix_time)
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]  # strftime would write them in the locale's language
    return f"{day}, {at.tm_mday:02} {month} {at.tm_year} {at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
