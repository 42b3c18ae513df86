# SPDX-License-Identifier: Apache-2.0
"""SOAP control: request bodies to typed calls, results and faults to response bodies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from igdpcp.errors import UpnpFault
from igdpcp.upnp.actions import (
    SERVICE_URN,
    UI2_MAX,
    UI4_MAX,
    Action,
    Argument,
    DataType,
    Service,
    StateVariable,
    Value,
)
from igdpcp.upnp.envelope import NOT_XML, Envelope, read_envelope
from igdpcp.upnp.services import service_by_type
from igdpcp.values import dataclass

DESCRIPTION_LIMIT = 256  # characters kept of a free text

INVALID_ACTION = 401  # UPnP Device Architecture 1.1, table 3-3
INVALID_ARGS = 402
INVALID_VAR = 404
ACTION_FAILED = 501
ARGUMENT_VALUE_OUT_OF_RANGE = 601
OPTIONAL_ACTION_NOT_IMPLEMENTED = 602

FAULT_NAMES = {
    401: "Invalid Action",
    402: "Invalid Args",
    404: "Invalid Var",
    501: "Action Failed",
    600: "Argument Value Invalid",
    601: "Argument Value Out of Range",
    602: "Optional Action Not Implemented",
    603: "Out of Memory",
    604: "Human Intervention Required",
    605: "String Argument Too Long",
    606: "Action not authorized",
}

_OPEN = (
    '<?xml version="1.0"?>\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
)
_CLOSE = "</s:Body></s:Envelope>\n"
_CONTROL = "urn:schemas-upnp-org:control-1-0"
_QUERY = f"{_CONTROL}#QueryStateVariable"

_SOAPACTION = re.compile(re.escape(SERVICE_URN) + r"([A-Za-z0-9-]{1,64}):([0-9]{1,4})#([A-Za-z0-9_-]{1,128})")
_MPOST_SOAPACTION = re.compile(r"[0-9]{2}-soapaction")
_INTEGER = re.compile(r"\+?([0-9]{1,64})")
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's general categories of what ends lines or cannot be seen
_XML_TYPES = {"text/xml", "application/xml", "application/soap+xml"}
_REMEMBERED_ACTIONS = 64
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Cdata(str):
    """Text that holds an XML document, which goes out as it is; "]]>" must not occur in it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One checked action call; ``arguments`` holds every declared input under its name on the wire.

    ``urn`` is the service type as the control point wrote it, ``version`` its version.
    """

    service: Service
    version: int
    urn: str
    action: Action
    arguments: dict[str, Value]


@dataclass(frozen=True, slots=True)
class VariableQuery:
    """QueryStateVariable: the value of one state variable is asked for; nothing of it names the service."""

    name: str


def soapaction_of(headers: Mapping[str, str]) -> str | None:
    """The SOAPACTION header, also under the prefix that M-POST gives it; header names are lower-case."""
    plain = headers.get("soapaction")
    if plain is not None:
        return plain
    return next((value for name, value in headers.items() if _MPOST_SOAPACTION.fullmatch(name)), None)


def may_come_from_a_page(headers: Mapping[str, str]) -> bool:
    """Whether a web page can have made its visitor's browser send this control request; header names are lower-case.

    A browser names the page in Origin. Older ones do not always; but for a SOAPACTION header, or the media type of
    XML, every browser first asks with OPTIONS (Fetch standard section 4.8), which is never granted here.
    """
    if "origin" in headers:
        return True
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return soapaction_of(headers) is None and media_type not in _XML_TYPES


def printable(text: str) -> str:
    """The text without control and format characters, line separators and surrogates; spaces of all kinds stay."""
    if text.isprintable():
        return text
    return "".join(character for character in text if unicodedata.category(character) not in _UNPRINTABLE)


def names_an_action(soapaction: str | None) -> bool:
    """Whether this SOAPACTION is meant for us, whatever the path that it was posted to."""
    wanted = _unquoted(soapaction)
    match = _SOAPACTION.fullmatch(wanted)
    return wanted == _QUERY or (match is not None and service_by_type(match[1]) is not None)


def parse_control(soapaction: str | None, body: bytes) -> Call | VariableQuery:
    """What a control request asks for (UPnP Device Architecture 1.1 sections 3.2.1 and 3.3.1).

    Raises MalformedRequest when the body is no SOAP request, UpnpFault 401 or 602 for an action that the service does
    not have, 402, 601 or 605 for its arguments.
    """
    envelope = read_envelope(body)
    wanted = _unquoted(soapaction) or f"{envelope.namespace}#{envelope.action}"
    if wanted != _QUERY:
        return _call(wanted, envelope)
    name = envelope.values.get("varName")
    if name is None:
        raise UpnpFault(INVALID_ARGS, "varName is missing")
    return VariableQuery(name.strip())


def encode_response(call: Call, outputs: Mapping[str, object]) -> bytes:
    """The body of a positive answer; ``outputs`` must hold every output argument of the action."""
    name = call.action.name
    values = "".join(
        f"<{argument.name}>{text_of(outputs[argument.name])}</{argument.name}>" for argument in call.action.outputs
    )
    return f'{_OPEN}<u:{name}Response xmlns:u="{call.urn}">{values}</u:{name}Response>{_CLOSE}'.encode(errors="replace")


def encode_variable(value: Value) -> bytes:
    """The body of the positive answer to a QueryStateVariable."""
    name = "QueryStateVariableResponse"
    return (f'{_OPEN}<u:{name} xmlns:u="{_CONTROL}"><return>{text_of(value)}</return></u:{name}>{_CLOSE}').encode(
        errors="replace"
    )


def encode_fault(code: int, text: str) -> bytes:
    """The body of a fault, to be sent with status 500; an empty ``text`` takes the name that all services give it."""
    text = text_of(text or FAULT_NAMES.get(code, ""))
    return (
        f"{_OPEN}<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="{_CONTROL}"><errorCode>{code}</errorCode>'
        f"<errorDescription>{text}</errorDescription></UPnPError></detail></s:Fault>"
        f"{_CLOSE}"
    ).encode(errors="replace")


def text_of(value: object) -> str:
    """The value as an XML element's content."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, Cdata):
        return f"<![CDATA[{value}]]>"
    return escaped(str(value))


