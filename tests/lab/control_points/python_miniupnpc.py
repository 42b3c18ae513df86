# SPDX-License-Identifier: Apache-2.0
"""python3-miniupnpc: the library of upnpc and Transmission with all that its Python module offers."""

from __future__ import annotations

from tests.lab.control_points.program import DEBIAN_PYTHON, ControlPoint, Driver
from tests.lab.namespaces import LabError
from tests.lab.topology import EXTERNAL_ADDRESS, Lab


class PythonMiniupnpc(ControlPoint):
    """Finds its ports both by their key and in the whole list."""

    name = "python3-miniupnpc"
    ports = (("tcp", 8201), ("udp", 8201))

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._driver = Driver(self.host, DEBIAN_PYTHON, "python_miniupnpc.py", self.environment)

    def open(self) -> None:
        address = self._driver.ask("find")
        if address != EXTERNAL_ADDRESS:
            raise LabError(f"the external address is {address!r}")
        for protocol, port in self.ports:
            self._driver.ask("add", protocol=protocol.upper(), port=port)

    def sees(self) -> bool:
        own = [self.host.address, 8201, "python3-miniupnpc", True, 0]
        keyed = [self._driver.ask("entry", protocol=protocol.upper(), port=port) for protocol, port in self.ports]
        return keyed == [own, own] and len(self._driver.ask("entries")) == len(self.ports)

    def close(self) -> None:
        for protocol, port in self.ports:
            self._driver.ask("delete", protocol=protocol.upper(), port=port)
