# SPDX-License-Identifier: Apache-2.0
"""Nicotine+: searches for version 2 first and prefers WANIPConnection:2; its XML parser forgives nothing."""

from __future__ import annotations

from typing import ClassVar

from tests.lab.control_points.program import OUR_PYTHON, PYTHON_PROGRAMS, ControlPoint, Driver
from tests.lab.topology import Lab

PORT = 2234


class Nicotine(ControlPoint):
    """It has no way to list; what it sees is that it mapped by UPnP. It tries NAT-PMP first, and stays with that."""

    name = "nicotine"
    ports = (("tcp", PORT),)
    options: ClassVar[dict[str, str]] = {"natpmp_server": "0"}

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        environment = {**self.environment, "PYTHONPATH": str(PYTHON_PROGRAMS)}
        self._driver = Driver(self.host, OUR_PYTHON, "nicotine.py", environment)
        self.protocol = ""

    def open(self) -> None:
        self.protocol = self._driver.ask("add", port=PORT, address=self.host.address)

    def sees(self) -> bool:
        return bool(self.protocol == "UPnP")

    def close(self) -> None:
        self._driver.ask("remove")
