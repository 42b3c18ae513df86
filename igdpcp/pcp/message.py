# SPDX-License-Identifier: Apache-2.0
"""PCP messages as values, and their octets (RFC 6887 sections 7, 11 and 14)."""

from __future__ import annotations

import enum
import struct

from igdpcp.errors import MalformedPcp
from igdpcp.model import IPAddress
from igdpcp.pcp.options import (
    ANY_IPV4,
    Option,
    ThirdParty,
    decode_options,
    encode_options,
    pack_address,
    unpack_address,
)
from igdpcp.values import dataclass

VERSION = 2
HEADER_LENGTH = 24  # RFC 6887 section 7
MAX_LENGTH = 1100  # RFC 6887 section 7
NONCE_LENGTH = 12  # RFC 6887 section 11.1
LIFETIME_MAX = 0xFFFFFFFF
RESPONSE_BIT = 0x80

_REQUEST_HEADER = struct.Struct("!BBxxI16s")
_RESPONSE_HEADER = struct.Struct("!BBxBII12x")
_MAP_DATA = struct.Struct("!12sB3xHH16s")
MAP_LENGTH = HEADER_LENGTH + _MAP_DATA.size


class Opcode(enum.IntEnum):
    """Those that are sent here, of RFC 6887 section 19.2."""

    ANNOUNCE = 0
    MAP = 1


class ResultCode(enum.IntEnum):
    """RFC 6887 section 7.4, RFC 7652 section 7, RFC 7843."""

    SUCCESS = 0
    UNSUPP_VERSION = 1
    NOT_AUTHORIZED = 2
    MALFORMED_REQUEST = 3
    UNSUPP_OPCODE = 4
    UNSUPP_OPTION = 5
    MALFORMED_OPTION = 6
    NETWORK_FAILURE = 7
    NO_RESOURCES = 8
    UNSUPP_PROTOCOL = 9
    USER_EX_QUOTA = 10
    CANNOT_PROVIDE_EXTERNAL = 11
    ADDRESS_MISMATCH = 12
    EXCESSIVE_REMOTE_PEERS = 13
    INITIATION = 14
    AUTHENTICATION_REQUIRED = 15
    AUTHENTICATION_FAILED = 16
    AUTHENTICATION_SUCCEEDED = 17
    AUTHORIZATION_FAILED = 18
    SESSION_TERMINATED = 19
    UNKNOWN_SESSION_ID = 20
    DOWNGRADE_ATTACK_DETECTED = 21
    AUTHENTICATION_REQUEST = 22
    AUTHENTICATION_REPLY = 23
    THIRD_PARTY_ID_UNKNOWN = 24
    THIRD_PARTY_MISSING_OPTION = 25
    UNSUPP_THIRD_PARTY_ID_LENGTH = 26


@dataclass(frozen=True, slots=True)
class MapRequest:
    """MAP request; ``lifetime`` 0 deletes (RFC 6887 sections 11.1 and 15.1)."""

    client_address: IPAddress
    nonce: bytes
    protocol: int
    internal_port: int
    lifetime: int
    external_port: int = 0
    external_address: IPAddress = ANY_IPV4
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class MapResponse:
    """MAP response; on an error port, address and options are the request's (RFC 6887 section 11.1)."""

    result: int
    lifetime: int
    epoch: int
    nonce: bytes
    protocol: int
    internal_port: int
    external_port: int
    external_address: IPAddress
    options: tuple[Option, ...] = ()

    @property
    def third_party(self) -> IPAddress | None:
        """The host that THIRD_PARTY names, if the option is there."""
        return next((option.address for option in self.options if isinstance(option, ThirdParty)), None)


@dataclass(frozen=True, slots=True)
class AnnounceRequest:
    """ANNOUNCE request (RFC 6887 section 14.1)."""

    client_address: IPAddress
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class AnnounceResponse:
    """ANNOUNCE response, solicited or not."""

    result: int
    epoch: int
    lifetime: int = 0
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class OtherResponse:
    """A response of which only the header can be used: another version or opcode, or an error without its data."""

    version: int
    opcode: int
    result: int
    lifetime: int
    epoch: int


Request = MapRequest | AnnounceRequest
Response = MapResponse | AnnounceResponse | OtherResponse


