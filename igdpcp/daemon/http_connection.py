# SPDX-License-Identifier: Apache-2.0
"""One TCP connection of the HTTP server: when it reads, whom it waits for and how long, how its answers leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from http import HTTPStatus
from typing import Protocol

from igdpcp.errors import MalformedRequest, UpnpFault
from igdpcp.log import SparingLog
from igdpcp.model import IPAddress
from igdpcp.upnp.http import HttpConnection, HttpRequest, HttpResponse, xml_response
from igdpcp.upnp.soap import ACTION_FAILED, encode_fault
from igdpcp.values import dataclass

REQUEST_TIMEOUT = 5.0  # seconds from the first chance to send a request to its last byte
HANDLER_TIMEOUT = 20.0  # seconds; a control point gives 30 at most, UPnP Device Architecture 1.1 section 3.2.2
RESPONSE_TIMEOUT = 10.0  # seconds to read a response
IDLE_TIMEOUT = 10.0  # seconds to begin another request
RECEIVE_SIZE = 16 * 1024  # bytes that are read at one go

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, for no time


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, the address of ours that it reached, and the LAN's device."""

    address: IPAddress
    local_address: IPAddress
    device: str


# A future that is already done is answered at once: no task is needed for it.
Handler = Callable[[HttpRequest, Peer], Awaitable[HttpResponse]]


@dataclass(slots=True)
class HttpCounters:
    """What happened since the start."""

    connections: int = 0
    requests: int = 0
    not_on_lan: int = 0  # connections from hosts that are not served
    over_limit: int = 0  # connections beyond a ceiling
    gave_way: int = 0  # connections whose peers were waited for, ended for a host that holds fewer
    malformed: int = 0
    timeouts: int = 0
    unread: int = 0  # connections ended since too many bytes of responses waited to be read
    slow: int = 0  # requests that the handler took too long for
    failures: int = 0  # handler errors
    accept_errors: int = 0


class Shared(Protocol):
    """What the connections of a server share."""

    handler: Handler
    counters: HttpCounters
    log: SparingLog

    def fields(self) -> bytes:
        """The standing fields of a response that leaves now."""

    def response_waits(self) -> None:
        """Some connection has bytes to send that the kernel did not take."""

    def ended(self, connection: Connection) -> None:
        """The connection holds no place any more."""

    def part(self, sock: socket.socket) -> None:
        """Take over a socket whose last response was sent."""


