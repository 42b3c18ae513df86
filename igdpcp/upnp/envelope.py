# SPDX-License-Identifier: Apache-2.0
"""SOAP envelopes as control points write them: bytes to the action's name and the texts of its arguments.

Control points break XML in known ways, above all by not escaping ``&`` and ``<``. A strict parser goes first; only
what it refuses is mended and parsed again, and only what it refuses then is cut apart: what stands between the tags of
an argument is its text, whatever it looks like.
"""

from __future__ import annotations

import re
import sys
from typing import NoReturn
from xml.parsers import expat

from igdpcp.errors import MalformedRequest, UpnpFault

DEPTH_LIMIT = 16  # elements inside one another; an honest request has 4
NAME_LIMIT = 128  # characters of an element name
VALUE_LIMIT = 4096  # characters of an argument's value
NOT_XML = dict.fromkeys(code for code in (*range(0x20), 0xFFFE, 0xFFFF) if chr(code) not in "\t\r\n")  # XML 1.0, 2.2

_INVALID_ARGS = 402  # UPnP Device Architecture 1.1, table 3-3
_STRING_TOO_LONG = 605
_SURROGATES = range(0xD800, 0xE000)
_PADDING = b"\0 \t\r\n"
_BOM = b"\xef\xbb\xbf"
_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)")
_REFERENCE = re.compile(r"&#(?:([0-9]{1,7})|x([0-9A-Fa-f]{1,6}));")
_BARE_BRACKET = re.compile(r"<(?![A-Za-z_/!?])")
_NAME = r"[A-Za-z_][\w.-]*"
_ACTION = re.compile(rf"<(?:{_NAME}:)?Body(?:\s[^<>]*)?>\s*<((?:{_NAME}:)?{_NAME})(?:\s[^<>]*)?>")
_ARGUMENT = re.compile(rf"<((?:{_NAME}:)?{_NAME})(?:\s[^<>]*)?(?<!/)>")
_CDATA = ("<![CDATA[", "]]>")


class Envelope:
    """What expat's events say of Envelope, Body, the action element in it and its children, names without prefix."""

    def __init__(self) -> None:
        self.action = ""
        self.values: dict[str, str] = {}
        self._prefix = ""
        self._path: list[str] = []
        self._attributes: list[dict[str, str]] = []  # of what encloses the action, and of the action itself
        self._in_action = False
        self._parts: list[str] | None = None
        self._size = 0
        self._fault: UpnpFault | MalformedRequest | None = None

    @property
    def namespace(self) -> str:
        """The action's namespace: the type of its service."""
        declaration = f"xmlns:{self._prefix}" if self._prefix else "xmlns"
        return next((found[declaration] for found in reversed(self._attributes) if declaration in found), "")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        prefix, _, name = tag.rpartition(":")
        self._path.append(name)
        depth = len(self._path)
        if depth <= 3 and not self.action:
            del self._attributes[depth - 1 :]
            self._attributes.append(attributes)
        if depth == 3 and self._path[:2] == ["Envelope", "Body"] and not self.action:
            self.action, self._prefix, self._in_action = name, prefix, True
        elif depth == 4 and self._in_action:
            if name in self.values:
                self._fault = UpnpFault(_INVALID_ARGS, "an argument is given twice")
            self._parts, self._size = [], 0
        elif self._parts is not None:
            self._fault = UpnpFault(_INVALID_ARGS, "an element inside an argument")
        if depth > DEPTH_LIMIT or len(tag) > NAME_LIMIT:
            self._fault = MalformedRequest("element nested too deep or name too long")

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
            raise UpnpFault(_STRING_TOO_LONG, "an argument is too long")
        self._parts.append(text)

    def check(self) -> None:
        """Raises what the elements had wrong, which is not known before it is known to be XML."""
        if self._fault:
            raise self._fault


def _refuse(*_: object) -> NoReturn:
    raise MalformedRequest("document type declarations are not accepted")


def read_envelope(body: bytes) -> Envelope:
    """What a request body says; raises MalformedRequest, or UpnpFault 402 or 605 for an argument's form."""
    body = body.strip(_PADDING).removeprefix(_BOM).lstrip(_PADDING)
    try:
        envelope = _parse(body)
    except expat.ExpatError:
        envelope = _parse_mended(_mended(body))
    if not envelope.action:
        raise MalformedRequest("no action element in the SOAP body")
    envelope.check()
    return envelope


def _parse_mended(text: str) -> Envelope:
    try:
        return _parse(text.encode())
    except expat.ExpatError as error:
        reason = f"body is not XML: {expat.ErrorString(error.code)}"
    action = _ACTION.search(text)
    if action is None:
        raise MalformedRequest(reason)
    try:
        return _parse(_cut_apart(text, action).encode())
    except expat.ExpatError as error:
        raise UpnpFault(_INVALID_ARGS, reason) from error


def _parse(body: bytes) -> Envelope:
    # The encoding is fixed: a declared one would make expat look for any codec of that name.
    parser = expat.ParserCreate("UTF-8")
    envelope = Envelope()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    parser.StartElementHandler = envelope.start
    parser.EndElementHandler = envelope.end
    parser.CharacterDataHandler = envelope.data
    parser.Parse(body, True)
    return envelope


def _mended(body: bytes) -> str:
    """The body with bare ``&`` and ``<`` escaped, what XML forbids gone and Latin-1 taken for what is not UTF-8."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode("latin-1")
    text = _BARE_BRACKET.sub("&lt;", _BARE_AMPERSAND.sub("&amp;", text.translate(NOT_XML)))
    return _REFERENCE.sub(_if_xml, text)


def _if_xml(reference: re.Match[str]) -> str:
    """The reference to a character, nothing when XML forbids that one (XML 1.0, 4.1)."""
    code = int(reference[1]) if reference[1] else int(reference[2], 16)
    return reference[0] if code <= sys.maxunicode and code not in NOT_XML and code not in _SURROGATES else ""


def _cut_apart(text: str, action: re.Match[str]) -> str:
    """The body with everything escaped that stands inside an argument of the action: each ends with its own tag."""
    at, end = action.end(), text.rfind(f"</{action[1]}")
    pieces = [text[:at]]
    while argument := _ARGUMENT.search(text, at, max(at, end)):
        close = text.find(f"</{argument[1]}", argument.end(), end)
        if close < 0:
            break
        pieces += [text[at : argument.end()], _escaped(text[argument.end() : close])]
        at = close
    return "".join([*pieces, text[at:]])


def _escaped(value: str) -> str:
    opening, closing = _CDATA
    if value.startswith(opening) and value.find(closing) == len(value) - len(closing):
        return value
    return value.replace("<", "&lt;").replace(closing, "]]&gt;")
