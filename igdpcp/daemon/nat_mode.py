# SPDX-License-Identifier: Apache-2.0
"""Whether this router translates towards the carrier (cascaded) or only routes: told, or found and watched.

What is found at one moment is no proof: firewalls are reloaded, and a WAN gets its address before it gets its rules.
So the answer changes only when another one has been found several times in a row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.netfilter.detect import masquerades

LOG = logging.getLogger("igdpcp.daemon")
LOOK_SECONDS = 10.0
LOOKS_NEEDED = 3  # that agree
RECHECK_SECONDS = 60.0  # "no NAT" may only mean that the firewall was not there yet
_ROUTED, _CASCADED = "routed", "cascaded"


class NatMode:
    """``option nat``; ``device`` gives the WAN device, empty while there is none or it has no address."""

    def __init__(self, setting: str, device: Callable[[], str], run_dir: Path, changed: Callable[[], None]) -> None:
        self._setting = setting
        self._device = device
        self._remembered = run_dir / "nat"
        self._changed = changed
        self._news = asyncio.Event()
        self._unread = False  # the last look failed
        self.routed = setting == "no"

    async def decide(self) -> None:
        """For the start: as told, as it was before a restart, or as it is found."""
        if self._setting != "auto":
            return
        try:
            mode, _, device = self._remembered.read_text().strip().partition(" ")
        except (OSError, ValueError):
            mode = device = ""
        if mode and device in ("", self._device()):
            self.routed = mode == _ROUTED
            self._news.set()
        else:
            found = await self._look()
            self.routed = found is False
            if found is not None:
                self._remember()

    def look_again(self) -> None:
        """The WAN is another one."""
        self._news.set()

    async def watch(self) -> None:
        """Call ``changed`` once when the answer is another one for good; ``routed`` is left as it was."""
        if self._setting != "auto":
            return
        while True:
            doubtful = self.routed or self._unread
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), RECHECK_SECONDS if doubtful else None)
            self._news.clear()
            if await self._settled():
                self.routed = not self.routed
                self._remember()
                LOG.info(line("nat_mode", mode=_ROUTED if self.routed else _CASCADED))
                self._changed()
                return

    async def _settled(self) -> bool:
        """Whether every look of several finds the other answer."""
        for look in range(LOOKS_NEEDED):
            if look:
                await asyncio.sleep(LOOK_SECONDS)
            found = await self._look()
            if found is None or found is not self.routed:
                return False
        return True

    async def _look(self) -> bool | None:
        """Whether the router translates now; None: it cannot be told."""
        device = self._device()
        if not device:
            return None
        try:
            found = await asyncio.to_thread(masquerades, device)
        except OurFault as fault:
            if not self._unread:
                LOG.warning(line("nat_unknown", reason=fault))
            self._unread = True
            return None
        self._unread = False
        return found

    def _remember(self) -> None:
        try:
            self._remembered.parent.mkdir(parents=True, exist_ok=True)
            self._remembered.write_text(f"{_ROUTED if self.routed else _CASCADED} {self._device()}\n")
        except OSError as error:
            LOG.warning(line("not_remembered", file=self._remembered, error=error.strerror))
