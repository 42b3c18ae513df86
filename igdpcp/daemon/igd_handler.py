# SPDX-License-Identifier: Apache-2.0
"""What a LAN host's HTTP request meets first: documents, control, events, and what is refused before a service is."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any

from igdpcp.daemon.control_request import Answer, ControlRequest, Outputs, ServiceAnswers
from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.state_variables import StateVariables
from igdpcp.errors import OurFault, Refusal, UpnpFault
from igdpcp.iwf import translate
from igdpcp.log import SparingLog
from igdpcp.model import IPAddress, Requester
from igdpcp.upnp.actions import Service
from igdpcp.upnp.description import DeviceIdentity, documents, trees_by_prefix, wants_version_1
from igdpcp.upnp.http import XML_TYPE, HttpRequest, HttpResponse
from igdpcp.upnp.services import WAN_IP_CONNECTION, services_in
from igdpcp.upnp.soap import (
    ACTION_FAILED,
    INVALID_ACTION,
    VariableQuery,
    encode_fault,
    encode_response,
    encode_variable,
    may_come_from_a_page,
    names_an_action,
    parse_control,
    printable,
    soapaction_of,
)

AGENT_LIMIT = 128  # characters of a User-Agent that are kept with a mapping

_XML = (("Content-Type", XML_TYPE),)
_XML_IN_ENGLISH = (*_XML, ("Content-Language", "en"))

Subscriptions = Callable[[HttpRequest, Peer, Service, int], HttpResponse]


class IgdHandler:
    """The handler of the HTTP server; every refusal is logged with who asked, and by what program."""

    def __init__(
        self,
        *,
        identity: DeviceIdentity,
        igd_version: str,
        services: Iterable[ServiceAnswers],
        variables: StateVariables,
        subscriptions: Subscriptions,
    ) -> None:
        """``services`` answer what is more than reading state variables; ``igd_version`` is the option's value."""
        self._variables = variables
        self._subscriptions = subscriptions
        self._documents = documents(identity, igd_version)
        self._version_1_documents = documents(identity, igd_version, shown=1)
        prefixes = trees_by_prefix(igd_version)
        self._first_tree = prefixes[""]
        offered = [(prefix, tree, service) for prefix, tree in prefixes.items() for service in services_in(tree)]
        self._control_paths = {prefix + service.control_path: (service, tree) for prefix, tree, service in offered}
        self._event_paths = {prefix + service.event_path: (service, tree) for prefix, tree, service in offered}
        self._highest_version = {service.type: service.version_in(tree) for _, tree, service in offered}
        self._loop = asyncio.get_running_loop()
        self._log = SparingLog(logging.getLogger("igdpcp.upnp"))
        self.outcomes: Counter[str] = Counter()
        self._answers: dict[str, Answer] = {}
        for service in services:
            self._answers.update(service.answers)

    def handle(self, request: HttpRequest, peer: Peer) -> Awaitable[HttpResponse]:
        """Answer one request; the answer to what needs no waiting is there already, as a future that is done.

        Raises MalformedRequest, at once.
        """
        if not _names_us(request.headers.get("host"), peer):
            return self._now(HttpResponse(HTTPStatus.NOT_FOUND))
        if request.method in ("POST", "M-POST"):
            return self._control(request, peer)
        if request.method in ("GET", "HEAD"):
            return self._now(self._document(request))
        if request.method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            return self._now(self._subscription(request, peer))
        return self._now(HttpResponse(HTTPStatus.NOT_IMPLEMENTED))

    def _now(self, response: HttpResponse) -> Awaitable[HttpResponse]:
        future = self._loop.create_future()
        future.set_result(response)
        return future

    def _document(self, request: HttpRequest) -> HttpResponse:
        old = wants_version_1(request.headers.get("user-agent", ""))
        if document := (self._version_1_documents if old else self._documents).get(request.path):
            return _xml(request, HTTPStatus.OK, document)
        if request.path in self._control_paths:
            return HttpResponse(HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "POST"),))
        if request.path in self._event_paths:
            return HttpResponse(HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "SUBSCRIBE, UNSUBSCRIBE"),))
        return HttpResponse(HTTPStatus.NOT_FOUND)

    def _subscription(self, request: HttpRequest, peer: Peer) -> HttpResponse:
        if place := self._event_paths.get(request.path):
            return self._subscriptions(request, peer, *place)
        return HttpResponse(HTTPStatus.NOT_FOUND)

    # -- control -------------------------------------------------------------------------------------------------

    def _control(self, request: HttpRequest, peer: Peer) -> Awaitable[HttpResponse]:
        agent = printable(request.headers.get("user-agent", ""))[:AGENT_LIMIT]
        if may_come_from_a_page(request.headers):
            return self._now(self._forbidden(peer, request.headers.get("origin"), agent))
        soapaction, path = soapaction_of(request.headers), request.path
        # SOAPACTION decides, not the path: KTorrent posts to the event URL
        place = self._control_paths.get(path) or self._event_paths.get(path)
        if place is None and path not in self._documents and not names_an_action(soapaction):
            return self._now(HttpResponse(HTTPStatus.NOT_FOUND))
        service, tree = place or (WAN_IP_CONNECTION, self._first_tree)
        asked = {"action": soapaction, "client": peer.address, "agent": agent}
        try:
            call = parse_control(soapaction, request.body)
            if isinstance(call, VariableQuery):
                value = self._variables.query(service, call.name, tree, peer.address)
                return self._now(self._ok(request, encode_variable(value)))
            if call.version > self._highest_version.get(call.service.type, 0):
                raise UpnpFault(INVALID_ACTION, "no such version of the service is shown")
        except UpnpFault as fault:
            return self._now(self._fault(request, fault.code, str(fault), asked))
        requester = _requester(peer.address, translate.requester_owner(call.version), agent)
        return self._answer(request, ControlRequest(call, requester, tree))

    def _answer(self, request: HttpRequest, control: ControlRequest) -> Awaitable[HttpResponse]:
        try:
            outputs = self._answers.get(control.call.action.name, self._read)(control)
            if isinstance(outputs, Awaitable):
                return self._answer_later(request, outputs, control)
            return self._now(self._ok(request, encode_response(control.call, outputs)))
        except (Refusal, UpnpFault, OurFault) as error:
            return self._now(self._failed(request, error, control))

    async def _answer_later(
        self, request: HttpRequest, work: Awaitable[Outputs], control: ControlRequest
    ) -> HttpResponse:
        try:
            return self._ok(request, encode_response(control.call, await work))
        except (Refusal, UpnpFault, OurFault) as error:
            return self._failed(request, error, control)

    def _read(self, control: ControlRequest) -> Outputs:
        """The answer to an action that returns state variables and does nothing else."""
        return {
            output.name: self._variables.read(output.variable, control.tree, control.requester.address)
            for output in control.call.action.outputs
        }

    def _ok(self, request: HttpRequest, body: bytes) -> HttpResponse:
        self.outcomes["ok"] += 1
        return _xml(request, HTTPStatus.OK, body)

    def _failed(
        self, request: HttpRequest, error: Refusal | UpnpFault | OurFault, control: ControlRequest
    ) -> HttpResponse:
        code = ACTION_FAILED
        if isinstance(error, Refusal):
            code = translate.fault_code(error, control.call.version, control.call.action.name)
        elif isinstance(error, UpnpFault):
            code = error.code
        return self._fault(request, code, str(error), _asked(control), control.call.service.fault_name(code))

    def _fault(
        self, request: HttpRequest, code: int, reason: str, asked: dict[str, Any], name: str = ""
    ) -> HttpResponse:
        self.outcomes[str(code)] += 1
        self._log.write(logging.INFO, "refused", code=code, reason=reason, **asked)
        return _xml(request, HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(code, name))

    def _forbidden(self, peer: Peer, origin: str | None, agent: str) -> HttpResponse:
        self.outcomes["forbidden"] += 1
        reason = "a web page may have made this request"
        self._log.write(logging.INFO, "refused", peer.address, reason=reason, origin=origin, agent=agent)
        return HttpResponse(HTTPStatus.FORBIDDEN)


