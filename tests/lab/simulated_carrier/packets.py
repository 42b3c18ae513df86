# SPDX-License-Identifier: Apache-2.0
"""PCP requests taken apart and responses put together, octet by octet (RFC 6887 sections 7, 8 and 11.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.support.pcp_octets import (
    HEADER,
    LONGEST,
    MAP,
    PROTOCOLS,
    RESPONSE,
    SUCCESS,
    address_octets,
    address_text,
    options_in_words,
)

NONCE_LENGTHS = {1: 0, 2: 12}  # by version
MAP_DATA_BUT_NONCE = 24
RESERVED_FIELD = slice(12, 24)  # of a response header; section 7.2 says what it has when nothing was parsed


@dataclass(frozen=True, slots=True)
class MapRequest:
    """The fixed part of a MAP request; ``raw`` is all of it."""

    raw: bytes
    lifetime: int
    nonce: bytes
    protocol: int
    internal_port: int
    external_port: int
    external_address: str

    @property
    def version(self) -> int:
        return self.raw[0]

    @property
    def options(self) -> bytes:
        return self.raw[map_length(self.version) :]


def map_length(version: int) -> int:
    """Octets of a MAP message without options."""
    return HEADER + NONCE_LENGTHS[version] + MAP_DATA_BUT_NONCE


def client_address(raw: bytes) -> str:
    return address_text(raw[8:24])


def parse_map(raw: bytes) -> MapRequest:
    """A request that is at least ``map_length`` octets long."""
    start = HEADER + NONCE_LENGTHS[raw[0]]
    return MapRequest(
        raw=raw,
        lifetime=int.from_bytes(raw[4:8], "big"),
        nonce=raw[HEADER:start],
        protocol=raw[start],
        internal_port=int.from_bytes(raw[start + 4 : start + 6], "big"),
        external_port=int.from_bytes(raw[start + 6 : start + 8], "big"),
        external_address=address_text(raw[start + 8 : start + 24]),
    )


def success(version: int, opcode: int, lifetime: int, epoch: int, body: bytes = b"") -> bytes:
    """A response with result SUCCESS; ``body`` is opcode data and options."""
    return _header(version, opcode, SUCCESS, lifetime, epoch) + bytes(12) + body


def map_data(request: MapRequest, external_port: int, external_address: str) -> bytes:
    """The opcode data of a MAP response."""
    ports = request.internal_port.to_bytes(2, "big") + external_port.to_bytes(2, "big")
    return request.nonce + bytes([request.protocol, 0, 0, 0]) + ports + address_octets(external_address)


def error(raw: bytes, result: int, lifetime: int, epoch: int, *, version: int, parsed: bool = True) -> bytes:
    """The request come back with its header rewritten (section 8.2); ``parsed``: whether its form was understood."""
    copied = raw[:LONGEST].ljust(HEADER, b"\0")
    copied += bytes(-len(copied) % 4)
    reserved = bytes(12) if parsed else copied[RESERVED_FIELD]
    return _header(version, copied[1], result, lifetime, epoch) + reserved + copied[HEADER:]


def in_words(raw: bytes) -> dict[str, Any]:
    """What a test wants to read of a request; of a MAP request also its fields and options."""
    words: dict[str, Any] = {"version": raw[0], "opcode": raw[1], "raw": raw.hex()} if len(raw) > 1 else {}
    if words and raw[0] in NONCE_LENGTHS and raw[1] == MAP and len(raw) >= map_length(raw[0]):
        request = parse_map(raw)
        words |= {"client": client_address(raw), "lifetime": request.lifetime, "nonce": request.nonce.hex()}
        words |= {"protocol": PROTOCOLS.get(request.protocol, request.protocol)}
        words |= {"internal_port": request.internal_port, "external_port": request.external_port}
        words |= {"external": request.external_address, "options": options_in_words(request.options)}
    return words


def _header(version: int, opcode: int, result: int, lifetime: int, epoch: int) -> bytes:
    return bytes([version, RESPONSE | opcode, 0, result]) + lifetime.to_bytes(4, "big") + epoch.to_bytes(4, "big")
