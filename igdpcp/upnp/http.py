# SPDX-License-Identifier: Apache-2.0
"""The server's side of one HTTP connection: bytes to requests, responses to bytes; h11 reads heads and chunks."""

from __future__ import annotations

from http import HTTPStatus

import h11

from igdpcp.errors import MalformedRequest
from igdpcp.values import dataclass

HEADER_LIMIT = 8 * 1024  # bytes of request line and header fields
BODY_LIMIT = 32 * 1024  # bytes of a request's body
REQUEST_LIMIT = HEADER_LIMIT + 2 * BODY_LIMIT  # bytes on the wire, chunk framing and what is pipelined behind included
PIECES_LIMIT = 1024  # chunks of a body that are read at one go: each costs some microseconds
CONTENT_LENGTH_DIGITS = 9  # more are too many, whatever they say

XML_TYPE = 'text/xml; charset="utf-8"'  # UPnP Device Architecture 1.1 section 3.2.1

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_LINE_ENDS = b"\r\n"  # before a request line they mean nothing, RFC 9112 section 2.2


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
    """A response; Content-Length, Connection and the standing fields are added to it. ``close``: end after it."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    close: bool = False


def xml_response(status: int, body: bytes) -> HttpResponse:
    """A response with an XML document."""
    return HttpResponse(status, (("Content-Type", XML_TYPE),), body)


def standing_fields(server: str, date: str = "") -> bytes:
    """The header lines of every response; ``date`` empty: it is not known."""
    dated = f"Date: {date}\r\n" if date else ""
    return f"Ext:\r\nServer: {_one_line(server)}\r\n{dated}".encode("latin-1", "replace")


class HttpConnection:
    """One connection, from its first byte to its end. At most one request is out at a time.

    After a request has been returned, ``send`` its response, then call ``resume`` for one that was pipelined behind
    it. ``must_close`` says after ``send`` that no other request can follow. A body with a Content-Length is counted
    here, since a parser costs less to make anew than h11 needs to pass a body through; its chunks are h11's.
    """

    def __init__(self) -> None:
        self._parser = _parser()
        self._request: h11.Request | None = None  # its head came; until it is answered
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._length: int | None = None  # of the body that is being counted
        self._keep_alive = False
        self._out = False  # a request was returned and is not answered
        self._rest = b""  # came behind it
        self._received = 0  # bytes since the end of the last request that was answered
        self._output = b""
        self._at_end = False  # the peer sends no more
        self._over = False

    @property
    def must_close(self) -> bool:
        """Whether the connection is over once everything is sent."""
        return self._over

    @property
    def holds_more(self) -> bool:
        """Whether something was received that no request was made of yet."""
        return self._received > 0

    def receive_data(self, data: bytes) -> HttpRequest | None:
        """The request that ``data`` completes, if any; raises MalformedRequest (400, 413, 431 or 501).

        After that only ``refuse`` makes sense.
        """
        if not self._received:
            data = data.lstrip(_LINE_ENDS)
        self._received += len(data)
        if self._received > REQUEST_LIMIT:
            raise MalformedRequest("too many bytes for a request", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if self._out:
            self._rest += data
        elif self._length is not None:
            self._body += data
        elif data:
            self._parser.receive_data(data)
        return self.resume()

    def receive_end(self) -> HttpRequest | None:
        """The peer sends no more; the request that this completes, if any; raises like ``receive_data``.

        Some clients announce a longer body than they send: it is taken as it came.
        """
        self._at_end = True
        return self.resume()

    def resume(self) -> HttpRequest | None:
        """The request that is complete in what was received so far, if any; raises like ``receive_data``."""
        if self._out:
            return None
        if self._length is not None:
            request = self._counted(self._length)
        else:
            try:
                request = self._parsed()
            except h11.RemoteProtocolError as error:
                raise MalformedRequest(str(error), error.error_status_hint) from error
        if request is None and self._at_end:
            return self._cut_short()
        return request

    def bytes_to_send(self) -> bytes:
        """What the protocol itself has to say, such as 100 Continue; given out once."""
        output, self._output = self._output, b""
        return output

    def send(self, response: HttpResponse, fields: bytes = b"") -> bytes:
        """The bytes of the response to the last request; ``fields``: lines of ``standing_fields``."""
        self._over = response.close or not self._keep_alive or (self._at_end and not self._rest)
        body = b"" if self._request is not None and self._request.method == b"HEAD" else response.body
        head = f"HTTP/1.1 {response.status} {_REASONS.get(response.status, '')}\r\n"
        for name, value in response.headers:
            head += f"{name}: {_one_line(value)}\r\n"
        head += f"Content-Length: {len(response.body)}\r\n"
        if self._over:
            head += "Connection: close\r\n"
        else:
            self._begin_again()
        return b"".join((head.encode("latin-1", "replace"), fields, b"\r\n", body))

    def refuse(self, status: int, fields: bytes = b"") -> bytes:
        """An empty response that ends the connection."""
        return self.send(HttpResponse(status, close=True), fields)

    def _begin_again(self) -> None:
        """Make ready for the request that follows, of which a part may be there."""
        self._request, self._length, self._out = None, None, False
        self._body = bytearray()
        self._parser = _parser()
        if rest := self._rest.lstrip(_LINE_ENDS):
            self._parser.receive_data(rest)
        self._received, self._rest = len(rest), b""

    def _parsed(self) -> HttpRequest | None:
        """What h11 makes of the bytes that it has."""
        parser = self._parser
        pieces = 0
        while True:
            event = parser.next_event()
            if type(event) is h11.Request:
                behind, _ = parser.trailing_data
                self._take_head(event, self._received - len(behind))
                if self._length is not None:
                    self._body += behind
                    return self._counted(self._length)
            elif type(event) is h11.Data:
                pieces += 1
                self._body += event.data
                if len(self._body) > BODY_LIMIT or pieces > PIECES_LIMIT:
                    raise MalformedRequest("body is too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            elif type(event) is h11.EndOfMessage:
                self._rest = parser.trailing_data[0]
                return self._completed(bytes(self._body))
            else:
                self._encourage()
                return None

    def _take_head(self, request: h11.Request, size: int) -> None:
        """Take in a request's head of ``size`` bytes, and refuse what can be refused before its body comes."""
        if size > HEADER_LIMIT:  # h11 lets it pass when it arrives at once
            raise MalformedRequest("header fields are too long", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        fields = request.headers.raw_items()
        self._request = request
        self._headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in reversed(fields)}
        self._keep_alive = request.http_version >= b"1.1" and not (
            "connection" in self._headers and any(map(_says_close, fields))
        )
        length = self._headers.get("content-length", "0")
        if len(length) > CONTENT_LENGTH_DIGITS or int(length) > BODY_LIMIT:
            raise MalformedRequest("body is too long", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if "transfer-encoding" not in self._headers:
            self._length = int(length)

    def _counted(self, length: int) -> HttpRequest | None:
        """The request, once all of its body is there."""
        if len(self._body) < length:
            self._encourage()
            return None
        body = bytes(self._body[:length])
        self._rest = bytes(self._body[length:])
        return self._completed(body)

    def _cut_short(self) -> HttpRequest | None:
        """What can be made of the last bytes of a peer that ended its side."""
        if self._length is not None:
            return self._completed(bytes(self._body))
        if self._received:
            raise MalformedRequest("it ends in the middle of a request")
        return None

    def _encourage(self) -> None:
        """Tell a client to go on that waits for it."""
        if self._parser.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[], reason=b"Continue")
            self._output += self._parser.send(go_on) or b""

    def _completed(self, body: bytes) -> HttpRequest:
        request = self._request
        assert request is not None
        self._out = True
        return HttpRequest(
            method=request.method.decode("ascii"),
            path=_path(request.target.decode("ascii")),
            headers=self._headers,
            body=body,
            version=request.http_version.decode("ascii"),
        )


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)


def _says_close(field: tuple[bytes, bytes]) -> bool:
    name, value = field
    return name.lower() == b"connection" and b"close" in map(bytes.strip, value.lower().split(b","))


def _one_line(value: str) -> str:
    """The text without line ends: a header value cannot begin another header."""
    return value.replace("\r", " ").replace("\n", " ")


def _path(target: str) -> str:
    """The path of a request target, which some clients send as a whole URL."""
    if target.lower().startswith("http://"):
        return "/" + target[len("http://") :].partition("/")[2]
    return target
