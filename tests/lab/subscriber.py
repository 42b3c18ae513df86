# SPDX-License-Identifier: Apache-2.0
"""A subscriber on a host of the lab: its callback server, and what it asks of the router."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable

from tests.lab.clients import soap_client
from tests.lab.namespaces import Host, poll
from tests.support.events import Event
from tests.support.soap_client import HttpReply

EVENT_PATH = "/evt/IPConn"
RECEIVE_SIZE = 65536
PATIENCE = 12.0  # a recovery begins within 5 s, and is told within half a second
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Subscriber:
    """Takes events until it is closed; ``answer`` None: accepts connections, and never says a word."""

    def __init__(self, host: Host, answer: bytes | None = OK) -> None:
        self.events: list[Event] = []
        self.senders: set[str] = set()
        self._host = host
        self._answer = answer
        self._client = soap_client(host)
        self._kept: list[socket.socket] = []
        self._socket = host.socket(socket.SOCK_STREAM)
        self._socket.bind((host.address, 0))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it takes events."""
        return f"http://{self._host.address}:{self._socket.getsockname()[1]}/cb"

    def subscribe(self, path: str = EVENT_PATH, callback: str = "", timeout: str = "Second-1801") -> HttpReply:
        """A new subscription; ``callback`` instead of its own URL."""
        headers = {"CALLBACK": f"<{callback or self.url}>", "NT": "upnp:event", "TIMEOUT": timeout}
        return self._client.request("SUBSCRIBE", path, headers, b"")

    def renew(self, sid: str, path: str = EVENT_PATH) -> HttpReply:
        return self._client.request("SUBSCRIBE", path, {"SID": sid, "TIMEOUT": "Second-1801"}, b"")

    def unsubscribe(self, sid: str, path: str = EVENT_PATH) -> HttpReply:
        return self._client.request("UNSUBSCRIBE", path, {"SID": sid}, b"")

    def wait_for(self, wanted: Callable[[Event], bool], what: str) -> Event:
        """The first event that is as wanted; LabError when none comes in time."""
        return poll(lambda: next(filter(wanted, self.events), None), PATIENCE, f"{what}; events: {self.events}")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, (address, _) = self._socket.accept()
                self.senders.add(address)
                if self._answer is None:
                    self._kept.append(connection)
                    continue
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(PATIENCE)
                    self.events.append(Event.parse(_received(connection)))
                    connection.sendall(self._answer)

    def close(self) -> None:
        """Listen no more; connections are refused."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        for each in (self._socket, *self._kept):
            each.close()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _received(connection: socket.socket) -> bytes:
    """One complete NOTIFY."""
    data = b""
    while chunk := connection.recv(RECEIVE_SIZE):
        data += chunk
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"^content-length: (\d+)\r?$", head, re.IGNORECASE | re.MULTILINE)
        if end and length and len(body) >= int(length[1]):
            break
    return data
