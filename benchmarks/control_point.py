# SPDX-License-Identifier: Apache-2.0
"""What the LAN host asks of the gateway in its lab: SOAP requests about mappings, one at a time or many at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks import client
from tests.lab.clients import HTTP_PORT, soap_client
from tests.lab.topology import LAN_ADDRESS, ROUTER_LAN_ADDRESS, Lab
from tests.support.soap_client import SERVICE_TYPE, envelope

TARGET = (ROUTER_LAN_ADDRESS, HTTP_PORT)


@dataclass(frozen=True, slots=True)
class Entry:
    """A mapping to the LAN host; ``port`` is the external and the internal one."""

    port: int
    protocol: str = "UDP"

    def key(self) -> dict[str, object]:
        return {"NewRemoteHost": "", "NewExternalPort": self.port, "NewProtocol": self.protocol}


class ControlPoint:
    """Make it when the gateway runs. Requests are bytes; times are seconds."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._control = (*TARGET, soap_client(lab.lan).control_path("WANIPConnection"))

    def request(self, action: str, version: int = 1, /, **arguments: object) -> bytes:
        urn = SERVICE_TYPE.format(service="WANIPConnection", version=version)
        return client.post(self._control, action, urn, envelope(urn, action, arguments))

    def add(self, entry: Entry) -> bytes:
        return self.request(
            "AddPortMapping",
            **entry.key(),
            NewInternalPort=entry.port,
            NewInternalClient=LAN_ADDRESS,
            NewEnabled=1,
            NewPortMappingDescription="benchmark",
            NewLeaseDuration=0,
        )

    def delete(self, entry: Entry) -> bytes:
        return self.request("DeletePortMapping", **entry.key())

    def specific(self, entry: Entry) -> bytes:
        return self.request("GetSpecificPortMappingEntry", **entry.key())

    def ask(self, requests: Iterable[bytes]) -> list[float]:
        """One after another; what each took."""
        made = list(requests)
        return self._lab.lan.inside(lambda: [client.latency(TARGET, request) for request in made])
