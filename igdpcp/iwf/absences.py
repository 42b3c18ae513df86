# SPDX-License-Identifier: Apache-2.0
"""Hosts that no LAN has any more. LANs lose their addresses for moments, so only what lasts is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from igdpcp.model import IPAddress

LAN_GRACE_SECONDS = 60.0  # a LAN that goes down, or is not up yet at our start, has this long to come


class Absences:
    """``lasted`` is called with each address that was on no LAN for all of the grace time."""

    def __init__(self, on_lan: Callable[[IPAddress], bool], lasted: Callable[[IPAddress], None]) -> None:
        self._on_lan = on_lan
        self._lasted = lasted
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[IPAddress, asyncio.TimerHandle] = {}

    def look(self, clients: Iterable[IPAddress]) -> None:
        """Where are they? To be called with all of them whenever the LANs have changed."""
        absent = {client for client in clients if not self._on_lan(client)}
        for client in self._waiting.keys() - absent:
            self._waiting.pop(client).cancel()
        for client in absent - self._waiting.keys():
            self._waiting[client] = self._loop.call_later(LAN_GRACE_SECONDS, self._grace_ended, client)

    def stop(self) -> None:
        """Call nobody any more."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()

    def _grace_ended(self, client: IPAddress) -> None:
        del self._waiting[client]
        if not self._on_lan(client):
            self._lasted(client)
