# SPDX-License-Identifier: Apache-2.0
"""When the journal's copy on flash is written: now and then while something changes, and at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from igdpcp.iwf.journal import Journal
from igdpcp.log import line

LOG = logging.getLogger("igdpcp.daemon")
FLASH_SECONDS = 60.0  # at most one write in this time


class FlashCopy:
    """One write at a time, in a thread of its own; ``directory`` is where, for people."""

    def __init__(self, journal: Journal, directory: str) -> None:
        self._journal = journal
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._writing: asyncio.Future[None] | None = None

    async def save_now_and_then(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(FLASH_SECONDS)
            if write := self._journal.writer():
                self._writing = self._loop.run_in_executor(None, self._write, write)
                await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write what there is, and close the journal."""
        if self._writing:  # goes on when who waits for it is cancelled; two writers would spoil the file
            await asyncio.wait([self._writing])
        self._write(self._journal.save)
        self._journal.close()

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            LOG.error(line("not_saved", directory=self._directory, error=error.strerror))
