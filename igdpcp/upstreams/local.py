# SPDX-License-Identifier: Apache-2.0
"""The router's own WAN address as an upstream: what an ordinary IGD grants (interworking not invoked)."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from igdpcp.iwf.interfaces import Emit, Granted, Refused, Released, Router
from igdpcp.model import Activation, Endpoint, Grant, Mode, UpstreamRequest
from igdpcp.pcp.message import ResultCode

LIFETIME = 3600  # seconds a local grant lasts before it renews itself, so that a dead daemon's rules expire
RETRY_AFTER = 30


class LocalUpstream:
    """Grants WAN address and WAN port as they are; refuses exact wishes that differ from the WAN port."""

    name = Mode.LOCAL.value
    spare = 0

    def __init__(self, router: Router, emit: Emit) -> None:
        self._router = router
        self._emit = emit
        self._loop = asyncio.get_running_loop()
        self._requests: dict[str, UpstreamRequest] = {}
        self._renewals: dict[str, asyncio.TimerHandle] = {}
        self._granted_from: IPv4Address | None = None
        self.up_since: float | None = None

    @property
    def state(self) -> Activation:
        return Activation.ACTIVE if self._router.wan_address else Activation.NO_WAN

    @property
    def external_address(self) -> IPv4Address | None:
        return self._router.wan_address

    def __contains__(self, id: str) -> bool:
        return id in self._requests

    def granted(self) -> list[UpstreamRequest]:
        """Everything that is granted now."""
        return list(self._requests.values())

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        if self._router.wan_address is None:
            self._emit(Refused(request.id, ResultCode.NETWORK_FAILURE, RETRY_AFTER))
            return
        if request.exact and request.external_port != request.internal_port:
            self._emit(Refused(request.id, ResultCode.CANNOT_PROVIDE_EXTERNAL, RETRY_AFTER))
            return
        self._requests[request.id] = request
        self._grant(request.id)

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        self.forget(id)
        self._emit(Released(id, 0))

    def give_back(self, request: UpstreamRequest) -> None:
        self.unmap(request.id)

    def announce(self) -> None:
        """There is nobody to ask."""

    def forget(self, id: str) -> None:
        """Stop granting, without an event: another upstream has taken over."""
        self._requests.pop(id, None)
        if timer := self._renewals.pop(id, None):
            timer.cancel()

    def network_changed(self) -> None:
        """The WAN address may be another one: then what was granted is granted anew."""
        address = self._router.wan_address
        if address == self._granted_from:
            return
        self._granted_from = address
        self.up_since = self._loop.time() if address else None
        for id in list(self._requests):
            self._grant(id)

    def close(self) -> None:
        for timer in self._renewals.values():
            timer.cancel()

    def _grant(self, id: str) -> None:
        request, address = self._requests[id], self._router.wan_address
        if timer := self._renewals.pop(id, None):
            timer.cancel()
        if address is None:
            return
        now = self._loop.time()
        left = LIFETIME if request.until is None else max(1, min(LIFETIME, round(request.until - now)))
        if left == LIFETIME:
            self._renewals[id] = self._loop.call_later(LIFETIME / 2, self._grant, id)
        grant = Grant(self.name, address, Endpoint(address, request.internal_port), left, now + left)
        self._emit(Granted(id, grant, request.remote_hosts))
