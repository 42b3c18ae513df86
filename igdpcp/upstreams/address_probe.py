# SPDX-License-Identifier: Apache-2.0
"""The mapping that is made only to learn the external address (RFC 6970 section 5.7)."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from igdpcp.model import Protocol, UpstreamRequest
from igdpcp.pcp.client import WantedMapping
from igdpcp.upstreams.server_line import ServerLine

PROBE_ID = "probe"
PROBE_PORT = 9  # discard, UDP
PROBE_LEASE = 120  # seconds; servers raise anything less to this (RFC 6887 section 15)


class AddressProbe:
    """At most one is under way; ``when`` is the value of option external_ip_probe."""

    def __init__(self, line: ServerLine, when: str) -> None:
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._answered: asyncio.Future[None] | None = None  # of the probe that the engine has, if it has one
        self.at_start = when == "startup"
        self.on_demand = when != "off"

    @property
    def under_way(self) -> bool:
        """Whether the mapping is there, or asked for."""
        return self._answered is not None

    def begin(self, *, urgent: bool) -> None:
        """Make the mapping, where there is a way to the server."""
        engine, internal = self._line.engine, self._line.internal
        if engine is None or internal is None or not self._line.up:
            return
        if self._answered is None or self._answered.done():
            self._answered = self._loop.create_future()
        now = self._loop.time()
        engine.want(probe(internal, now), now, urgent=urgent)

    def answered(self) -> None:
        """The server has told the address, or that it does not."""
        if self._answered and not self._answered.done():
            self._answered.set_result(None)

    async def answer(self) -> None:
        """Wait until the server has answered a probe that is under way, or until nobody needs it any more."""
        if self._answered:
            await asyncio.wait([self._answered])

    def end(self) -> None:
        """Give the mapping back."""
        if self._answered and self._line.engine:
            self.forget()
            self._line.engine.drop(PROBE_ID, self._loop.time())

    def forget(self) -> None:
        """Another engine knows nothing of it."""
        self.answered()
        self._answered = None


def probe(internal: IPv4Address, now: float) -> WantedMapping:
    """A short mapping of this address, at whatever external port."""
    return WantedMapping(
        key=PROBE_ID,
        protocol=Protocol.UDP,
        internal_address=internal,
        internal_port=PROBE_PORT,
        external_port=0,
        exact=False,
        until=now + PROBE_LEASE,
    )


def takes_its_place(request: UpstreamRequest) -> bool:
    """Whether a mapping has the internal tuple of the probe, and so tells the address as well."""
    return request.protocol is Protocol.UDP and request.internal_port == PROBE_PORT
