# SPDX-License-Identifier: Apache-2.0
"""What the gateway answers to a LAN host: documents to GET, the interworking function's word to a SOAP call."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache
from http import HTTPStatus
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from igdpcp.daemon.http_server import Peer
from igdpcp.errors import OurFault, Refusal, UpnpFault
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.interworking import Interworking
from igdpcp.log import SparingLog
from igdpcp.model import Requester
from igdpcp.net import counters
from igdpcp.upnp.actions import SERVICES, TREE_PREFIX, UI4_MAX, WAN_IP_CONNECTION, Level
from igdpcp.upnp.description import DeviceIdentity, documents
from igdpcp.upnp.http import HttpRequest, HttpResponse, xml_response
from igdpcp.upnp.soap import (
    ACTION_FAILED,
    Call,
    encode_fault,
    encode_response,
    may_come_from_a_page,
    parse_call,
    printable,
    soapaction_of,
)

AGENT_LIMIT = 128  # characters of a User-Agent that are kept with a mapping
INVALID_CONNECTION_SERVICE = 721  # Layer3Forwarding:1, InvalidServiceID
_TOTALS = {
    "GetTotalBytesSent": "tx_bytes",
    "GetTotalBytesReceived": "rx_bytes",
    "GetTotalPacketsSent": "tx_packets",
    "GetTotalPacketsReceived": "rx_packets",
}

Outputs = dict[str, translate.Value]
Query = Callable[[Call], Outputs]
Action = Callable[[Call, Requester], Awaitable[Outputs]]


class IgdHandler:
    """The handler of the HTTP server; every refusal is logged with who asked, and by what program."""

    def __init__(
        self, identity: DeviceIdentity, interworking: Interworking, upstream: Fallback, router: Router
    ) -> None:
        self._identity = identity
        self._interworking = interworking
        self._upstream = upstream
        self._router = router
        self._documents = documents(identity)
        self._loop = asyncio.get_running_loop()
        self._log = SparingLog(logging.getLogger("igdpcp.upnp"))
        self.outcomes: Counter[str] = Counter()
        self._actions: dict[str, Action] = {
            "AddPortMapping": self._add,
            "AddAnyPortMapping": self._add_any,
            "DeletePortMapping": self._delete,
            "GetSpecificPortMappingEntry": self._specific,
            "GetGenericPortMappingEntry": self._generic,
        }
        self._queries: dict[str, Query] = {
            "GetExternalIPAddress": self._external_address,
            "GetStatusInfo": self._status,
            "GetConnectionTypeInfo": self._connection_type,
            "GetNATRSIPStatus": self._nat_status,
            "GetCommonLinkProperties": self._link,
            "GetDefaultConnectionService": self._default_connection,
            "SetDefaultConnectionService": self._set_default_connection,
            **dict.fromkeys(_TOTALS, self._total),
            **dict.fromkeys(translate.REFUSED_METHODS, self._refused_method),
        }

    def handle(self, request: HttpRequest, peer: Peer) -> Awaitable[HttpResponse]:
        """Answer one request; the answer to what needs no waiting is there already, as a future that is done.

        Raises MalformedRequest, at once.
        """
        if request.method in ("POST", "M-POST") and _names_us(request.headers.get("host"), peer):
            return self._control(request, peer)
        return self._now(self._document(request, peer))

    def _now(self, response: HttpResponse) -> Awaitable[HttpResponse]:
        future = self._loop.create_future()
        future.set_result(response)
        return future

    def _document(self, request: HttpRequest, peer: Peer) -> HttpResponse:
        if not _names_us(request.headers.get("host"), peer):
            return HttpResponse(HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return HttpResponse(HTTPStatus.NOT_IMPLEMENTED)
        if document := self._documents.get(request.path):
            return xml_response(HTTPStatus.OK, document)
        if request.path in _CONTROL_PATHS:
            return HttpResponse(HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "POST"),))
        return HttpResponse(HTTPStatus.NOT_FOUND)

    def _control(self, request: HttpRequest, peer: Peer) -> Awaitable[HttpResponse]:
        agent = printable(request.headers.get("user-agent", ""))[:AGENT_LIMIT]
        soapaction = soapaction_of(request.headers)
        if may_come_from_a_page(request.headers):
            return self._now(self._forbidden(peer, request.headers.get("origin"), agent))
        try:
            call = parse_call(soapaction, request.body)
        except UpnpFault as fault:
            asked = {"action": soapaction, "client": peer.address, "agent": agent}
            return self._now(self._fault(fault.code, str(fault), asked))
        requester = Requester(peer.address, translate.requester_owner(call.version), agent)
        if query := self._queries.get(call.action.name):
            return self._now(self._queried(query, call, requester))
        return self._acted(self._actions[call.action.name], call, requester)

    def _queried(self, query: Query, call: Call, requester: Requester) -> HttpResponse:
        try:
            return self._ok(call, query(call))
        except (UpnpFault, OurFault) as error:
            return self._failed(error, call, requester)

    async def _acted(self, action: Action, call: Call, requester: Requester) -> HttpResponse:
        try:
            return self._ok(call, await action(call, requester))
        except (Refusal, UpnpFault, OurFault) as error:
            return self._failed(error, call, requester)

    def _ok(self, call: Call, outputs: Outputs) -> HttpResponse:
        self.outcomes["ok"] += 1
        return xml_response(HTTPStatus.OK, encode_response(call, outputs))

    def _failed(self, error: Refusal | UpnpFault | OurFault, call: Call, requester: Requester) -> HttpResponse:
        code = ACTION_FAILED
        if isinstance(error, Refusal):
            code = translate.fault_code(error, call.version)
        elif isinstance(error, UpnpFault):
            code = error.code
        return self._fault(code, str(error), _asked(call, requester))

    def _fault(self, code: int, reason: str, asked: dict[str, Any]) -> HttpResponse:
        self.outcomes[str(code)] += 1
        self._log.write(logging.INFO, "refused", code=code, reason=reason, **asked)
        return xml_response(HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(code, ""))

    def _forbidden(self, peer: Peer, origin: str | None, agent: str) -> HttpResponse:
        self.outcomes["forbidden"] += 1
        reason = "a web page may have made this request"
        self._log.write(logging.INFO, "refused", peer.address, reason=reason, origin=origin, agent=agent)
        return HttpResponse(HTTPStatus.FORBIDDEN)

    # -- WANIPConnection -----------------------------------------------------------------------------------------

    async def _add(self, call: Call, requester: Requester) -> Outputs:
        request = translate.mapping_request(call.arguments, requester, call.version, any_port=False)
        await self._interworking.add_port_mapping(request)
        return {}

    async def _add_any(self, call: Call, requester: Requester) -> Outputs:
        request = translate.mapping_request(call.arguments, requester, call.version, any_port=True)
        mapping = await self._interworking.add_any_port_mapping(request)
        return {"NewReservedPort": mapping.external_port}

    async def _delete(self, call: Call, requester: Requester) -> Outputs:
        mapping = await self._interworking.delete_port_mapping(requester, *translate.mapping_key(call.arguments))
        self._log.write(logging.INFO, "deleted", mapping=mapping.id, **_asked(call, requester))
        return {}

    async def _specific(self, call: Call, requester: Requester) -> Outputs:
        mapping = await self._interworking.get_specific(requester, *translate.mapping_key(call.arguments))
        return translate.specific_entry(mapping, self._loop.time())

    async def _generic(self, call: Call, requester: Requester) -> Outputs:
        mapping = await self._interworking.get_generic(int(call.arguments["NewPortMappingIndex"]))
        return translate.generic_entry(mapping, self._loop.time())

    def _external_address(self, call: Call) -> Outputs:
        address, _ = self._interworking.external_address()
        return {"NewExternalIPAddress": str(address or "")}

    def _status(self, call: Call) -> Outputs:
        connected = self._interworking.connected()
        since = self._upstream.up_since
        return {
            "NewConnectionStatus": "Connected" if connected else "Disconnected",
            "NewLastConnectionError": "ERROR_NONE" if connected else "ERROR_UNKNOWN",
            "NewUptime": 0 if since is None else int(self._loop.time() - since),
        }

    def _connection_type(self, call: Call) -> Outputs:
        kind = translate.CONNECTION_TYPE
        return {"NewConnectionType": kind, "NewPossibleConnectionTypes": kind}

    def _nat_status(self, call: Call) -> Outputs:
        return {"NewRSIPAvailable": translate.RSIP_AVAILABLE, "NewNATEnabled": translate.NAT_ENABLED}

    def _refused_method(self, call: Call) -> Outputs:
        codes = translate.REFUSED_METHODS[call.action.name]
        raise UpnpFault(codes.v1 if call.version == 1 else codes.v2, "the carrier decides about the connection")

    # -- WANCommonInterfaceConfig and Layer3Forwarding -----------------------------------------------------------

    def _link(self, call: Call) -> Outputs:
        rate = min(counters.bits_per_second(self._router.wan_device), UI4_MAX)
        return {
            "NewWANAccessType": "Ethernet",
            "NewLayer1UpstreamMaxBitRate": rate,
            "NewLayer1DownstreamMaxBitRate": rate,
            "NewPhysicalLinkStatus": "Up" if self._router.wan_address else "Down",
        }

    def _total(self, call: Call) -> Outputs:
        value = counters.total(self._router.wan_device, _TOTALS[call.action.name])
        return {call.action.outputs[0].name: value % (UI4_MAX + 1)}

    def _default_connection(self, call: Call) -> Outputs:
        return {"NewDefaultConnectionService": self._connection_service(tree=1)}

    def _set_default_connection(self, call: Call) -> Outputs:
        wanted = str(call.arguments["NewDefaultConnectionService"])
        if wanted not in {self._connection_service(tree) for tree in TREE_PREFIX}:
            raise UpnpFault(INVALID_CONNECTION_SERVICE, "there is one connection service only")
        return {}

    def _connection_service(self, tree: int) -> str:
        udn = self._identity.udn(Level.CONNECTION_DEVICE, tree)
        return f"{udn}:WANConnectionDevice:{tree},{WAN_IP_CONNECTION.id}"


_ipv4 = lru_cache(maxsize=16)(IPv4Address)  # of the Host header: always one of our few
_CONTROL_PATHS = {prefix + service.control_path for prefix in TREE_PREFIX.values() for service in SERVICES}


def _names_us(host: str | None, peer: Peer) -> bool:
    """Whether a Host header, where there is one, is our address: a name could have been rebound to it."""
    if host is None:
        return True
    try:
        return _ipv4(host.strip().partition(":")[0]) == peer.local_address
    except AddressValueError:
        return False


def _asked(call: Call, requester: Requester) -> dict[str, Any]:
    arguments = call.arguments
    port, protocol = arguments.get("NewExternalPort"), arguments.get("NewProtocol")
    return {
        "action": f"{call.action.name}:{call.version}",
        "client": requester.address,
        "agent": requester.agent,
        "external_port": port,
        "protocol": protocol,
    }
