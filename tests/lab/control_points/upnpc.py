# SPDX-License-Identifier: Apache-2.0
"""Debian's upnpc: searches for version 1, takes whatever WANIPConnection the description holds."""

from __future__ import annotations

import re

from tests.lab.clients import Upnpc
from tests.lab.control_points.program import ControlPoint
from tests.lab.namespaces import LabError
from tests.lab.topology import Lab

DESCRIPTION = re.compile(r"desc: (http://\S+)")


class UpnpcProgram(ControlPoint):
    """Searches once, to open; lists and deletes at the description that it found, which saves 2 s each."""

    name = "upnpc"
    ports = (("tcp", 8101), ("udp", 8102))

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._found = Upnpc(lab.lan)

    def open(self) -> None:
        ports = [word for protocol, port in self.ports for word in (str(port), protocol)]
        added = self._found.run("-r", *ports).stdout
        if added.count("is redirected to internal") != len(self.ports):
            raise LabError(added)
        match = DESCRIPTION.search(added)
        assert match is not None
        self._found.url = match.group(1)

    def sees(self) -> bool:
        listed = self._found.list().stdout
        return all(f"{port}->{self.host.address}:{port}" in listed for _, port in self.ports)

    def close(self) -> None:
        for protocol, port in self.ports:
            self._found.delete(port, protocol.upper())
