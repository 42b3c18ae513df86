# SPDX-License-Identifier: Apache-2.0
"""Deleting what control points are shown: the upstream first, then rules and entry (RFC 6970 section 5.8).

What is deleted together is one group: each of it is told to the upstream by itself, and the table changes once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.model import Mapping, MappingState

URGENT_DELETIONS = 32  # of one group; the upstream is told of the others at the pace of what nobody waits for


class Deletions:
    """One task per group, which goes on when nobody waits for it any more; ``reopen`` undoes a deletion that failed."""

    def __init__(
        self,
        *,
        main: MainConfig,
        table: MappingTable,
        upstream: Fallback,
        router_leg: RouterLeg,
        upstream_leg: UpstreamLeg,
        journal: Journal,
        reopen: Callable[[Mapping], None],
    ) -> None:
        self._main = main
        self._table = table
        self._upstream = upstream
        self._router_leg = router_leg
        self._upstream_leg = upstream_leg
        self._journal = journal
        self._reopen = reopen
        self._loop = asyncio.get_running_loop()
        self._answers: dict[str, asyncio.Future[int]] = {}
        self._tasks: dict[str, asyncio.Task[dict[str, Refusal]]] = {}

    async def delete(self, mappings: Iterable[Mapping]) -> dict[str, Refusal]:
        """Delete them as one change, and wait for those under way already; why some have to stay, by id."""
        asked = {mapping.id: mapping for mapping in mappings}
        if fresh := [mapping for id, mapping in asked.items() if id not in self._tasks]:
            self._start(fresh)
        tasks = {self._tasks[id] for id in asked}
        await asyncio.wait(tasks)
        if any(task.cancelled() for task in tasks):
            raise Refusal(Reason.CANCELLED, "the service stops")
        return {id: refusal for task in tasks for id, refusal in task.result().items() if id in asked}

    async def decided(self, id: str) -> None:
        """Wait until a deletion under way has succeeded or failed."""
        if task := self._tasks.get(id):
            await asyncio.wait([task])

    def released(self, id: str, result: int) -> None:
        """The upstream's answer; what could not be told may be known to have ended a moment later."""
        if answer := self._answers.get(id):
            if answer.done():
                answer = self._answers[id] = self._loop.create_future()
            answer.set_result(result)

    async def stop(self) -> None:
        """End the work in flight; what is on its way is journalled."""
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, mappings: list[Mapping]) -> None:
        group = [replace(mapping, state=MappingState.ENDING) for mapping in mappings]
        task = self._loop.create_task(self._finish(group))
        for at, ending in enumerate(group):
            self._table.update(ending)
            self._journal.note(ending)
            self._answers[ending.id] = self._loop.create_future()
            self._tasks[ending.id] = task
            self._upstream_leg.give_back(ending, urgent=at < URGENT_DELETIONS)

    async def _finish(self, group: list[Mapping]) -> dict[str, Refusal]:
        """What the upstream's answers, or its silence, mean: all that goes, goes in one step of the table."""
        await asyncio.wait([self._answers[mapping.id] for mapping in group], timeout=self._main.soap_deadline)
        stay: dict[str, Refusal] = {}
        gone: dict[str, tuple[Mapping, int | None]] = {}
        for mapping in group:
            id = mapping.id
            answer, _ = self._answers.pop(id), self._tasks.pop(id)
            current = self._table.get(id)
            if current is None or current.state is not MappingState.ENDING:
                continue
            result = answer.result() if answer.done() else None
            if refusal := self._why_it_stays(result):
                stay[id] = refusal
                self._reopen(current)
                continue
            gone[id] = (current, result)
        self._table.forget(gone, self._loop.time())
        for id, (_, result) in gone.items():
            self._upstream_leg.settled(id, result)
        await asyncio.gather(*(self._router_leg.remove(mapping) for mapping, _ in gone.values()))
        return stay

    def _why_it_stays(self, result: int | None) -> Refusal | None:
        """``result`` None: the upstream was silent."""
        if result is None and not self._upstream.may_fall_back:
            return Refusal(Reason.UNREACHABLE, f"no answer in {self._main.soap_deadline:g} s")
        if result is not None and translate.still_there(result):
            return Refusal(Reason.UPSTREAM, translate.result_name(result), result)
        return None
