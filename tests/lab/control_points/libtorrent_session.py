# SPDX-License-Identifier: Apache-2.0
"""libtorrent, the engine of qBittorrent and Deluge: searches for root devices, maps what it listens on."""

from __future__ import annotations

from tests.lab.control_points.program import DEBIAN_PYTHON, ControlPoint, Driver
from tests.lab.topology import Lab

PORT = 6881


class LibtorrentSession(ControlPoint):
    """Maps at its start and unmaps at its end; it has no way to list, what it sees are the port map alerts."""

    name = "libtorrent"
    ports = (("tcp", PORT), ("udp", PORT))
    listens = True

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._driver = Driver(self.host, DEBIAN_PYTHON, "libtorrent_session.py", self.environment)
        self._said: list[str] = []

    def open(self) -> None:
        self._said = self._driver.ask("start", listen=f"{self.host.address}:{PORT}")

    def sees(self) -> bool:
        return sorted(self._said) == [
            f"successfully mapped port using UPnP. local: {self.host.address} external port: {protocol}/{PORT}"
            for protocol in ("TCP", "UDP")
        ]

    def close(self) -> None:
        self._driver.end()
