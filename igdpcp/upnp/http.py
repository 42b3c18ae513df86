# SPDX-License-Identifier: Apache-2.0
"""The server's side of one HTTP connection: bytes to requests, responses to bytes; h11 keeps the state machine."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

import h11

from igdpcp.errors import MalformedRequest

HEADER_LIMIT = 8 * 1024  # bytes of request line and header fields
BODY_LIMIT = 32 * 1024  # bytes of a request's body
REQUEST_LIMIT = HEADER_LIMIT + 2 * BODY_LIMIT  # bytes on the wire, chunk framing and what is pipelined behind included
PIECES_LIMIT = 1024  # chunks of a body that are read at one go: each costs some microseconds
FIELD_OVERHEAD = len(": \r\n")
CONTENT_LENGTH_DIGITS = 9  # more are too many, whatever they say

XML_TYPE = 'text/xml; charset="utf-8"'  # UPnP Device Architecture 1.1 section 3.2.1

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A complete request. Header names are lower-case, of a repeated one the first is kept; ``version`` like "1.1"."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    version: str


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response; Content-Length, Connection, Server and Ext are added when it is sent. ``close``: end after it."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    close: bool = False


def xml_response(status: int, body: bytes) -> HttpResponse:
    """A response with an XML document."""
    return HttpResponse(status, (("Content-Type", XML_TYPE),), body)


class HttpConnection:
    """One connection, from its first byte to its end. At most one request is out at a time.

    After ``receive_data`` or ``resume`` has returned a request, ``send`` its response, then call ``resume`` for a
    request that was pipelined behind it. ``must_close`` says after ``send`` that no other request can follow.
    """

    def __init__(self, server: str) -> None:
        """``server`` is the value of the Server header."""
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
        self._fixed_fields = f"Ext:\r\nServer: {_one_line(server)}\r\n\r\n".encode("latin-1", "replace")
        self._request: h11.Request | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._received = 0  # bytes since the end of the last request that was answered
        self._output = b""
        self._over = False

    @property
    def must_close(self) -> bool:
        """Whether the connection is over once everything is sent."""
        return self._over

    def receive_data(self, data: bytes) -> list[HttpRequest]:
        """The request that ``data`` completes, if any; raises MalformedRequest (400, 413, 431 or 501).

        After that only ``refuse`` makes sense.
        """
        if not data:
            return []
        self._received += len(data)
        if self._received > REQUEST_LIMIT:
            raise MalformedRequest("too many bytes for a request", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._h11.receive_data(data)
        return self.resume()

    def resume(self) -> list[HttpRequest]:
        """The request that is complete in what was received so far, if any; raises like ``receive_data``."""
        try:
            return self._next()
        except h11.RemoteProtocolError as error:
            raise MalformedRequest(str(error), error.error_status_hint) from error

    def bytes_to_send(self) -> bytes:
        """What the protocol itself has to say, such as 100 Continue; given out once."""
        output, self._output = self._output, b""
        return output

    def send(self, response: HttpResponse) -> bytes:
        """The bytes of the response to the last request."""
        self._over = response.close or self._h11.their_state is not h11.DONE
        body = b"" if self._request is not None and self._request.method == b"HEAD" else response.body
        head = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\n"]
        head += [f"{name}: {_one_line(value)}\r\n" for name, value in response.headers]
        head += [f"Content-Length: {len(response.body)}\r\n", "Connection: close\r\n" if self._over else ""]
        self._request = None
        if not self._over:
            self._next_cycle(response.status)
        return b"".join(("".join(head).encode("latin-1", "replace"), self._fixed_fields, body))

    def refuse(self, status: int) -> bytes:
        """An empty response that ends the connection."""
        return self.send(HttpResponse(status, close=True))

    def _next_cycle(self, status: int) -> None:
        """Tell h11 that a response was sent, so that it takes another request; it writes slower than ``send``."""
        self._h11.send(h11.Response(status_code=status, headers=[(b"Content-Length", b"0")]))
        self._h11.send(h11.EndOfMessage())
        self._received = len(self._h11.trailing_data[0])
        self._h11.start_next_cycle()

    def _next(self) -> list[HttpRequest]:
        connection = self._h11
        pieces = 0
        while True:
            event = connection.next_event()
            if type(event) is h11.Data:
                pieces += 1
                self._size += len(event.data)
                if self._size > BODY_LIMIT or pieces > PIECES_LIMIT:
                    raise MalformedRequest("body is too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                self._body.append(bytes(event.data))
            elif type(event) is h11.Request:
                self._begin(event)
            elif type(event) is h11.EndOfMessage:
                return [self._complete()]
            elif event is h11.PAUSED:
                return []
            else:
                if connection.they_are_waiting_for_100_continue:
                    self._output += connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
                return []

    def _begin(self, request: h11.Request) -> None:
        """Take in a request's head, and refuse what can be refused before its body comes."""
        self._request, self._headers, self._body, self._size = request, {}, [], 0
        size = len(request.target)
        for name, value in request.headers:
            size += len(name) + len(value) + FIELD_OVERHEAD
            self._headers.setdefault(name.decode("ascii"), value.decode("latin-1"))
        if size > HEADER_LIMIT:  # h11 lets it pass when it arrives at once
            raise MalformedRequest("header fields are too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        length = self._headers.get("content-length", "0")
        if len(length) > CONTENT_LENGTH_DIGITS or int(length) > BODY_LIMIT:
            raise MalformedRequest("body is too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def _complete(self) -> HttpRequest:
        request = self._request
        assert request is not None
        return HttpRequest(
            method=request.method.decode("ascii"),
            path=_path(request.target.decode("ascii")),
            headers=self._headers,
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            version=request.http_version.decode("ascii"),
        )


def _one_line(value: str) -> str:
    """The text without line ends: a header value cannot begin another header."""
    return value.replace("\r", " ").replace("\n", " ")


def _path(target: str) -> str:
    """The path of a request target, which some clients send as a whole URL."""
    if target.lower().startswith("http://"):
        return "/" + target[len("http://") :].partition("/")[2]
    return target
