# SPDX-License-Identifier: Apache-2.0
"""Deleting what control points are shown: the upstream first, then rules and entry (RFC 6970 section 5.8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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


class Deletions:
    """One task per deletion, which goes on when nobody waits for it any more; ``reopen`` undoes one that failed."""

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
        self._tasks: dict[str, asyncio.Task[Refusal | None]] = {}

    async def delete(self, mapping: Mapping) -> None:
        """Delete it, or wait for a deletion under way; raises Refusal when it has to stay."""
        task = self._tasks.get(mapping.id) or self._start(mapping)
        await asyncio.wait([task])
        if task.cancelled():
            raise Refusal(Reason.CANCELLED, "the service stops")
        if refusal := task.result():
            raise refusal

    async def decided(self, id: str) -> None:
        """Wait until a deletion under way has succeeded or failed."""
        if task := self._tasks.get(id):
            await asyncio.wait([task])

    def released(self, id: str, result: int) -> None:
        """The upstream's answer."""
        if (answer := self._answers.get(id)) and not answer.done():
            answer.set_result(result)

    async def stop(self) -> None:
        """End the work in flight; what is on its way is journalled."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, mapping: Mapping) -> asyncio.Task[Refusal | None]:
        ending = replace(mapping, state=MappingState.ENDING)
        self._table.update(ending)
        self._journal.note(ending)
        self._answers[mapping.id] = self._loop.create_future()
        self._upstream_leg.give_back(ending)
        task = self._tasks[mapping.id] = self._loop.create_task(self._finish(ending))
        return task

    async def _finish(self, mapping: Mapping) -> Refusal | None:
        """What the upstream's answer, or its silence, means."""
        id = mapping.id
        done, _ = await asyncio.wait([self._answers[id]], timeout=self._main.soap_deadline)
        answer, _ = self._answers.pop(id), self._tasks.pop(id)
        current = self._table.get(id)
        if current is None or current.state is not MappingState.ENDING:
            return None
        if not done and not self._upstream.may_fall_back:
            self._reopen(current)
            return Refusal(Reason.UNREACHABLE, f"no answer in {self._main.soap_deadline:g} s")
        if done and translate.still_there(answer.result()):
            self._reopen(current)
            return Refusal(Reason.UPSTREAM, translate.result_name(answer.result()), answer.result())
        self._table.forget(id, self._loop.time())
        if not done:
            self._upstream_leg.leaving.add(id)
        elif not translate.untold(answer.result()):
            self._journal.gone(id)
        await self._router_leg.remove(mapping)
        return None
