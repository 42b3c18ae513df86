# SPDX-License-Identifier: Apache-2.0
"""SOAP control: request bodies to typed calls, results and faults to response bodies.

Control points break XML in known ways, above all by not escaping ``&`` and ``<``. A strict parser goes first; only
what it refuses is mended, once, and parsed again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import NoReturn
from xml.parsers import expat

from igdpcp.errors import MalformedRequest, UpnpFault
from igdpcp.upnp.actions import SERVICE_URN, UI2_MAX, UI4_MAX, Action, DataType, Service, StateVariable, service_by_type

DEPTH_LIMIT = 16  # elements inside one another; an honest request has 4
NAME_LIMIT = 128  # characters of an element name
VALUE_LIMIT = 4096  # characters of an argument's value
DESCRIPTION_LIMIT = 256  # characters kept of a free text

INVALID_ACTION = 401  # UPnP Device Architecture 1.1, table 3-3
INVALID_ARGS = 402
ACTION_FAILED = 501
ARGUMENT_VALUE_OUT_OF_RANGE = 601
STRING_TOO_LONG = 605

FAULT_TEXT = {
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
    703: "InactiveConnectionStateRequired",
    704: "ConnectionSetupFailed",
    705: "ConnectionSetupInProgress",
    706: "ConnectionNotConfigured",
    707: "DisconnectInProgress",
    708: "InvalidLayer2Address",
    709: "InternetAccessDisabled",
    710: "InvalidConnectionType",
    711: "ConnectionAlreadyTerminated",
    713: "SpecifiedArrayIndexInvalid",
    714: "NoSuchEntryInArray",
    715: "WildCardNotPermittedInSrcIP",
    716: "WildCardNotPermittedInExtPort",
    718: "ConflictInMappingEntry",
    720: "InvalidDeviceUUID",
    721: "InvalidServiceID",
    723: "InvalidConnServiceSelection",
    728: "NoPortMapsAvailable",
    729: "ConflictWithOtherMechanisms",
    730: "PortMappingNotFound",
    731: "ReadOnly",
    732: "WildCardNotPermittedInIntPort",
    733: "InconsistentParameters",
}

_OPEN = (
    '<?xml version="1.0"?>\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
)
_CLOSE = "</s:Body></s:Envelope>\n"

_PADDING = b"\0 \t\r\n"
_BOM = b"\xef\xbb\xbf"
_SOAPACTION = re.compile(re.escape(SERVICE_URN) + r"([A-Za-z0-9-]{1,64}):([0-9]{1,4})#([A-Za-z0-9_-]{1,128})")
_MPOST_SOAPACTION = re.compile(r"[0-9]{2}-soapaction")
_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)")
_INTEGER = re.compile(r"\+?([0-9]{1,64})")
_BARE_BRACKET = re.compile(r"<(?![A-Za-z_/!?])")
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode's general categories of what ends lines or cannot be seen
_XML_TYPES = {"text/xml", "application/xml", "application/soap+xml"}
_NOT_XML = dict.fromkeys(code for code in (*range(0x20), 0xFFFE, 0xFFFF) if chr(code) not in "\t\r\n")  # XML 1.0, 2.2
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True)
class Call:
    """One checked action call; ``arguments`` holds every declared input under its name on the wire.

    ``urn`` is the service type as the control point wrote it, ``version`` its version.
    """

    service: Service
    version: int
    urn: str
    action: Action
    arguments: dict[str, str | int | bool]


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


def parse_call(soapaction: str | None, body: bytes) -> Call:
    """The call that a control request makes (UPnP Device Architecture 1.1 section 3.2.1).

    Raises MalformedRequest when the body is no SOAP request, UpnpFault 401 for an action that the service does not
    have, 402, 601 or 605 for its arguments.
    """
    envelope = _read(body)
    wanted = (soapaction or "").strip().strip("\"'").strip() or f"{envelope.namespace}#{envelope.action}"
    match = _SOAPACTION.fullmatch(wanted)
    service = service_by_type(match[1]) if match else None
    if match is None or service is None:
        raise UpnpFault(INVALID_ACTION, "no such service")
    version = int(match[2])
    action = service.action(match[3], version) if version in service.versions else None
    if action is None or action.name != envelope.action:
        raise UpnpFault(INVALID_ACTION, "no such action")
    arguments = {}
    for argument in action.inputs:
        text = envelope.values.get(argument.name)
        if text is not None:
            arguments[argument.name] = _typed(
                argument.name, text, service.variable(argument.variable, version), version
            )
        elif argument.default is not None:
            arguments[argument.name] = argument.default
        else:
            raise UpnpFault(INVALID_ARGS, f"{argument.name} is missing")
    return Call(service, version, wanted.partition("#")[0], action, arguments)


def encode_response(call: Call, outputs: Mapping[str, object]) -> bytes:
    """The body of a positive answer; ``outputs`` must hold every output argument of the action."""
    name = call.action.name
    values = "".join(
        f"<{argument.name}>{_text(outputs[argument.name])}</{argument.name}>" for argument in call.action.outputs
    )
    return f'{_OPEN}<u:{name}Response xmlns:u="{call.urn}">{values}</u:{name}Response>{_CLOSE}'.encode(errors="replace")


def encode_fault(code: int, text: str) -> bytes:
    """The body of a fault, to be sent with status 500; an empty ``text`` takes the code's standard name."""
    return (
        f"{_OPEN}<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
        f"<errorDescription>{_text(text or FAULT_TEXT.get(code, ''))}</errorDescription></UPnPError></detail></s:Fault>"
        f"{_CLOSE}"
    ).encode(errors="replace")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int):
        return str(int(value))
    return escape(str(value).translate(_NOT_XML), quote=False)