_requester = lru_cache(maxsize=64)(Requester)  # a host's mappings share one


@lru_cache(maxsize=16)  # of the Host header: always one of our few
def _literal(host: str) -> IPAddress:
    """The address in a Host header, without port and scope; raises AddressValueError."""
    if host.startswith("["):
        return IPv6Address(host[1:].partition("]")[0].partition("%")[0])
    return IPv4Address(host.partition(":")[0])


def _names_us(host: str | None, peer: Peer) -> bool:
    """Whether a Host header, where there is one, is our address: a name could have been rebound to it."""
    if host is None:
        return True
    try:
        return _literal(host.strip()) == peer.local_address
    except AddressValueError:
        return False


def _xml(request: HttpRequest, status: int, body: bytes) -> HttpResponse:
    """An XML document, with its language for those who wish for one (UPnP Device Architecture 1.1 section 2.11)."""
    return HttpResponse(status, _XML_IN_ENGLISH if "accept-language" in request.headers else _XML, body)


def _asked(control: ControlRequest) -> dict[str, Any]:
    arguments = control.arguments
    return {
        "action": f"{control.call.action.name}:{control.call.version}",
        "client": control.requester.address,
        "agent": control.requester.agent,
        "external_port": arguments.get("NewExternalPort"),
        "protocol": arguments.get("NewProtocol", arguments.get("Protocol")),
        "internal_port": arguments.get("InternalPort"),
        "pinhole": arguments.get("UniqueID"),
    }
