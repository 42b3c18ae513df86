# SPDX-License-Identifier: Apache-2.0
"""GetSpecificPortMappingEntry for a port that nobody here holds: the carrier may (RFC 6970 section 5.7).

PCP has no question, so a short mapping is asked for. Once granted it is a shadow: no rule, no entry, in nobody's
quota. The next AddPortMapping for its port has it. What LAN hosts can make us ask and hold is bounded: beyond the
bounds a query is answered from the local table alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.interfaces import Fallback
from igdpcp.iwf.lifecycle import Lifecycle
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.port_policy import PortPolicy
from igdpcp.iwf.table import MappingTable
from igdpcp.model import (
    Activation,
    Endpoint,
    Mapping,
    MappingRequest,
    MappingState,
    Mode,
    Owner,
    Protocol,
    Requester,
)

QUERY_LEASE = 60  # seconds; RFC 6970 section 5.7: "e.g., 60 seconds"
QUERIES_PER_SECOND = 4  # that are sent, for all hosts together
SPARE_SLOTS = 2  # at a carrier, for shadows and the probe for the external address together
SHADOWS_PER_HOST = 1


class Queries:
    """Asks, and finds the shadow that serves a later request.

    ``plan`` claims the ports for a request, or (True) contends for one that is held; it raises Refusal where there are
    none.
    """

    def __init__(
        self,
        *,
        main: MainConfig,
        table: MappingTable,
        policy: Policy,
        upstream: Fallback,
        lifecycle: Lifecycle,
        port_policy: PortPolicy,
        plan: Callable[[MappingRequest, bool], Mapping],
    ) -> None:
        self._main = main
        self._table = table
        self._policy = policy
        self._upstream = upstream
        self._hidden = lifecycle.hidden
        self._port_policy = port_policy
        self._plan = plan
        self._now = asyncio.get_running_loop().time
        self._sent: deque[float] = deque(maxlen=QUERIES_PER_SECOND)  # when the last ones were

    async def ask(self, requester: Requester, protocol: Protocol, port: int) -> None:
        """Returns when the carrier would open this port, or was not to be asked; raises Refusal when it would not."""
        if self._main.specific_query == "local":
            return
        relayed = self._main.specific_other_cp == "relay"
        if (held := self._table.find(protocol, port)) and not (relayed and held.visible):
            if held.state is not MappingState.PLANNED:
                return
            answered = await self._hidden.join(held.id)
        elif shadow := self._planned(requester, protocol, port):
            self._sent.append(self._now())
            answered = await self._hidden.query(shadow)
        else:
            return
        if not answered and not self._upstream.may_fall_back:
            raise Refusal(Reason.UNREACHABLE, f"no answer in {self._main.soap_deadline:g} s")

    async def holder(self, request: MappingRequest) -> Mapping | None:
        """What holds the port of this request; a shadow only if it serves it, else that is given back.

        First, where the request is for its very port: who takes any other does not wait for that.
        """
        while shadow := self._shadow_for(request):
            if self._serves(shadow, request):
                return shadow
            self._hidden.give_back(shadow)
            if not request.any_port:
                await self._hidden.returned(shadow)
        return self._table.find(request.protocol, request.external_port)

    def _serves(self, shadow: Mapping, request: MappingRequest) -> bool:
        """Whether it becomes what is asked for without another word to the carrier.

        Without NAT in the router its tuple is a host's own. The answer to come may be a refusal, which
        AddAnyPortMapping does not care for. It lets every remote host in: where only the carrier keeps others out, that
        is too much for a request that names one.
        """
        if shadow.mode is Mode.ROUTED and shadow.request.client != request.client:
            return False
        if request.remote_host and self._main.remote_host == "filter":
            return False
        return shadow.grant is not None if request.any_port else shadow.external_port == request.external_port

    def _shadow_for(self, request: MappingRequest) -> Mapping | None:
        """A shadow that has the request's port, or the tuple that it needs upstream."""
        held = self._table.find(request.protocol, request.external_port), self._table.find_client(request)
        return next((each for each in held if each and each.is_shadow), None)

    def _planned(self, requester: Requester, protocol: Protocol, port: int) -> Mapping | None:
        """The shadow to ask for on behalf of this host; None: the carrier is not to be asked.

        Raises Refusal when the answer is known without that.
        """
        request = self._request(requester, protocol, port)
        if request is None:
            return None
        self._port_policy.admit(request)
        if not self._within_bounds(request.client.address):
            return None
        with suppress(Refusal):  # an entry of another client does not keep this from being asked
            return self._plan(request, self._main.specific_other_cp == "relay")
        return None

    def _request(self, requester: Requester, protocol: Protocol, port: int) -> MappingRequest | None:
        address = requester.address
        if not port or not isinstance(address, IPv4Address) or not self._policy.serves(address) or not self._reachable:
            return None
        request = MappingRequest(
            requester=replace(requester, owner=Owner.QUERY),
            protocol=protocol,
            external_port=port,
            client=Endpoint(address, port),  # most programs use the same port on both sides
            lease=QUERY_LEASE,
        )
        return request if self._policy.permits(request, port) else None

    @property
    def _reachable(self) -> bool:
        """Whether there is a carrier to ask, or an error to give because there is not."""
        if self._upstream.mode is Mode.LOCAL:
            return False
        return self._upstream.state in (Activation.ACTIVE, Activation.PROBING) or not self._upstream.may_fall_back

    def _within_bounds(self, address: IPv4Address) -> bool:
        shadows = self._table.shadows
        if len(shadows) >= SPARE_SLOTS - self._upstream.spare:
            return False
        if sum(shadow.request.client.address == address for shadow in shadows) >= SHADOWS_PER_HOST:
            return False
        return len(self._sent) < QUERIES_PER_SECOND or self._now() - self._sent[0] >= 1
