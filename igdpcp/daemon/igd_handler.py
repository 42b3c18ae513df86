# SPDX-License-Identifier: Apache-2.0
"""What the gateway answers to a LAN host: documents to GET, the interworking function's word to a SOAP call."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from ipaddress import AddressValueError, IPv4Address

from igdpcp.daemon.http_server import Peer
from igdpcp.errors import OurFault, Refusal, UpnpFault
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.interworking import Interworking
from igdpcp.log import line
from igdpcp.model import Requester
from igdpcp.net import counters
from igdpcp.upnp.actions import SERVICES, TREE_PREFIX, UI4_MAX, WAN_IP_CONNECTION, Level
from igdpcp.upnp.description import DeviceIdentity, documents
from igdpcp.upnp.http import HttpRequest, HttpResponse, xml_response
from igdpcp.upnp.soap import ACTION_FAILED, Call, encode_fault, encode_response, parse_call, soapaction_of

LOG = logging.getLogger("igdpcp.upnp")
AGENT_LIMIT = 128  # characters of a User-Agent that are kept with a mapping
INVALID_CONNECTION_SERVICE = 721  # Layer3Forwarding:1, InvalidServiceID
_TOTALS = {
    "GetTotalBytesSent": "tx_bytes",
    "GetTotalBytesReceived": "rx_bytes",
    "GetTotalPacketsSent": "tx_packets",
    "GetTotalPacketsReceived": "rx_packets",
}

Outputs = dict[str, translate.Value]
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
        self.outcomes: Counter[str] = Counter()
        self._actions: dict[str, Action] = {
            "AddPortMapping": self._add,
            "AddAnyPortMapping": self._add_any,
            "DeletePortMapping": self._delete,
            "GetExternalIPAddress": self._external_address,
            "GetSpecificPortMappingEntry": self._specific,
            "GetGenericPortMappingEntry": self._generic,
            "GetStatusInfo": self._status,
            "GetConnectionTypeInfo": self._connection_type,
            "GetNATRSIPStatus": self._nat_status,
            "GetCommonLinkProperties": self._link,
            "GetDefaultConnectionService": self._default_connection,
            "SetDefaultConnectionService": self._set_default_connection,
            **dict.fromkeys(_TOTALS, self._total),
            **dict.fromkeys(translate.REFUSED_METHODS, self._refused_method),
        }

    async def handle(self, request: HttpRequest, peer: Peer) -> HttpResponse:
        """Answer one request."""
        if not _names_us(request.headers.get("host"), peer):
            return HttpResponse(HTTPStatus.NOT_FOUND)
        if request.method in ("POST", "M-POST"):
            return await self._control(request, peer)
        if request.method not in ("GET", "HEAD"):
            return HttpResponse(HTTPStatus.NOT_IMPLEMENTED)
        if document := self._documents.get(request.path):
            return xml_response(HTTPStatus.OK, document)
        if request.path in _CONTROL_PATHS:
            return HttpResponse(HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "POST"),))
        return HttpResponse(HTTPStatus.NOT_FOUND)

    async def _control(self, request: HttpRequest, peer: Peer) -> HttpResponse:
        agent = request.headers.get("user-agent", "")[:AGENT_LIMIT]
        soapaction = soapaction_of(request.headers)
        try:
            call = parse_call(soapaction, request.body)
        except UpnpFault as fault:
            return self._fault(fault.code, str(fault), action=soapaction, client=peer.address, agent=agent)
        name = call.action.name
        requester = Requester(peer.address, translate.requester_owner(call.version), agent)
        try:
            outputs = await self._actions[name](call, requester)
        except Refusal as refusal:
            code = translate.fault_code(refusal, call.version)
            return self._fault(code, str(refusal), **_asked(call, requester))
        except UpnpFault as fault:
            return self._fault(fault.code, str(fault), **_asked(call, requester))
        except OurFault as fault:
            return self._fault(ACTION_FAILED, str(fault), **_asked(call, requester))
        self.outcomes["ok"] += 1
        return xml_response(HTTPStatus.OK, encode_response(call, outputs))

    def _fault(self, code: int, reason: str, **asked: object) -> HttpResponse:
        self.outcomes[str(code)] += 1
        LOG.info(line("refused", code=code, reason=reason, **asked))
        return xml_response(HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(code, ""))

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
        LOG.info(line("deleted", mapping=mapping.id, **_asked(call, requester)))
        return {}

    async def _specific(self, call: Call, requester: Requester) -> Outputs:
        mapping = await self._interworking.get_specific(requester, *translate.mapping_key(call.arguments))
        return translate.specific_entry(mapping, self._loop.time())

    async def _generic(self, call: Call, requester: Requester) -> Outputs:
        mapping = await self._interworking.get_generic(int(call.arguments["NewPortMappingIndex"]))
        return translate.generic_entry(mapping, self._loop.time())

    async def _external_address(self, call: Call, requester: Requester) -> Outputs:
        address, _ = self._interworking.external_address()
        return {"NewExternalIPAddress": str(address or "")}

    async def _status(self, call: Call, requester: Requester) -> Outputs:
        connected = self._interworking.connected()
        since = self._upstream.up_since
        return {
            "NewConnectionStatus": "Connected" if connected else "Disconnected",
            "NewLastConnectionError": "ERROR_NONE" if connected else "ERROR_UNKNOWN",
            "NewUptime": 0 if since is None else int(self._loop.time() - since),
        }

    async def _connection_type(self, call: Call, requester: Requester) -> Outputs:
        kind = translate.CONNECTION_TYPE
        return {"NewConnectionType": kind, "NewPossibleConnectionTypes": kind}

    async def _nat_status(self, call: Call, requester: Requester) -> Outputs:
        return {"NewRSIPAvailable": translate.RSIP_AVAILABLE, "NewNATEnabled": translate.NAT_ENABLED}

    async def _refused_method(self, call: Call, requester: Requester) -> Outputs:
        codes = translate.REFUSED_METHODS[call.action.name]
        raise UpnpFault(codes.v1 if call.version == 1 else codes.v2, "the carrier decides about the connection")

    # -- WANCommonInterfaceConfig and Layer3Forwarding -----------------------------------------------------------

    async def _link(self, call: Call, requester: Requester) -> Outputs:
        rate = min(counters.bits_per_second(self._router.wan_device), UI4_MAX)
        return {
            "NewWANAccessType": "Ethernet",
            "NewLayer1UpstreamMaxBitRate": rate,
            "NewLayer1DownstreamMaxBitRate": rate,
            "NewPhysicalLinkStatus": "Up" if self._router.wan_address else "Down",
        }

    async def _total(self, call: Call, requester: Requester) -> Outputs:
        value = counters.total(self._router.wan_device, _TOTALS[call.action.name])
        return {call.action.outputs[0].name: value % (UI4_MAX + 1)}

    async def _default_connection(self, call: Call, requester: Requester) -> Outputs:
        return {"NewDefaultConnectionService": self._connection_service(tree=1)}

    async def _set_default_connection(self, call: Call, requester: Requester) -> Outputs:
        wanted = str(call.arguments["NewDefaultConnectionService"])
        if wanted not in {self._connection_service(tree) for tree in TREE_PREFIX}:
            raise UpnpFault(INVALID_CONNECTION_SERVICE, "there is one connection service only")
        return {}

    def _connection_service(self, tree: int) -> str:
        udn = self._identity.udn(Level.CONNECTION_DEVICE, tree)
        return f"{udn}:WANConnectionDevice:{tree},{WAN_IP_CONNECTION.id}"


_CONTROL_PATHS = {prefix + service.control_path for prefix in TREE_PREFIX.values() for service in SERVICES}


def _names_us(host: str | None, peer: Peer) -> bool:
    """Whether a Host header, where there is one, is our address: a name could have been rebound to it."""
    if host is None:
        return True
    try:
        return IPv4Address(host.strip().partition(":")[0]) == peer.local_address
    except AddressValueError:
        return False


def _asked(call: Call, requester: Requester) -> dict[str, object]:
    arguments = call.arguments
    port, protocol = arguments.get("NewExternalPort"), arguments.get("NewProtocol")
    return {
        "action": f"{call.action.name}:{call.version}",
        "client": requester.address,
        "agent": requester.agent,
        "external_port": port,
        "protocol": protocol,
    }
