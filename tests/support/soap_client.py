# SPDX-License-Identifier: Apache-2.0
"""A raw SOAP client over plain sockets: every header and the exact bytes are the caller's to choose."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.sax.saxutils import escape

SERVICE_TYPE = "urn:schemas-upnp-org:service:{service}:{version}"
SOAP_ENVELOPE = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP_ENCODING = "http://schemas.xmlsoap.org/soap/encoding/"
CLOSE_BY_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Status, headers (names in lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class SoapReply:
    """HTTP status, UPnP error code (0: none) with its description, and the output arguments as text."""

    status: int
    code: int
    outputs: dict[str, str]
    error: str = ""
    http: HttpReply = field(default=HttpReply(0, {}, b""), compare=False)

    def __bool__(self) -> bool:
        return self.status == 200

    def __getitem__(self, name: str) -> str:
        return self.outputs[name]


class SoapClient:
    """One connection for each call, closed by RST so that local ports never run out.

    ``make_socket`` gives an unconnected TCP socket. ``version`` of the service types; the control URL is looked up in
    the document at ``description``.
    """

    def __init__(
        self,
        make_socket: Callable[[], socket.socket],
        address: str,
        port: int,
        *,
        version: int = 1,
        agent: str = "",
        description: str = "/rootDesc.xml",
        timeout: float = 10.0,
    ) -> None:
        self.version = version
        self.agent = agent
        self._make_socket = make_socket
        self._target = (address, port)
        self._description = description
        self._timeout = timeout
        self._control: dict[str, str] = {}

    def call(
        self, action: str, arguments: Mapping[str, object] | None = None, *, service: str = "WANIPConnection"
    ) -> SoapReply:
        """Call an action with its arguments in the order given."""
        urn = SERVICE_TYPE.format(service=service, version=self.version)
        headers = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{urn}#{action}"'}
        return self.post(self.control_path(service), headers, envelope(urn, action, arguments or {}))

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> SoapReply:
        """Post any body with any headers (Host, Content-Length and Connection are added unless given)."""
        reply = self.request("POST", path, headers, body)
        return _soap_reply(reply)

    def get(self, path: str) -> HttpReply:
        return self.request("GET", path, {}, b"")

    def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> HttpReply:
        given = {name.lower() for name in headers}
        address, port = self._target
        added = {"Host": f"[{address}]:{port}" if ":" in address else f"{address}:{port}", "Connection": "close"}
        if body or method == "POST":
            added["Content-Length"] = str(len(body))
        if self.agent:
            added["User-Agent"] = self.agent
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        lines += [f"{name}: {value}" for name, value in added.items() if name.lower() not in given]
        return parse_reply(self.send_raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body))

    def send_raw(self, data: bytes) -> bytes:
        """Send these bytes and return what comes back until the peer closes or the reply is complete."""
        with self._make_socket() as connection:
            connection.settimeout(self._timeout)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CLOSE_BY_RESET)
            connection.connect(self._target)
            connection.sendall(data)
            received = b""
            while not _is_complete(received) and (chunk := connection.recv(65536)):
                received += chunk
        return received

    def control_path(self, service: str) -> str:
        """The service's control URL, as the description says."""
        if service not in self._control:
            text = self.get(self._description).body.decode()
            pattern = rf"<serviceType>[^<]*:{service}:\d+</serviceType>.*?<controlURL>([^<]+)</controlURL>"
            match = re.search(pattern, text, re.DOTALL)
            if match is None:
                raise LookupError(f"{self._description} has no {service}:\n{text}")
            self._control[service] = match.group(1)
        return self._control[service]

    def add(
        self,
        protocol: str,
        external_port: int,
        client: str,
        port: int,
        *,
        lease: int = 0,
        remote_host: str = "",
        description: str = "test",
        enabled: str = "1",
        any_port: bool = False,
    ) -> SoapReply:
        """AddPortMapping, or AddAnyPortMapping."""
        return self.call(
            "AddAnyPortMapping" if any_port else "AddPortMapping",
            {
                "NewRemoteHost": remote_host,
                "NewExternalPort": external_port,
                "NewProtocol": protocol.upper(),
                "NewInternalPort": port,
                "NewInternalClient": client,
                "NewEnabled": enabled,
                "NewPortMappingDescription": description,
                "NewLeaseDuration": lease,
            },
        )

    def delete(self, protocol: str, external_port: int, *, remote_host: str = "") -> SoapReply:
        return self.call("DeletePortMapping", _key(protocol, external_port, remote_host))

    def entry(self, protocol: str, external_port: int, *, remote_host: str = "") -> SoapReply:
        """GetSpecificPortMappingEntry."""
        return self.call("GetSpecificPortMappingEntry", _key(protocol, external_port, remote_host))

    def entry_at(self, index: int) -> SoapReply:
        """GetGenericPortMappingEntry."""
        return self.call("GetGenericPortMappingEntry", {"NewPortMappingIndex": index})

    def external_address(self) -> SoapReply:
        return self.call("GetExternalIPAddress")


def envelope(urn: str, action: str, arguments: Mapping[str, object]) -> bytes:
    """A SOAP request body."""
    values = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in arguments.items())
    return (
        f'<?xml version="1.0"?>\r\n<s:Envelope xmlns:s="{SOAP_ENVELOPE}" s:encodingStyle="{SOAP_ENCODING}">'
        f'<s:Body><u:{action} xmlns:u="{urn}">{values}</u:{action}></s:Body></s:Envelope>\r\n'
    ).encode()


def parse_reply(data: bytes) -> HttpReply:
    """Take an HTTP response apart; ValueError when it is none."""
    head, separator, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    if not separator or not status_line.startswith("HTTP/1."):
        raise ValueError(f"not an HTTP response: {data[:200]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return HttpReply(int(status_line.split()[1]), headers, body)


def _key(protocol: str, external_port: int, remote_host: str) -> dict[str, object]:
    return {"NewRemoteHost": remote_host, "NewExternalPort": external_port, "NewProtocol": protocol.upper()}


def _is_complete(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"^content-length:\s*(\d+)", head, re.IGNORECASE | re.MULTILINE)
    return bool(separator and length and len(body) >= int(length.group(1)))


def _soap_reply(reply: HttpReply) -> SoapReply:
    outputs: dict[str, str] = {}
    code, error = 0, ""
    if reply.body.lstrip().startswith(b"<"):
        for element in ElementTree.fromstring(reply.body).iter():
            name = element.tag.rpartition("}")[2]
            if name == "errorCode":
                code = int(element.text or 0)
            elif name == "errorDescription":
                error = element.text or ""
            elif name == element.tag:  # arguments have no namespace
                outputs[name] = element.text or ""
    return SoapReply(reply.status, code, {} if code else outputs, error, reply)
