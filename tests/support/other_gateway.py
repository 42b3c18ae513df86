# SPDX-License-Identifier: Apache-2.0
"""A gateway that only says it is one: announces itself once, answers every search, serves a short description."""

from __future__ import annotations

import socket
import sys
import threading

GROUP, PORT = "239.255.255.250", 1900
HTTP_PORT = 5000
GATEWAY = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
DESCRIPTION = f"<root><device><deviceType>{GATEWAY}</deviceType></device></root>"
USN = f"uuid:0b5ca0f2-6b59-4b41-9f9f-3c2f1d0c7e11::{GATEWAY}"


def message(start: str, address: str, **fields: str) -> bytes:
    common = {
        "CACHE-CONTROL": "max-age=1800",
        "LOCATION": f"http://{address}:{HTTP_PORT}/root.xml",
        "SERVER": "Test/1 UPnP/1.1 other/1",
        "USN": USN,
    }
    lines = [start, *(f"{name.replace('_', '-')}: {value}" for name, value in {**common, **fields}.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def describe(web: socket.socket) -> None:
    """Answer whatever is asked for at ``web`` with the description."""
    while True:
        connection, _ = web.accept()
        with connection:
            connection.recv(2048)
            connection.sendall(f"HTTP/1.0 200 OK\r\n\r\n{DESCRIPTION}".encode())


def main(address: str) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", PORT))
    membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    web = socket.create_server((address, HTTP_PORT))
    threading.Thread(target=describe, args=[web], daemon=True).start()  # igdpcp believes only in what it can read
    alive = message("NOTIFY * HTTP/1.1", address, HOST=f"{GROUP}:{PORT}", NT=GATEWAY, NTS="ssdp:alive")
    sock.sendto(alive, (GROUP, PORT))
    print("ready", flush=True)
    while True:
        data, source = sock.recvfrom(2048)
        if data.startswith(b"M-SEARCH") and b"InternetGatewayDevice:1" in data:
            sock.sendto(message("HTTP/1.1 200 OK", address, EXT="", ST=GATEWAY), source)


if __name__ == "__main__":
    main(sys.argv[1])
