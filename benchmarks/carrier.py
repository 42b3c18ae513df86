# SPDX-License-Identifier: Apache-2.0
"""An upstream that costs next to nothing: a PCP server that grants whatever it is asked and keeps no state."""

from __future__ import annotations

import socket
import sys
import time

PCP_PORT = 5351  # RFC 6887 section 19
VERSION, RESPONSE, ANNOUNCE, MAP = 2, 0x80, 0, 1
HEADER, MAP_DATA = 24, 36  # octets, RFC 6887 sections 7.1 and 11.1
UNSUPP_OPCODE = 4
LONGEST = 1100
LIFETIME_MAX = 0xFFFFFFFF
V4_MAPPED = bytes(10) + b"\xff\xff"


def answer(request: bytes, external: bytes, epoch: int, longest: int) -> bytes:
    """The response: every MAP is granted with the suggested external port, or else the internal one."""
    opcode = request[1]
    granted = opcode in (ANNOUNCE, MAP)
    head = bytes([VERSION, RESPONSE | opcode, 0, 0 if granted else UNSUPP_OPCODE])
    lifetime = min(int.from_bytes(request[4:8], "big"), longest)
    head += lifetime.to_bytes(4, "big") + epoch.to_bytes(4, "big") + bytes(12)
    if opcode != MAP:
        return head
    port = request[42:44] if any(request[42:44]) else request[40:42]
    return head + request[24:42] + port + V4_MAPPED + external + request[HEADER + MAP_DATA :]


def main() -> None:
    address, external, *rest = sys.argv[1:]
    longest = int(rest[0]) if rest else LIFETIME_MAX
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, PCP_PORT))
        print("ready", flush=True)
        while True:
            request, source = sock.recvfrom(LONGEST)
            if len(request) >= HEADER:
                sock.sendto(answer(request, socket.inet_aton(external), int(time.monotonic() - began), longest), source)


if __name__ == "__main__":
    main()
