# SPDX-License-Identifier: Apache-2.0
"""upnp-client, the command of Home Assistant's UPnP library: searches for version 2, and obeys the SCPDs."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.control_points.program import OUR_PYTHON, PYTHON_PROGRAMS, ControlPoint
from tests.lab.topology import Lab

TARGET = "urn:schemas-upnp-org:device:InternetGatewayDevice:2"
MAPPING = {
    "NewRemoteHost": "",
    "NewExternalPort": 8301,
    "NewProtocol": "TCP",
    "NewInternalPort": 8301,
    "NewEnabled": 1,
    "NewPortMappingDescription": "upnp-client",
    "NewLeaseDuration": 600,
}
KEY = ("NewRemoteHost", "NewExternalPort", "NewProtocol")


class UpnpClient(ControlPoint):
    """Fetches all descriptions anew for each action, and refuses what does not match them."""

    name = "upnp-client"
    ports = (("tcp", 8301),)

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._location = ""

    def open(self) -> None:
        found = self._run("--timeout", "1", "search", "--search_target", TARGET)
        self._location = found["location"]
        self._call("AddPortMapping", {**MAPPING, "NewInternalClient": self.host.address})

    def sees(self) -> bool:
        key = {name: MAPPING[name] for name in KEY}
        entry = self._call("GetSpecificPortMappingEntry", key)["out_parameters"]
        return (entry["NewInternalClient"], entry["NewInternalPort"]) == (self.host.address, 8301)

    def close(self) -> None:
        self._call("DeletePortMapping", {name: MAPPING[name] for name in KEY})

    def _call(self, action: str, arguments: dict[str, Any]) -> dict[str, Any]:
        words = [f"{name}={value}" for name, value in arguments.items()]
        return self._run("--strict", "call-action", self._location, f"WANIPC/{action}", *words)

    def _run(self, *arguments: str) -> dict[str, Any]:
        argv = [OUR_PYTHON, "-m", "async_upnp_client.cli", *arguments]
        done = self.host.run(argv, env={**self.environment, "PYTHONPATH": str(PYTHON_PROGRAMS)})
        return dict(json.loads(done.stdout.splitlines()[0]))