def _typed(name: str, text: str, variable: StateVariable, version: int) -> str | int | bool:
    """The value as its state variable's type; the faults of UPnP Device Architecture 1.1, table 3-3."""
    if variable.free_text:
        return printable(text)[:DESCRIPTION_LIMIT]
    text = text.strip()
    if variable.type is DataType.STRING:
        if text in variable.wildcards:
            return ""
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


class _Envelope:
    """What expat's events say of Envelope, Body, the action element in it and its children, names without prefix."""

    def __init__(self) -> None:
        self.action = ""
        self.namespace = ""
        self.values: dict[str, str] = {}
        self._path: list[str] = []
        self._namespaces: dict[str, str] = {}
        self._in_action = False
        self._parts: list[str] | None = None
        self._size = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._path) >= DEPTH_LIMIT or len(tag) > NAME_LIMIT:
            raise MalformedRequest("element nested too deep or name too long")
        prefix, _, name = tag.rpartition(":")
        self._path.append(name)
        depth = len(self._path)
        if depth <= 3:
            self._namespaces.update((k.partition(":")[2], v) for k, v in attributes.items() if k.startswith("xmlns"))
        if depth == 3 and self._path[:2] == ["Envelope", "Body"] and not self.action:
            self.action, self.namespace, self._in_action = name, self._namespaces.get(prefix, ""), True
        elif depth == 4 and self._in_action:
            if name in self.values:
                raise UpnpFault(INVALID_ARGS, "an argument is given twice")
            self._parts, self._size = [], 0
        elif self._parts is not None:
            raise UpnpFault(INVALID_ARGS, "an element inside an argument")

    def end(self, tag: str) -> None:
        depth = len(self._path)
        name = self._path.pop()
        if depth == 3:
            self._in_action = False
        elif depth == 4 and self._parts is not None:
            self.values[name] = "".join(self._parts)
            self._parts = None

    def data(self, text: str) -> None:
        if self._parts is None:
            return
        self._size += len(text)
        if self._size > VALUE_LIMIT:
            raise UpnpFault(STRING_TOO_LONG, "an argument is too long")
        self._parts.append(text)


def _refuse(*_: object) -> NoReturn:
    raise MalformedRequest("document type declarations are not accepted")


def _read(body: bytes) -> _Envelope:
    body = body.strip(_PADDING).removeprefix(_BOM).lstrip(_PADDING)
    try:
        envelope = _parse(body)
    except expat.ExpatError:
        try:
            envelope = _parse(_mended(body))
        except expat.ExpatError as error:
            raise MalformedRequest(f"body is not XML: {expat.ErrorString(error.code)}") from error
    if not envelope.action:
        raise MalformedRequest("no action element in the SOAP body")
    return envelope


def _parse(body: bytes) -> _Envelope:
    # The encoding is fixed: a declared one would make expat look for any codec of that name.
    parser = expat.ParserCreate("UTF-8")
    envelope = _Envelope()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    parser.StartElementHandler = envelope.start
    parser.EndElementHandler = envelope.end
    parser.CharacterDataHandler = envelope.data
    parser.Parse(body, True)
    return envelope


def _mended(body: bytes) -> bytes:
    """The body with bare ``&`` and ``<`` escaped, what XML forbids gone and Latin-1 taken for what is not UTF-8."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode("latin-1")
    return _BARE_BRACKET.sub("&lt;", _BARE_AMPERSAND.sub("&amp;", text.translate(_NOT_XML))).encode()
