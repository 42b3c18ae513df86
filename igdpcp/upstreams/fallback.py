# SPDX-License-Identifier: Apache-2.0
"""Going on alone: the carrier while it answers, this router where that is allowed (RFC 6970 section 5.1)."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.iwf.interfaces import Emit, Granted, Lost, Refused, StateChanged, UpstreamEvent
from igdpcp.log import line
from igdpcp.model import Activation, Grant, Mode, UpstreamRequest
from igdpcp.pcp.message import ResultCode
from igdpcp.upstreams.local import RETRY_AFTER, LocalUpstream
from igdpcp.upstreams.pcp import PcpUpstream

LOG = logging.getLogger("igdpcp.upstream")
_ABSENT = (Activation.NO_WAN, Activation.NO_SERVER, Activation.LOST)


class FallbackUpstream:
    """The carrier's PCP server, below it the router's own address.

    ``routed``: the router does no NAT, so there is nothing of its own to grant. ``fall_back`` False
    (``unreachable_policy error``): a carrier known to be there but silent is an error, not a reason to go on alone.
    """

    def __init__(self, local: LocalUpstream, *, routed: bool, fall_back: bool, emit: Emit) -> None:
        self._local = local
        self._routed = routed
        self._fall_back = fall_back
        self._emit = emit
        self._pcp: PcpUpstream | None = None

    def attach(self, pcp: PcpUpstream) -> None:
        """Put the carrier above the router; its events come in by ``receive``."""
        self._pcp = pcp

    @property
    def name(self) -> str:
        return self._pcp.name if self._pcp else self._local.name

    @property
    def spare(self) -> int:
        return self._pcp.spare if self._pcp else 0

    @property
    def mode(self) -> Mode:
        if self._routed:
            return Mode.ROUTED
        if self._pcp is None or self._pcp.state is Activation.NO_SERVER:
            return Mode.LOCAL
        return Mode.CASCADED

    @property
    def state(self) -> Activation:
        return self._pcp.state if self._pcp else self._local.state

    @property
    def up_since(self) -> float | None:
        carrier = self._pcp.up_since if self._pcp else None
        return carrier or (self._local.up_since if self.may_fall_back else None)

    @property
    def external_address(self) -> IPv4Address | None:
        """Only the carrier's; the router's own is for the interworking function to judge."""
        if self._pcp and self._pcp.state in (Activation.ACTIVE, Activation.PROBING):
            return self._pcp.external_address
        return None

    @property
    def may_fall_back(self) -> bool:
        if self._routed:
            return False
        return self._pcp is None or self._fall_back or self._pcp.state in (Activation.NO_WAN, Activation.NO_SERVER)

    @property
    def untrusted(self) -> bool:
        """Routed mode needs THIRD_PARTY, and this server may not be asked on behalf of others."""
        return self._routed and self._pcp is not None and not self._pcp.trusted

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        pcp = self._pcp
        if pcp is None:
            self._alone(request)
            return
        absent = self.untrusted or (pcp.state in _ABSENT and not self._keeps_asking)
        if not absent or request.id in pcp or request.grant:  # what a server holds has to be given back some day
            pcp.map(request, urgent=urgent)
        if absent and not pcp.grants(request.id):
            self._alone(request)
        elif request.id in self._local:
            self._local.map(request)

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        self._local.forget(id)
        if self._pcp:
            self._pcp.unmap(id, urgent=urgent)
        else:
            self._local.unmap(id)

    def give_back(self, request: UpstreamRequest) -> None:
        if self._pcp:
            self._pcp.give_back(request)
        else:
            self._local.give_back(request)

    def announce(self) -> None:
        if self._pcp:
            self._pcp.announce()

    async def learn_address(self) -> None:
        if self._pcp:
            await self._pcp.learn_address()

    def stands(self, id: str, grant: Grant) -> bool:
        if grant.upstream == self._local.name:
            return grant.external.address == self._local.external_address
        return self._pcp is not None and self._pcp.stands(id, grant)

    def overdue(self, id: str) -> bool:
        if self.state is Activation.ACTIVE or not self.may_fall_back or self._routed:
            return False
        request = self._pcp.request(id) if self._pcp else None
        if request is None:
            return False
        self._local.map(request)
        return True

    def receive(self, event: UpstreamEvent) -> None:
        """An event of the carrier's upstream."""
        match event:
            case Granted():
                self._local.forget(event.id)
            case Lost() if event.id in self._local:
                return
            case StateChanged() if event.state is Activation.ACTIVE:
                self._promote()
        self._emit(event)

    def _promote(self) -> None:
        """The carrier is there: ask it for all that the router granted alone."""
        assert self._pcp is not None
        waiting = self._local.granted()
        if waiting and not self.untrusted:
            LOG.info(line("promoting", mappings=len(waiting)))
            for request in waiting:
                self._pcp.map(self._as_shown(request), urgent=False)

    def _as_shown(self, request: UpstreamRequest) -> UpstreamRequest:
        """With the port that the control point was told."""
        return replace(request, external_port=request.internal_port)

    @property
    def _keeps_asking(self) -> bool:
        """Without a fallback a lost server is still asked: the request waits for it up to the deadline."""
        return not self.may_fall_back and self.state is Activation.LOST

    def _alone(self, request: UpstreamRequest) -> None:
        if self.may_fall_back:
            self._local.map(request)
        else:
            self._emit(Refused(request.id, ResultCode.NETWORK_FAILURE, RETRY_AFTER))