def encode(message: Request | MapResponse | AnnounceResponse) -> bytes:
    """The octets of a message. Raises ValueError when they would exceed MAX_LENGTH."""
    match message:
        case MapRequest():
            head = _REQUEST_HEADER.pack(VERSION, Opcode.MAP, message.lifetime, pack_address(message.client_address))
        case AnnounceRequest():
            head = _REQUEST_HEADER.pack(VERSION, Opcode.ANNOUNCE, 0, pack_address(message.client_address))
        case MapResponse():
            head = _response_header(Opcode.MAP, message)
        case AnnounceResponse():
            head = _response_header(Opcode.ANNOUNCE, message)
    octets = head + _map_data(message) + encode_options(message.options)
    if len(octets) > MAX_LENGTH:
        raise ValueError(f"{len(octets)} octets are more than a PCP message may have")
    return octets


def decode_request(octets: bytes) -> Request:
    """A version 2 MAP or ANNOUNCE request. Raises MalformedPcp for anything else."""
    _check_length(octets)
    version, opcode, lifetime, client = _REQUEST_HEADER.unpack_from(octets)
    if version != VERSION:
        raise MalformedPcp(f"version {version}")
    client_address = unpack_address(client)
    if opcode == Opcode.ANNOUNCE:
        return AnnounceRequest(client_address, decode_options(octets[HEADER_LENGTH:]))
    if opcode != Opcode.MAP:
        raise MalformedPcp(f"not a MAP or ANNOUNCE request: {opcode}")
    if len(octets) < MAP_LENGTH:
        raise MalformedPcp("MAP cut short")
    nonce, protocol, internal_port, external_port, external = _MAP_DATA.unpack_from(octets, HEADER_LENGTH)
    options = decode_options(octets[MAP_LENGTH:])
    return MapRequest(
        client_address, nonce, protocol, internal_port, lifetime, external_port, unpack_address(external), options
    )


def decode_response(octets: bytes) -> Response:
    """Any PCP response (RFC 6887 section 8.3). Raises MalformedPcp for what must be dropped."""
    _check_length(octets)
    version, opcode, result, lifetime, epoch = _RESPONSE_HEADER.unpack_from(octets)
    if not opcode & RESPONSE_BIT:
        raise MalformedPcp("a request, not a response")
    opcode &= ~RESPONSE_BIT
    if version != VERSION and result != ResultCode.UNSUPP_VERSION:
        raise MalformedPcp(f"version {version}")
    if version == VERSION and opcode == Opcode.ANNOUNCE:
        return AnnounceResponse(_result(result), epoch, lifetime, decode_options(octets[HEADER_LENGTH:]))
    if version == VERSION and opcode == Opcode.MAP and len(octets) >= MAP_LENGTH:
        nonce, protocol, internal_port, external_port, external = _MAP_DATA.unpack_from(octets, HEADER_LENGTH)
        return MapResponse(
            _result(result), lifetime, epoch, nonce, protocol, internal_port, external_port,
            unpack_address(external), decode_options(octets[MAP_LENGTH:]),
        )  # fmt: skip
    return OtherResponse(version, opcode, _result(result), lifetime, epoch)


def result_name(result: int) -> str:
    """The name that the standard gives a result code, or its number."""
    known = _result(result)
    return known.name if isinstance(known, ResultCode) else str(result)


def _result(code: int) -> int:
    try:
        return ResultCode(code)
    except ValueError:
        return code


def _response_header(opcode: Opcode, message: MapResponse | AnnounceResponse) -> bytes:
    return _RESPONSE_HEADER.pack(VERSION, RESPONSE_BIT | opcode, message.result, message.lifetime, message.epoch)


def _map_data(message: Request | MapResponse | AnnounceResponse) -> bytes:
    if isinstance(message, AnnounceRequest | AnnounceResponse):
        return b""
    external = pack_address(message.external_address)
    return _MAP_DATA.pack(
        message.nonce, message.protocol, message.internal_port, message.external_port, external
    )  # fmt: skip


def _check_length(octets: bytes) -> None:
    if not HEADER_LENGTH <= len(octets) <= MAX_LENGTH or len(octets) % 4:
        raise MalformedPcp(f"{len(octets)} octets")
