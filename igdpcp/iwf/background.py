# SPDX-License-Identifier: Apache-2.0
"""What goes on while nobody waits for it: one timer for each thing that ends, and work in tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from igdpcp.errors import IgdpcpError
from igdpcp.log import line

LOG = logging.getLogger("igdpcp.iwf")
K = TypeVar("K", bound=Hashable)


class Timers(Generic[K]):
    """At most one timer for each id."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handles: dict[K, asyncio.TimerHandle] = {}

    def set(self, id: K, at: float, callback: Callable[[K], None]) -> None:
        """Call back with the id at this loop time, and not when it was set to before."""
        self.stop(id)
        self._handles[id] = self._loop.call_at(at, callback, id)

    def stop(self, id: K) -> None:
        if handle := self._handles.pop(id, None):
            handle.cancel()

    def stop_all(self) -> None:
        for id in list(self._handles):
            self.stop(id)


class Tasks:
    """Work that goes on to its end; what it raises unforeseen is logged."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        """Cancel what goes on, and wait until it has ended."""
        tasks = list(self._tasks)
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, IgdpcpError):
            LOG.error(line("task_failed", error=repr(error)), exc_info=error)
