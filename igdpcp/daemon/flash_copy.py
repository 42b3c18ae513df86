# SPDX-License-Identifier: Apache-2.0
"""The journal's flash copy: written now and then while something has changed, and at the end. Flash wears."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from igdpcp.iwf.journal import Journal
from igdpcp.log import line

LOG = logging.getLogger("igdpcp.daemon")
FLASH_SECONDS = 60.0  # at most one write of the flash copy in this time


class FlashCopy:
    """One writer at a time, in a thread; a failure is logged, and tried again with the next write."""

    def __init__(self, journal: Journal, state_dir: str) -> None:
        self._journal = journal
        self._state_dir = state_dir
        self._writing: asyncio.Future[None] | None = None

    async def keep(self) -> None:
        """Write what has changed until cancelled."""
        while True:
            await asyncio.sleep(FLASH_SECONDS)
            if write := self._journal.writer():
                self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, write)
                await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write what has changed, and close the journal."""
        if self._writing:  # goes on when who waits for it is cancelled; two writers would spoil the file
            await asyncio.wait([self._writing])
        self._write(self._journal.save)
        self._journal.close()

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            LOG.error(line("not_saved", directory=self._state_dir, error=error.strerror))
