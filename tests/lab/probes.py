# SPDX-License-Identifier: Apache-2.0
"""Packets that tell whether a path is open: listeners that say whom they saw, and the probes that ask them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from dataclasses import dataclass

from tests.lab.namespaces import Host

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
DATAGRAM_GAP = 0.25
REPLY_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a probe; true when a listener answered.

    ``outcome``: ``answered``, ``refused`` (RST or ICMP) or ``silent``. ``listener`` is the host that answered,
    ``peer`` the ``address:port`` from which it saw the probe come.
    """

    outcome: str
    listener: str = ""
    peer: str = ""

    def __bool__(self) -> bool:
        return self.outcome == "answered"

    @property
    def peer_address(self) -> str:
        return self.peer.rpartition(":")[0]

    @property
    def peer_port(self) -> int:
        return int(self.peer.rpartition(":")[2])


class Listener:
    """Answers each TCP connection or datagram with its host's name and the sender it saw; ready when constructed."""

    def __init__(self, host: Host, protocol: str, port: int, address: str = "0.0.0.0") -> None:
        self.seen: list[str] = []
        self._name = host.name.encode()
        self._socket = host.socket(KINDS[protocol], _family(address))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        if protocol == "tcp":
            self._socket.listen(64)
        self._wake, self._waker = socket.socketpair()
        self._serve = self._accept if protocol == "tcp" else self._receive
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._wake], [], [])
            if self._wake in ready:
                return
            with contextlib.suppress(OSError):
                self._serve()

    def _accept(self) -> None:
        connection, peer = self._socket.accept()
        with connection:
            connection.sendall(self._reply(peer))

    def _receive(self) -> None:
        _, peer = self._socket.recvfrom(2048)
        self._socket.sendto(self._reply(peer), peer)

    def _reply(self, peer: tuple[str, int]) -> bytes:
        seen = f"{peer[0]}:{peer[1]}"
        self.seen.append(seen)
        return self._name + b" " + seen.encode()

    def close(self) -> None:
        """Stop listening; nothing happens when it was closed before."""
        if not self._thread.is_alive():
            return
        self._waker.send(b"x")
        self._thread.join()
        for end in (self._socket, self._wake, self._waker):
            end.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def probe(
    host: Host, protocol: str, to: str, port: int, *, source_port: int = 0, source: str = "", timeout: float = 1.5
) -> Answer:
    """Send from ``host`` to ``to:port`` and say what came of it."""
    with host.socket(KINDS[protocol], _family(to)) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind((source, source_port))
        try:
            if protocol == "tcp":
                reply = _ask_by_connection(sender, (to, port), timeout)
            else:
                reply = _ask_by_datagrams(sender, (to, port), timeout)
        except TimeoutError:
            return Answer("silent")
        except OSError:
            return Answer("refused")
    listener, _, peer = reply.decode().partition(" ")
    return Answer("answered", listener, peer) if peer else Answer("refused")


def _ask_by_connection(sender: socket.socket, target: tuple[str, int], timeout: float) -> bytes:
    sender.settimeout(timeout)
    sender.connect(target)
    reply = b""
    while chunk := sender.recv(REPLY_LIMIT):
        reply += chunk
    return reply


def _ask_by_datagrams(sender: socket.socket, target: tuple[str, int], timeout: float) -> bytes:
    sender.settimeout(DATAGRAM_GAP)
    sender.connect(target)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        sender.send(b"probe")
        with contextlib.suppress(TimeoutError):
            return sender.recv(REPLY_LIMIT)
    raise TimeoutError
