# SPDX-License-Identifier: Apache-2.0
"""Control points on the lab's LAN: Debian's upnpc, and the raw SOAP client at a host's own socket."""

from __future__ import annotations

import socket
from subprocess import CompletedProcess

from tests.lab import topology
from tests.lab.namespaces import Host
from tests.support.soap_client import SoapClient

HTTP_PORT = 5000
ROOT_DESCRIPTION = "/rootDesc.xml"


class Upnpc:
    """Debian's upnpc on a LAN host; ``url`` spares it the search for the router."""

    def __init__(self, host: Host, url: str = "") -> None:
        self.host = host
        self.url = url

    def command(self, *arguments: str) -> list[str]:
        return ["upnpc", *(["-u", self.url] if self.url else []), *arguments]

    def run(self, *arguments: str, check: bool = False) -> CompletedProcess[str]:
        return self.host.run(self.command(*arguments), check=check)

    def add(self, port: int, external_port: int, protocol: str, lease: int = 0) -> CompletedProcess[str]:
        """AddPortMapping for the host itself."""
        return self.run("-a", self.host.address, str(port), str(external_port), protocol, str(lease))

    def add_any(self, port: int, external_port: int, protocol: str, lease: int = 0) -> CompletedProcess[str]:
        """AddAnyPortMapping for the host itself."""
        return self.run("-n", self.host.address, str(port), str(external_port), protocol, str(lease))

    def delete(self, external_port: int, protocol: str) -> CompletedProcess[str]:
        return self.run("-d", str(external_port), protocol)

    def list(self) -> CompletedProcess[str]:
        """The status, and every mapping by GetGenericPortMappingEntry."""
        return self.run("-l")


def soap_client(
    host: Host, *, version: int = 1, agent: str = "", port: int = HTTP_PORT, description: str = ROOT_DESCRIPTION
) -> SoapClient:
    """A SOAP client whose connections come from ``host`` and go to the router's LAN address."""
    return SoapClient(
        lambda: host.socket(socket.SOCK_STREAM),
        topology.ROUTER_LAN_ADDRESS,
        port,
        version=version,
        agent=agent,
        description=description,
    )