def escaped(text: str) -> str:
    """The text as an XML element's content."""
    if not text.isprintable():
        text = text.translate(NOT_XML)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _unquoted(soapaction: str | None) -> str:
    return (soapaction or "").strip().strip("\"'").strip()


class _Target(NamedTuple):
    """What a SOAPACTION names, and each input argument with its state variable."""

    service: Service
    version: int
    urn: str
    action: Action
    inputs: tuple[tuple[Argument, StateVariable], ...]


@lru_cache(_REMEMBERED_ACTIONS)
def _target(wanted: str) -> _Target:
    match = _SOAPACTION.fullmatch(wanted)
    service = service_by_type(match[1]) if match else None
    if match is None or service is None:
        raise UpnpFault(INVALID_ACTION, "no such service")
    version, name = int(match[2]), match[3]
    if version not in service.versions:
        raise UpnpFault(INVALID_ACTION, "no such version of the service")
    action = service.action(name, version)
    if action is None:
        code = OPTIONAL_ACTION_NOT_IMPLEMENTED if name in service.not_offered else INVALID_ACTION
        raise UpnpFault(code, "no such action")
    inputs = tuple((argument, service.variable(argument.variable, version)) for argument in action.inputs)
    return _Target(service, version, wanted.partition("#")[0], action, inputs)


def _call(wanted: str, envelope: Envelope) -> Call:
    target = _target(wanted)
    if target.action.name != envelope.action:
        raise UpnpFault(INVALID_ACTION, "SOAPACTION and body name two actions")
    arguments: dict[str, Value] = {}
    for argument, variable in target.inputs:
        text = envelope.values.get(argument.name)
        if text is not None and not _is_left_empty(text, argument):
            arguments[argument.name] = _typed(argument.name, text, variable, target.version)
        elif argument.default is not None:
            arguments[argument.name] = argument.default
        else:
            raise UpnpFault(INVALID_ARGS, f"{argument.name} is missing")
    return Call(target.service, target.version, target.urn, target.action, arguments)


def _is_left_empty(text: str, argument: Argument) -> bool:
    """Whether it stands for nothing: an empty element where no value is empty, but some value is taken for granted."""
    return not text.strip() and argument.default not in (None, "")


def _typed(name: str, text: str, variable: StateVariable, version: int) -> Value:
    """The value as its state variable's type; the faults of UPnP Device Architecture 1.1, table 3-3."""
    if variable.free_text:
        return printable(text)[:DESCRIPTION_LIMIT]
    text = text.strip()
    for spelling, meant in variable.spellings:
        if text.lower() == spelling:
            text = meant
    if variable.type is DataType.STRING:
        return _listed(name, text, variable.allowed, version) if variable.allowed else text
    if variable.type is DataType.BOOLEAN:
        boolean = _BOOLEANS.get(text.lower())
        if boolean is None:
            raise UpnpFault(INVALID_ARGS, f"{name} is no boolean")
        return boolean
    number = _INTEGER.fullmatch(text)
    if number is None or int(number[1]) > (UI2_MAX if variable.type is DataType.UI2 else UI4_MAX):
        raise UpnpFault(INVALID_ARGS, f"{name} is no {variable.type}")
    return int(number[1])


def _listed(name: str, text: str, allowed: tuple[str, ...], version: int) -> str:
    for value in allowed:
        if value.lower() == text.lower():
            return value
    # WANIPConnection:2 asks for 601 where version 1 knew only 402
    raise UpnpFault(ARGUMENT_VALUE_OUT_OF_RANGE if version > 1 else INVALID_ARGS, f"{name} is not one of {allowed}")
