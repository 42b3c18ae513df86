# SPDX-License-Identifier: Apache-2.0
"""gupnp-igd through GObject introspection, as Pidgin and libnice use it: searches for WANIPConnection:1, subscribes."""

from __future__ import annotations

from tests.lab.control_points.program import DEBIAN_PYTHON, ControlPoint, Driver
from tests.lab.topology import EXTERNAL_ADDRESS, Lab

PORT = 40000


class GupnpIgd(ControlPoint):
    """It has no way to list; what it sees is the signal with the external address and port."""

    name = "gupnp-igd"
    ports = (("udp", PORT),)

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        # Without its memory of settings it would look for a session bus.
        environment = {**self.environment, "GSETTINGS_BACKEND": "memory", "GIO_USE_VFS": "local"}
        self._driver = Driver(self.host, DEBIAN_PYTHON, "gupnp_igd.py", environment)
        self._reports: list[list[object]] = []

    def open(self) -> None:
        self._reports = self._driver.ask("add", protocol="UDP", port=PORT, address=self.host.address)

    def sees(self) -> bool:
        return self._reports == [["UDP", EXTERNAL_ADDRESS, PORT, self.host.address]]

    def close(self) -> None:
        self._driver.ask("remove", protocol="UDP", port=PORT)
