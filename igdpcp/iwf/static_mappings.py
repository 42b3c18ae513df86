# SPDX-License-Identifier: Apache-2.0
"""The mappings that the configuration wants: asked for as any other one, and again for ever while they are not open.

What is open and has an infinite lease is kept so by the upstream and the lifecycle. Here is what comes before that and
behind it: the first request, and the next one when it was refused, or when the mapping has ended all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

from igdpcp.errors import OurFault, Reason, Refusal
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.table import MappingTable
from igdpcp.log import line
from igdpcp.model import LEASE_INFINITE, MappingRequest, MappingState, Owner, Requester
from igdpcp.static_sections import StaticMappingConfig

LOG = logging.getLogger("igdpcp.iwf")
FIRST_PAUSE = 5.0  # seconds between two requests, also when something has changed that may help
LONGEST_PAUSE = 1800.0  # the pauses double up to this
LOOK_SECONDS = 30.0  # between looks whether what was opened is still held
_HELD = (MappingState.ACTIVE, MappingState.RETRYING)


def static_requests(sections: Iterable[StaticMappingConfig]) -> tuple[MappingRequest, ...]:
    """What the sections ask for, one request for each protocol; the agent is the section's name."""
    return tuple(
        MappingRequest(
            requester=Requester(None, Owner.STATIC, section.name),
            protocol=protocol,
            external_port=section.external_port,
            client=section.client,
            remote_host=section.remote_host,
            lease=LEASE_INFINITE,
            description=section.description,
        )
        for section in sections
        for protocol in section.protocols
    )


class StaticMappings:
    """Holds ``wanted`` open from ``start`` to ``stop``."""

    def __init__(self, wanted: Iterable[MappingRequest], interworking: Interworking, table: MappingTable) -> None:
        self._wanted = tuple(wanted)
        self._interworking = interworking
        self._table = table
        self._tasks = Tasks()
        self._news = asyncio.Event()
        self._problems: dict[MappingRequest, str] = {}

    def start(self) -> None:
        """Ask for them; each has its ports when the loop has turned once."""
        for request in self._wanted:
            self._tasks.start(self._hold(request))

    def look_again(self) -> None:
        """The network or the upstream is another: what was refused is asked for soon, and not after its pause."""
        self._news.set()
        self._news = asyncio.Event()

    async def stop(self) -> None:
        """Ask no more; what is open stays."""
        await self._tasks.stop()

    @property
    def wanted(self) -> int:
        return len(self._wanted)

    @property
    def open(self) -> int:
        """How many of them are open now."""
        return sum(self._state(request) is MappingState.ACTIVE for request in self._wanted)

    @property
    def problems(self) -> list[str]:
        """Which ones are not open, and why, for people."""
        waiting = [f"{_name(request)} is not open: {why}" for request, why in self._problems.items()]
        return waiting + [
            f"{_name(request)} is not open: its grant was lost, and is asked for again"
            for request in self._wanted
            if request not in self._problems and self._state(request) is MappingState.RETRYING
        ]

    async def _hold(self, request: MappingRequest) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                if self._state(request) is not MappingState.RETRYING:  # that is asked for as often as is good
                    await self._interworking.add_port_mapping(request)
            except Exception as error:  # this may not end: nobody else would ask
                self._refused(request, error)
                await self._pause(pause)
                pause = FIRST_PAUSE if _may_be_answered_yet(error) else min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            self._problems.pop(request, None)
            while self._state(request) in _HELD:
                await _within(LOOK_SECONDS, self._news)

    async def _pause(self, seconds: float) -> None:
        news = self._news
        await asyncio.sleep(FIRST_PAUSE)
        await _within(seconds - FIRST_PAUSE, news)

    def _state(self, request: MappingRequest) -> MappingState | None:
        """Of its mapping, None while there is none."""
        mapping = self._table.find(request.protocol, request.external_port)
        return mapping.state if mapping and mapping.request.requester.owner is Owner.STATIC else None

    def _refused(self, request: MappingRequest, error: Exception) -> None:
        told = self._problems.get(request)
        self._problems[request] = str(error)
        if told != str(error):
            foreseen = isinstance(error, Refusal | OurFault)
            LOG.warning(line("static_mapping_not_open", section=request.requester.agent, protocol=request.protocol.name,
                             external_port=request.external_port, client=request.client, reason=error),
                        exc_info=None if foreseen else error)  # fmt: skip


async def _within(seconds: float, news: asyncio.Event) -> None:
    """Wait for news, and no longer than this."""
    with suppress(TimeoutError):
        await asyncio.wait_for(news.wait(), seconds)


def _may_be_answered_yet(error: Exception) -> bool:
    """Whether the upstream was silent: its answer is for who joins the request meanwhile."""
    return isinstance(error, Refusal) and error.reason is Reason.UNREACHABLE


def _name(request: MappingRequest) -> str:
    return f"mapping '{request.requester.agent}' ({request.protocol.name.lower()} {request.external_port})"
