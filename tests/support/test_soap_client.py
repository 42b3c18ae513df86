# SPDX-License-Identifier: Apache-2.0
"""The raw SOAP client sends exactly what it was told, and reads what comes back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.soap_client import SoapClient, parse_reply

FAULT = b"""HTTP/1.1 500 Internal Server Error\r
content-length: 304\r
\r
<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault>
<detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>718</errorCode>
<errorDescription>ConflictInMappingEntry</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"""


@pytest.fixture
def answered() -> Iterator[tuple[SoapClient, list[bytes]]]:
    """A client, and what it sends to a server that always answers FAULT."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                data = b""
                while b"</s:Envelope>" not in data:
                    data += connection.recv(4096)
                received.append(data)
                connection.sendall(FAULT)

        thread = threading.Thread(target=serve)
        thread.start()
        client = SoapClient(lambda: socket.socket(socket.AF_INET), *server.getsockname(), version=2, agent="Console/1")
        client.control_path = lambda service: f"/control/{service}"  # type: ignore[method-assign]
        yield client, received
        thread.join()


def test_the_soap_client_sends_what_it_was_told_and_reads_faults(answered: tuple[SoapClient, list[bytes]]) -> None:
    client, received = answered
    reply = client.add("tcp", 8080, "192.168.1.50", 80, description="a<b")
    assert (reply.status, reply.code, reply.error) == (500, 718, "ConflictInMappingEntry")
    assert not reply
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /control/WANIPConnection HTTP/1.1\r\n")
    assert b'SOAPAction: "urn:schemas-upnp-org:service:WANIPConnection:2#AddPortMapping"' in head
    assert b"User-Agent: Console/1" in head
    assert b"<NewPortMappingDescription>a&lt;b</NewPortMappingDescription>" in body


def test_what_is_no_http_response_is_not_taken_for_one() -> None:
    with pytest.raises(ValueError, match="not an HTTP response"):
        parse_reply(b"SSH-2.0-OpenSSH\r\n\r\n")
