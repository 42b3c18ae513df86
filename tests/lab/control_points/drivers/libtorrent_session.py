# SPDX-License-Identifier: Apache-2.0
"""Drives a libtorrent session, as a torrent program that is started and ended."""

from __future__ import annotations

import time

import libtorrent
from orders import serve

ALERT_MILLISECONDS = 200
PATIENCE = 10.0
NOTIFICATIONS = libtorrent.alert.category_t.port_mapping_notification | libtorrent.alert.category_t.error_notification

sessions: list[libtorrent.session] = []


def start(listen: str) -> list[str]:
    """Start a session; what it says of UPnP until both protocols are mapped."""
    session = libtorrent.session(
        {"listen_interfaces": listen, "alert_mask": NOTIFICATIONS, "enable_dht": False, "enable_lsd": False}
    )
    sessions.append(session)
    said: list[str] = []
    deadline = time.monotonic() + PATIENCE
    while len(said) < 2 and time.monotonic() < deadline:
        session.wait_for_alert(ALERT_MILLISECONDS)
        said += [text for alert in session.pop_alerts() if "UPnP" in (text := alert.message())]
    return said


serve({"start": start})  # the session ends with the process, and takes its mappings back