class Connection:
    """From its first byte to its last; it reads nothing while a request is handled or a response is sent."""

    __slots__ = (
        "_answering", "_at_end", "_http", "_idle", "_loop", "_peer", "_reading", "_shared", "_socket", "_timer",
        "_unsent", "host", "waiting_since",
    )  # fmt: skip

    def __init__(
        self, shared: Shared, sock: socket.socket, host: Hashable, peer: Peer, loop: asyncio.AbstractEventLoop
    ) -> None:
        """``sock`` does not block; ``host`` stands for the host, whose connections are counted."""
        self.host = host
        self.waiting_since: float | None = None  # for the peer to send or to read; None: it is the peer who waits
        self._shared = shared
        self._socket = sock
        self._peer = peer
        self._loop = loop
        self._http = HttpConnection()
        self._idle = False  # between two requests
        self._at_end = False  # the peer sends no more
        self._reading = False  # the loop watches for bytes
        self._unsent = b""
        self._timer: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[None] | None = None

    @property
    def unsent(self) -> int:
        """Bytes of a response that wait until the peer has read others."""
        return len(self._unsent)

    def receive(self) -> None:
        """Take in what is there; a request that it completes is answered at once if the handler can."""
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            self._await_bytes(REQUEST_TIMEOUT)
            return
        except OSError:
            self._end()
            return
        if self._idle:
            self._idle = False
            self._cancel_timer()
        if data:
            self._advance(partial(self._http.receive_data, data))
        else:
            self._at_end = True
            self._stop_reading()
            self._advance(self._http.receive_end)

    def reset(self) -> asyncio.Task[None] | None:
        """End now, by RST; the handler's task, cancelled, if one runs."""
        if self._answering is not None:
            self._answering.cancel()
        reset_on_close(self._socket)
        self._end()
        return self._answering

    # -- requests ------------------------------------------------------------------------------------------------

    def _await_bytes(self, seconds: float) -> None:
        """Watch for bytes; the time for what is being waited for runs on if it runs already."""
        if self._at_end:
            self._end()
            return
        if self._timer is None:
            self.waiting_since = self._loop.time()
            self._timer = self._loop.call_later(seconds, self._expire)
        if not self._reading:
            self._reading = True
            self._loop.add_reader(self._socket, self.receive)

    def _advance(self, step: Callable[[], HttpRequest | None]) -> None:
        """Take in what ``step`` brings and start on the request that it completes."""
        if self._is_closed():
            return
        try:
            request = step()
        except MalformedRequest as error:
            self._shared.counters.malformed += 1
            self._shared.log.write(logging.INFO, "http_malformed", self._peer.address, reason=error)
            self._send(self._http.refuse(error.status, self._shared.fields()))
            return
        if output := self._http.bytes_to_send():
            self._say(output)
        if request is None:
            self._await_bytes(REQUEST_TIMEOUT)
            return
        self._shared.counters.requests += 1
        self._cancel_timer()
        self._handle(request)

    def _handle(self, request: HttpRequest) -> None:
        """Respond, at once or when the handler has done its work."""
        try:
            answer = self._shared.handler(request, self._peer)
            if isinstance(answer, asyncio.Future) and answer.done():
                self._respond(answer.result())
                return
        except (Exception, asyncio.CancelledError) as error:
            self._respond(self._failed(request, error))
            return
        self._stop_reading()
        self._answering = self._loop.create_task(self._respond_later(request, answer))

    async def _respond_later(self, request: HttpRequest, answer: Awaitable[HttpResponse]) -> None:
        try:
            async with asyncio.timeout(HANDLER_TIMEOUT) as limit:
                response = await answer
        except Exception as error:
            if limit.expired():
                self._shared.counters.slow += 1
            response = self._failed(request, error)
        self._answering = None
        if not self._is_closed():
            self._respond(response)

    def _failed(self, request: HttpRequest, error: BaseException) -> HttpResponse:
        """The response to a request that the handler failed on: a control point is never left without one."""
        if isinstance(error, MalformedRequest):
            self._shared.counters.malformed += 1
            return HttpResponse(error.status)
        if isinstance(error, UpnpFault):
            return xml_response(HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(error.code, ""))
        self._shared.counters.failures += 1
        self._shared.log.write(
            logging.ERROR,
            "http_failure",
            self._peer.address,
            exc_info=True,
            method=request.method,
            path=request.path,
        )
        return xml_response(HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(ACTION_FAILED, ""))

    # -- responses -----------------------------------------------------------------------------------------------

    def _respond(self, response: HttpResponse) -> None:
        self._send(self._http.send(response, self._shared.fields()))

    def _say(self, output: bytes) -> None:
        """Send a word between request and response; who has no room for it does not need it."""
        with contextlib.suppress(OSError):
            self._socket.send(output)

    def _send(self, data: bytes) -> None:
        """Send a whole response, then go on."""
        self._cancel_timer()
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end()
            return
        if sent == len(data):
            self._go_on()
            return
        self._unsent = data[sent:]
        self._stop_reading()
        self._loop.add_writer(self._socket, self._send_more)
        self.waiting_since = self._loop.time()
        self._timer = self._loop.call_later(RESPONSE_TIMEOUT, self._expire)
        self._shared.response_waits()

    def _send_more(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if not self._unsent:
            self._loop.remove_writer(self._socket)
            self._cancel_timer()
            self._go_on()

    def _go_on(self) -> None:
        """After a response: the next request, or the end."""
        if self._http.must_close:
            self._stop_reading()
            self._shared.ended(self)
            self._shared.part(self._socket)
        elif self._http.holds_more:
            # What is pipelined waits for its turn: others have theirs first, who would be kept out for it too.
            self.waiting_since = self._loop.time()
            self._stop_reading()  # until then: nothing may come between
            self._loop.call_soon(self._advance, self._http.resume)
        else:
            self._idle = True
            self._await_bytes(IDLE_TIMEOUT)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        """An idle peer is told that nothing follows; one that is in the middle of something is cut off."""
        self._shared.counters.timeouts += 1
        if self._idle:
            self._end()
        else:
            self.reset()

    def _end(self) -> None:
        self._stop_reading()
        self._cancel_timer()
        if self._unsent:
            self._unsent = b""
            self._loop.remove_writer(self._socket)
        self._socket.close()
        self._shared.ended(self)

    def _is_closed(self) -> bool:
        return self._socket.fileno() < 0

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _cancel_timer(self) -> None:
        self.waiting_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def reset_on_close(sock: socket.socket) -> None:
    """Have its end told by RST: nothing of it stays in the kernel."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
