# SPDX-License-Identifier: Apache-2.0
"""The control point that measures: requests as bytes made beforehand, one TCP connection for each, closed by RST.

Whoever calls stands in the LAN host's network namespace.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

IP_BIND_ADDRESS_NO_PORT = 24  # ip(7)
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
LATEST_ANSWER = 20.0  # seconds; an asker whose SYNs a full backlog drops waits 1, 2, 4, 8 before it sends another
ENVELOPE_END = b"Envelope>"
OK = b"200"
SSDP_GROUP = ("239.255.255.250", 1900)
SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHost: 239.255.255.250:1900\r\nMan: "ssdp:discover"\r\nMX: 1\r\n'
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
)
SEARCH_SPACING = 0.04  # seconds; igdpcp answers 30 searches a second of one host


class Failed(Exception):
    """A gateway did not answer, or not with 200."""


def post(control: tuple[str, int, str], action: str, urn: str, body: bytes) -> bytes:
    """A whole request; ``control`` is address, port and path."""
    address, port, path = control
    return (
        f"POST {path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: Linux UPnP/1.1 benchmark\r\n"
        f'Content-Type: text/xml; charset="utf-8"\r\nSOAPAction: "{urn}#{action}"\r\n'
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode() + body


@dataclass(slots=True)
class _Asker:
    """One connection of a crowd, with its request and those that are to follow it."""

    socket: socket.socket
    source: str
    request: bytes
    following: Iterator[bytes]
    began: float
    reply: bytes = b""


def latency(target: tuple[str, int], request: bytes) -> float:
    """Seconds from the first SYN to the whole answer; raises Failed unless it is a 200."""
    began = time.perf_counter()
    with socket.socket() as sock:
        sock.settimeout(LATEST_ANSWER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.connect(target)
        sock.sendall(request)
        reply = b""
        while ENVELOPE_END not in reply[-16:]:
            chunk = sock.recv(65536)
            if not chunk:
                break
            reply += chunk
        took = time.perf_counter() - began
    if reply[9:12] != OK:
        raise Failed(f"{request!r} was answered with {reply!r}")
    return took


def one_after_another(target: tuple[str, int], request: bytes, seconds: float) -> float:
    """Answers a second, one connection at a time."""
    began = time.perf_counter()
    count = 0
    while time.perf_counter() - began < seconds:
        latency(target, request)
        count += 1
    return count / (time.perf_counter() - began)


class Crowd:
    """Several askers at once in one thread, by epoll; each asks again as soon as it has its answer."""

    def __init__(self, target: tuple[str, int], askers: Sequence[tuple[str, Iterator[bytes]]]) -> None:
        """``askers``: the address that each comes from, and its requests; they may share one iterator."""
        self._target = target
        self._askers = askers
        self._epoll = select.epoll()
        self._open: dict[int, _Asker] = {}
        self.took: list[float] = []

    def run(self) -> float:
        """Seconds until everybody has every answer; ``took`` has those of each answer. Raises Failed."""
        began = time.perf_counter()
        try:
            for source, requests in self._askers:
                self._ask_next(source, requests)
            while self._open:
                ready = self._epoll.poll(LATEST_ANSWER)
                if not ready:
                    raise Failed(f"{len(self._open)} of {len(self._askers)} connections got no answer")
                for descriptor, events in ready:
                    self._advance(descriptor, events)
            return time.perf_counter() - began
        finally:
            for asker in self._open.values():
                asker.socket.close()
            self._epoll.close()

    def _ask_next(self, source: str, requests: Iterator[bytes]) -> None:
        request = next(requests, None)
        if request is None:
            return
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        self._open[sock.fileno()] = _Asker(sock, source, request, requests, time.perf_counter())
        sock.connect_ex(self._target)
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _advance(self, descriptor: int, events: int) -> None:
        asker = self._open[descriptor]
        if events & select.EPOLLOUT and not events & select.EPOLLERR:
            asker.socket.send(asker.request)
            self._epoll.modify(descriptor, select.EPOLLIN)
            return
        try:
            chunk = asker.socket.recv(65536)
        except TimeoutError:  # a gateway with a short backlog: what it never took is asked once more
            self._give_up(descriptor)
            self._ask_next(asker.source, itertools.chain([asker.request], asker.following))
            return
        except OSError as error:
            raise Failed(f"one of {len(self._askers)} connections: {error}") from error
        asker.reply += chunk
        if chunk and ENVELOPE_END not in asker.reply[-16:]:
            return
        if asker.reply[9:12] != OK:
            raise Failed(f"one of {len(self._askers)} connections was answered with {asker.reply!r}")
        self.took.append(time.perf_counter() - asker.began)
        self._give_up(descriptor)
        self._ask_next(asker.source, asker.following)

    def _give_up(self, descriptor: int) -> None:
        self._open.pop(descriptor).socket.close()


def first_search_answer(source: str, seconds: float) -> float:
    """Search again and again until somebody answers; the moment of that, by time.perf_counter."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
        for _ in _ticks(seconds):
            sock.sendto(SEARCH, SSDP_GROUP)
            if select.select([sock], [], [], SEARCH_SPACING)[0]:
                return time.perf_counter()
    raise Failed(f"no answer to M-SEARCH in {seconds} s")


def search_latency(source: str) -> float:
    """Seconds from one M-SEARCH to its answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
        sock.settimeout(LATEST_ANSWER)
        began = time.perf_counter()
        sock.sendto(SEARCH, SSDP_GROUP)
        sock.recv(2048)
        return time.perf_counter() - began


def _ticks(seconds: float) -> Iterator[None]:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        yield
