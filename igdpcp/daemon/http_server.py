# SPDX-License-Identifier: Apache-2.0
"""The HTTP server of the LANs: accepts, limits and times connections; what is answered is the handler's."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from http import HTTPStatus
from ipaddress import IPv4Address

from igdpcp.errors import MalformedRequest, UpnpFault
from igdpcp.log import SparingLog
from igdpcp.upnp.http import HttpConnection, HttpRequest, HttpResponse, xml_response
from igdpcp.upnp.soap import ACTION_FAILED, encode_fault

CONNECTIONS_LIMIT = 128  # of all hosts together
CONNECTIONS_PER_HOST = 16
REQUEST_TIMEOUT = 5.0  # seconds from the first chance to send a request to its last byte
REFUSED_TIMEOUT = 2.0  # seconds that a refused peer has to close its side
IDLE_TIMEOUT = 10.0  # seconds to read a response and to begin another request

_ipv4 = lru_cache(maxsize=CONNECTIONS_LIMIT)(IPv4Address)  # the same few hosts come again and again


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, the address of ours that it reached, and the LAN's device."""

    address: IPv4Address
    local_address: IPv4Address
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
    malformed: int = 0
    timeouts: int = 0
    failures: int = 0  # handler errors


class HttpServer:
    """Hands every request of an admitted LAN host to ``handler``; one request of a connection at a time."""

    def __init__(self, handler: Handler, admit: Callable[[IPv4Address, str], bool], server: str = "igdpcp") -> None:
        """``admit`` tells for an address and a device whether that host is served; ``server`` is the Server header."""
        self.handler = handler
        self.admit = admit
        self.server = server
        self.counters = HttpCounters()
        self._log = SparingLog(logging.getLogger("igdpcp.http"))
        self._listeners: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._per_host: Counter[IPv4Address] = Counter()

    async def start(self, listeners: Iterable[tuple[socket.socket, str]]) -> None:
        """Serve on these listening sockets, each with its LAN's device; may be called again for more of them."""
        loop = asyncio.get_running_loop()
        for sock, device in listeners:
            self._listeners.append(await loop.create_server(partial(_Connection, self, device), sock=sock))

    async def close(self) -> None:
        """Stop listening, end every connection and the handlers that run for them."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        tasks = [task for connection in self._connections if (task := connection.stop())]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _enter(self, connection: _Connection, peer: Peer) -> bool:
        """Whether the connection may live; counts it in that case."""
        self.counters.connections += 1
        if not self.admit(peer.address, peer.device):
            self.counters.not_on_lan += 1
            return False
        if len(self._connections) >= CONNECTIONS_LIMIT or self._per_host[peer.address] >= CONNECTIONS_PER_HOST:
            self.counters.over_limit += 1
            return False
        self._connections.add(connection)
        self._per_host[peer.address] += 1
        return True

    def _leave(self, connection: _Connection, peer: Peer) -> None:
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._per_host[peer.address] -= 1
        if not self._per_host[peer.address]:
            del self._per_host[peer.address]


class _Connection(asyncio.Protocol):
    """One TCP connection; it reads nothing while a request is being handled."""

    def __init__(self, server: HttpServer, device: str) -> None:
        self._server = server
        self._device = device
        self._loop = asyncio.get_running_loop()
        self._http = HttpConnection(server.server)
        self._transport: asyncio.Transport
        self._peer: Peer
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle = False  # between two requests
        self._refused = False  # what still comes is read and forgotten

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        remote, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if remote is None or local is None:  # it is already gone
            remote, local = ("0.0.0.0", 0), ("0.0.0.0", 0)
        self._peer = Peer(_ipv4(remote[0]), _ipv4(local[0]), self._device)
        if self._server._enter(self, self._peer):
            self._expire_after(REQUEST_TIMEOUT)
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._server._leave(self, self._peer)

    def data_received(self, data: bytes) -> None:
        if self._idle:
            self._idle = False
            self._expire_after(REQUEST_TIMEOUT)
        self._advance(partial(self._http.receive_data, data))

    def stop(self) -> asyncio.Task[None] | None:
        """End now; the handler's task, cancelled, if one runs."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def _advance(self, step: Callable[[], list[HttpRequest]]) -> None:
        """Take in what ``step`` brings and start on the request that it completes."""
        if self._refused or self._transport.is_closing():
            return
        try:
            requests = step()
        except MalformedRequest as error:
            self._server.counters.malformed += 1
            self._server._log.write(logging.INFO, "http_malformed", self._peer.address, reason=error)
            self._refuse(error.status)
            return
        if output := self._http.bytes_to_send():
            self._transport.write(output)
        for request in requests:
            self._server.counters.requests += 1
            self._cancel_timer()
            self._handle(request)

    def _handle(self, request: HttpRequest) -> None:
        """Respond, at once or when the handler has done its work."""
        try:
            answer = self._server.handler(request, self._peer)
            if isinstance(answer, asyncio.Future) and answer.done():
                self._respond(answer.result())
                return
        except Exception as error:
            self._respond(self._failed(request, error))
            return
        self._transport.pause_reading()
        self._task = self._loop.create_task(self._respond_later(request, answer))

    async def _respond_later(self, request: HttpRequest, answer: Awaitable[HttpResponse]) -> None:
        try:
            response = await answer
        except Exception as error:
            response = self._failed(request, error)
        finally:
            self._task = None
        self._respond(response)

    def _respond(self, response: HttpResponse) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._http.send(response))
        if self._http.must_close:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._expire_after(IDLE_TIMEOUT)
            return
        self._expire_after(IDLE_TIMEOUT)
        self._idle = True
        self._transport.resume_reading()
        # What is pipelined waits for its turn: others have theirs first.
        self._loop.call_soon(self._advance, self._http.resume)

    def _failed(self, request: HttpRequest, error: Exception) -> HttpResponse:
        """The response to a request that the handler failed on: a control point is never left without one."""
        if isinstance(error, MalformedRequest):
            self._server.counters.malformed += 1
            return HttpResponse(error.status)
        if isinstance(error, UpnpFault):
            return xml_response(HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(error.code, ""))
        self._server.counters.failures += 1
        self._server._log.write(
            logging.ERROR,
            "http_failure",
            self._peer.address,
            exc_info=True,
            method=request.method,
            path=request.path,
        )
        return xml_response(HTTPStatus.INTERNAL_SERVER_ERROR, encode_fault(ACTION_FAILED, ""))

    def _refuse(self, status: int) -> None:
        """Answer with an error and let the peer end; to close at once could take the answer away before it is read."""
        self._refused = True
        self._transport.write(self._http.refuse(status))
        self._transport.write_eof()
        self._expire_after(REFUSED_TIMEOUT)

    def _expire_after(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, self._expire)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._server.counters.timeouts += 1
        self._transport.abort()
