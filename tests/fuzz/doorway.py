# SPDX-License-Identifier: Apache-2.0
"""A LAN inside the process: connections of any host to the HTTP server, which arrive at once and on no network."""

from __future__ import annotations

import itertools
import socket
from typing import Any

BACKLOG = 128
HTTP_PORT = 5000


class Doorway(socket.socket):
    """Looks like a listening TCP socket of ``address``; a connection carries in its name the host it comes from."""

    def __init__(self, address: str) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._address = address
        self._numbers = itertools.count()
        self.bind("")  # Linux chooses a name
        self.listen(BACKLOG)
        self._name = super().getsockname()

    def getsockname(self) -> tuple[str, int]:
        return self._address, HTTP_PORT

    def setsockopt(self, *_: Any) -> None:
        """There is no TCP here whose options could be set."""

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        connection, name = super().accept()
        host, number = name.rsplit(b"/", 2)[1:]
        return connection, (host.decode(), int(number))

    def dial(self, host: str) -> socket.socket:
        """The host's end of a connection."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.bind(self._name + f"/{host}/{next(self._numbers)}".encode())
        connection.connect(self._name)
        connection.setblocking(False)
        return connection
