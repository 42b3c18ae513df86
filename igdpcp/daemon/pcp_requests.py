# SPDX-License-Identifier: Apache-2.0
"""From a request in PCP or NAT-PMP to the interworking function, and from its outcome to the answer's octets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address

from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf import translate
from igdpcp.iwf.internal_tuples import InternalTuples
from igdpcp.iwf.outside import Outside
from igdpcp.log import SparingLog
from igdpcp.model import Endpoint, MappingRequest, Owner, Protocol, Requester
from igdpcp.pcp import natpmp_server, server
from igdpcp.pcp.natpmp_server import AddressAsked, PortAsked
from igdpcp.pcp.server import MapAsked

Asked = MapAsked | PortAsked | AddressAsked
Respond = Callable[[int], bytes]  # the answer's octets, with the epoch of the moment when it leaves

_requester = lru_cache(maxsize=64)(Requester)  # a host's mappings share one


class PcpRequests:
    """A request is for the port of the host that it comes from, so nothing in it says for whom it is."""

    def __init__(self, tuples: InternalTuples, outside: Outside, log: SparingLog) -> None:
        self._tuples = tuples
        self._outside = outside
        self._log = log

    async def outcome(self, asked: Asked, source: IPv4Address) -> Respond:
        """Do what ``source`` asks; the answer, also when it is a refusal."""
        match asked:
            case AddressAsked():
                return await self._address(source)
            case PortAsked():
                return await self._port(asked, source)
            case MapAsked():
                return await self._map(asked, source)

    async def _address(self, source: IPv4Address) -> Respond:
        if not self._outside.known:
            await self._outside.learn()
        address, _ = self._outside.address(source)
        return lambda epoch: natpmp_server.address(epoch, address)

    async def _map(self, asked: MapAsked, source: IPv4Address) -> Respond:
        request = asked.request
        requester, protocol = _requester(source, Owner.PCP), Protocol(request.protocol)
        try:
            if not request.lifetime:
                await self._tuples.unmap(requester, protocol, request.internal_port, request.nonce)
                return lambda epoch: server.deleted(asked, epoch)
            if asked.only_address and asked.only_address != self._outside.address(source)[0]:
                raise Refusal(Reason.NOT_GIVEN, f"external address {asked.only_address}")
            opened = await self._tuples.map(
                MappingRequest(
                    requester=requester,
                    protocol=protocol,
                    external_port=request.external_port,
                    client=Endpoint(source, request.internal_port),
                    lease=request.lifetime,
                    description=asked.description,
                    any_port=not asked.prefer_failure,
                    nonce=request.nonce,
                )
            )
            return lambda epoch: server.granted(asked, epoch, opened.lifetime, opened.external)
        except (Refusal, RulesetError) as error:
            result, lifetime = self._refused(error, requester, protocol, request.internal_port, request.external_port)
            return lambda epoch: server.refused(asked, epoch, result, lifetime)

    async def _port(self, asked: PortAsked, source: IPv4Address) -> Respond:
        requester = _requester(source, Owner.NATPMP)
        try:
            if not asked.lifetime:
                await self._tuples.unmap(requester, asked.protocol, asked.internal_port, b"")
                return lambda epoch: natpmp_server.granted(asked, epoch, 0, 0)
            opened = await self._tuples.map(
                MappingRequest(
                    requester=requester,
                    protocol=asked.protocol,
                    external_port=asked.external_port,
                    client=Endpoint(source, asked.internal_port),
                    lease=asked.lifetime,
                    any_port=True,
                )
            )
            return lambda epoch: natpmp_server.granted(
                asked, epoch, opened.external.port, min(opened.lifetime, asked.lifetime)
            )
        except (Refusal, RulesetError) as error:
            result, _ = self._refused(error, requester, asked.protocol, asked.internal_port, asked.external_port)
            return lambda epoch: natpmp_server.refused(asked, epoch, natpmp_server.result_of(result))

    def _refused(
        self, error: Refusal | RulesetError, requester: Requester, protocol: Protocol, port: int, external_port: int
    ) -> tuple[int, int]:
        """The PCP result code that it is, and for how long; it is logged as control points' refusals are."""
        refusal = error if isinstance(error, Refusal) else Refusal(Reason.RULESET, str(error))
        result, lifetime = translate.pcp_refusal(refusal)
        self._log.write(
            logging.INFO, "refused", requester.address, action=requester.owner.value, code=result, reason=error,
            protocol=protocol.name, internal_port=port, external_port=external_port or None,
        )  # fmt: skip
        return result, lifetime
