# SPDX-License-Identifier: Apache-2.0
"""A NAT-PMP server's octets: what a request asks for, or the answer that it gets at once (RFC 6886 section 3)."""

from __future__ import annotations

import enum
import struct
from ipaddress import IPv4Address

from igdpcp.model import Protocol
from igdpcp.pcp.message import MAX_LENGTH, RESPONSE_BIT, ResultCode
from igdpcp.pcp.natpmp import NATPMP_VERSION
from igdpcp.values import dataclass

_MAP_REQUEST = struct.Struct("!BB2xHHI")  # RFC 6886 section 3.3
_MAP_RESPONSE = struct.Struct("!BBHIHHI")
_ADDRESS_RESPONSE = struct.Struct("!BBHI4s")  # RFC 6886 section 3.2
_VERSION_REFUSAL = struct.Struct("!BBHI")  # RFC 6886 section 3.5
_RESULT = slice(2, 4)
_NO_ADDRESS = IPv4Address(0)


class NatpmpOpcode(enum.IntEnum):
    """RFC 6886 sections 3.2 and 3.3."""

    ADDRESS = 0
    MAP_UDP = 1
    MAP_TCP = 2


class NatpmpResult(enum.IntEnum):
    """RFC 6886 section 3.5."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    REFUSED = 2
    NETWORK_FAILURE = 3
    OUT_OF_RESOURCES = 4
    UNSUPPORTED_OPCODE = 5


_PROTOCOLS = {NatpmpOpcode.MAP_UDP: Protocol.UDP, NatpmpOpcode.MAP_TCP: Protocol.TCP}
_OPCODES = {protocol: opcode for opcode, protocol in _PROTOCOLS.items()}
_RESULTS: dict[int, int] = {
    ResultCode.SUCCESS: NatpmpResult.SUCCESS,
    ResultCode.UNSUPP_VERSION: NatpmpResult.UNSUPPORTED_VERSION,
    ResultCode.UNSUPP_OPCODE: NatpmpResult.UNSUPPORTED_OPCODE,
    ResultCode.NETWORK_FAILURE: NatpmpResult.NETWORK_FAILURE,
    ResultCode.NO_RESOURCES: NatpmpResult.OUT_OF_RESOURCES,
    ResultCode.USER_EX_QUOTA: NatpmpResult.OUT_OF_RESOURCES,
    ResultCode.CANNOT_PROVIDE_EXTERNAL: NatpmpResult.OUT_OF_RESOURCES,
}


@dataclass(frozen=True, slots=True)
class AddressAsked:
    """Which external address the router has."""


@dataclass(frozen=True, slots=True)
class PortAsked:
    """A port of the sender's to map: ``external_port`` is suggested, 0 for any; ``lifetime`` in seconds, 0 deletes.

    ``internal_port`` is 0 only in a deletion, of everything that the sender has of this protocol.
    """

    protocol: Protocol
    internal_port: int
    external_port: int
    lifetime: int


def receive(octets: bytes, epoch: int) -> AddressAsked | PortAsked | bytes | None:
    """A datagram as what it asks for, the answer to send, or None for silence. What follows a request is ignored."""
    if len(octets) < 2 or octets[1] & RESPONSE_BIT:
        return None
    version, opcode = octets[0], octets[1]
    if version != NATPMP_VERSION:
        return _VERSION_REFUSAL.pack(NATPMP_VERSION, 0, NatpmpResult.UNSUPPORTED_VERSION, epoch)
    if opcode == NatpmpOpcode.ADDRESS:
        return AddressAsked()
    if opcode not in (NatpmpOpcode.MAP_UDP, NatpmpOpcode.MAP_TCP):
        return _unsupported_opcode(octets)
    if len(octets) < _MAP_REQUEST.size:
        return None
    _, _, internal_port, external_port, lifetime = _MAP_REQUEST.unpack_from(octets)
    asked = PortAsked(_PROTOCOLS[NatpmpOpcode(opcode)], internal_port, external_port, lifetime)
    if lifetime and not internal_port:
        return refused(asked, epoch, NatpmpResult.REFUSED)
    return asked


def address(epoch: int, address: IPv4Address | None) -> bytes:
    """The external address, as an answer and to be multicast; None: a network failure, there is none."""
    result = NatpmpResult.NETWORK_FAILURE if address is None else NatpmpResult.SUCCESS
    octets = (address or _NO_ADDRESS).packed
    return _ADDRESS_RESPONSE.pack(NATPMP_VERSION, RESPONSE_BIT | NatpmpOpcode.ADDRESS, result, epoch, octets)


def granted(asked: PortAsked, epoch: int, external_port: int, lifetime: int) -> bytes:
    """The mapping is there, for ``lifetime`` seconds; port and lifetime 0 say that it was deleted."""
    return _map_response(asked, epoch, NatpmpResult.SUCCESS, external_port, lifetime)


def refused(asked: PortAsked, epoch: int, result: int) -> bytes:
    """Not mapped, or not deleted, for this reason; ``result`` is NAT-PMP's, not PCP's."""
    return _map_response(asked, epoch, result, 0, 0)


def result_of(pcp_result: int) -> int:
    """The NAT-PMP result code nearest to PCP's; REFUSED for all that NAT-PMP has no word for."""
    return _RESULTS.get(pcp_result, NatpmpResult.REFUSED)


def _map_response(asked: PortAsked, epoch: int, result: int, external_port: int, lifetime: int) -> bytes:
    return _MAP_RESPONSE.pack(
        NATPMP_VERSION, RESPONSE_BIT | _OPCODES[asked.protocol], result, epoch,
        asked.internal_port, external_port, lifetime,
    )  # fmt: skip


def _unsupported_opcode(octets: bytes) -> bytes:
    """The whole request as a response; no longer than PCP's longest, and long enough to hold the result."""
    answer = bytearray(octets[:MAX_LENGTH])
    answer[1] |= RESPONSE_BIT
    answer[_RESULT] = NatpmpResult.UNSUPPORTED_OPCODE.to_bytes(2, "big")
    return bytes(answer)
