# SPDX-License-Identifier: Apache-2.0
"""What a PCP and NAT-PMP host of a LAN sends and reads, octet by octet: not by the daemon's own coding."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

TCP, UDP = 6, 17
NATPMP_TCP, NATPMP_UDP = 2, 1
PREFER_FAILURE = bytes.fromhex("02000000")
ANY = "0.0.0.0"


def ipv4_mapped(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + IPv4Address(address).packed


def announce(source: str) -> bytes:
    """RFC 6887 section 14.1."""
    return struct.pack("!BBHI", 2, 0, 0, 0) + ipv4_mapped(source)


def map_request(
    source: str,
    port: int,
    *,
    protocol: int = TCP,
    lifetime: int = 3600,
    nonce: bytes = b"nonce of LAN",
    suggested: int = 0,
    address: str = ANY,
    options: bytes = b"",
) -> bytes:
    """RFC 6887 section 11.1; lifetime 0 deletes."""
    data = nonce + struct.pack("!BxxxHH", protocol, port, suggested) + ipv4_mapped(address)
    return struct.pack("!BBHI", 2, 1, 0, lifetime) + ipv4_mapped(source) + data + options


def natpmp_map(port: int, *, opcode: int = NATPMP_TCP, lifetime: int = 3600, suggested: int = 0) -> bytes:
    """RFC 6886 section 3.3; lifetime 0 deletes."""
    return struct.pack("!BBHHHI", 0, opcode, 0, port, suggested, lifetime)


NATPMP_ADDRESS = b"\0\0"


@dataclass(frozen=True)
class MapAnswer:
    """A MAP response of PCP."""

    result: int
    lifetime: int
    epoch: int
    nonce: bytes
    protocol: int
    port: int
    external_port: int
    external: str


def read_map(octets: bytes) -> MapAnswer:
    version, opcode, result, lifetime, epoch = struct.unpack_from("!BBxBII", octets)
    assert (version, opcode) == (2, 0x81)
    nonce, protocol, port, external_port, external = struct.unpack_from("!12sBxxxHH16s", octets, 24)
    assert external[:12] == ipv4_mapped(ANY)[:12]
    return MapAnswer(result, lifetime, epoch, nonce, protocol, port, external_port, str(IPv4Address(external[12:])))


@dataclass(frozen=True)
class PortAnswer:
    """A mapping response of NAT-PMP."""

    opcode: int
    result: int
    epoch: int
    port: int
    external_port: int
    lifetime: int


def read_port(octets: bytes) -> PortAnswer:
    version, opcode, *fields = struct.unpack("!BBHIHHI", octets)
    assert version == 0
    return PortAnswer(opcode - 128, *fields)


def read_address(octets: bytes) -> tuple[int, int, str]:
    """Result, epoch and address of NAT-PMP's."""
    version, opcode, result, epoch, address = struct.unpack("!BBHI4s", octets)
    assert (version, opcode) == (0, 128)
    return result, epoch, str(IPv4Address(address))


def read_announce(octets: bytes) -> int:
    """The epoch in a successful ANNOUNCE response of PCP."""
    assert len(octets) == 24
    version, opcode, result, _, epoch = struct.unpack_from("!BBxBII", octets)
    assert (version, opcode, result) == (2, 0x80, 0)
    return int(epoch)
