# SPDX-License-Identifier: Apache-2.0
"""A PCP server's octets: what a request asks for, or the answer that it gets at once (RFC 6887 sections 7 to 15).

It serves MAP for the sender's own IPv4 ports of TCP and UDP, and ANNOUNCE. Who may have which port, and for how long,
is not decided here.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from igdpcp.errors import MalformedPcp
from igdpcp.model import Endpoint, IPAddress, Protocol
from igdpcp.pcp.message import (
    HEADER_LENGTH,
    MAP_LENGTH,
    MAX_LENGTH,
    RESPONSE_BIT,
    VERSION,
    AnnounceRequest,
    AnnounceResponse,
    MapRequest,
    MapResponse,
    Opcode,
    Request,
    ResultCode,
    decode_request,
    encode,
)
from igdpcp.pcp.options import (
    CLEAR_PREFIX,
    HOST_PREFIX,
    Description,
    Filter,
    Option,
    OptionCode,
    PreferFailure,
    ThirdParty,
    describe,
    pack_address,
)
from igdpcp.values import dataclass

ERROR_LIFETIME = 1800  # RFC 6887 section 7.4: "long", for what the same request will meet again
OPTIONAL_OPTIONS = 128  # RFC 6887 section 7.3: from here on an option may be ignored

_IPV4_PREFIX = 96  # RFC 6887 section 13.3
_CLIENT_TAIL = slice(12, 24)  # last 96 bits of the client's address in a request, reserved bits of a response
_SERVED = (Opcode.ANNOUNCE, Opcode.MAP)
_ONCE = frozenset({OptionCode.THIRD_PARTY, OptionCode.PREFER_FAILURE, OptionCode.DESCRIPTION})


@dataclass(frozen=True, slots=True)
class MapAsked:
    """A MAP request that may be granted; lifetime 0 deletes. ``octets``: as it came.

    ``description`` is what DESCRIPTION says, as it is to be stored: printable, of at most 128 octets.
    """

    request: MapRequest
    prefer_failure: bool
    description: str
    octets: bytes

    @property
    def only_address(self) -> IPv4Address | None:
        """The external address without which PREFER_FAILURE wants nothing (RFC 6887 section 13.2); None: any."""
        address = self.request.external_address
        return address if self.prefer_failure and isinstance(address, IPv4Address) and int(address) else None


def receive(octets: bytes, source: IPv4Address, epoch: int) -> MapAsked | bytes | None:
    """What came from ``source``: a mapping asked for, the answer to send, or None for silence (RFC 6887 section 8.2).

    Version 0 is answered as any other that is not ours: where NAT-PMP is served, it is not for this function.
    """
    if len(octets) < 2 or octets[1] & RESPONSE_BIT:
        return None
    if octets[0] != VERSION:
        return _error(octets, epoch, ResultCode.UNSUPP_VERSION, parsed=False)
    if len(octets) < HEADER_LENGTH:
        return None
    opcode = octets[1]
    if len(octets) > MAX_LENGTH or len(octets) % 4 or (opcode == Opcode.MAP and len(octets) < MAP_LENGTH):
        return _error(octets, epoch, ResultCode.MALFORMED_REQUEST, parsed=False)
    if octets[8:HEADER_LENGTH] != pack_address(source):
        return _error(octets, epoch, ResultCode.ADDRESS_MISMATCH)
    if opcode not in _SERVED:
        return _error(octets, epoch, ResultCode.UNSUPP_OPCODE)
    try:
        request = decode_request(octets)
    except MalformedPcp:  # by now only an option can be
        return _error(octets, epoch, ResultCode.MALFORMED_OPTION, parsed=False)
    fault = _option_fault(request) or _map_fault(request)
    if fault:
        return _error(octets, epoch, fault)
    if isinstance(request, AnnounceRequest):
        return announcement(epoch)
    prefer_failure = any(isinstance(option, PreferFailure) for option in request.options)
    return MapAsked(request, prefer_failure, _description(request.options), octets)


def granted(asked: MapAsked, epoch: int, lifetime: int, external: Endpoint) -> bytes:
    """The mapping is there, at ``external`` for ``lifetime`` seconds; with the options that were processed."""
    options: list[Option] = []
    for option in asked.request.options:
        if isinstance(option, PreferFailure):
            options.append(option)
        elif isinstance(option, Description):
            options.append(Description(asked.description))
    return _success(asked.request, epoch, lifetime, external.port, external.address, tuple(options))


def deleted(asked: MapAsked, epoch: int) -> bytes:
    """The mapping is not there any more, or never was; the suggestion comes back (RFC 6887 section 15.1)."""
    request = asked.request
    return _success(request, epoch, 0, request.external_port, request.external_address)


def refused(asked: MapAsked, epoch: int, result: int, lifetime: int) -> bytes:
    """No mapping, for this result code, which would be the same for ``lifetime`` seconds; the request comes back."""
    return _error(asked.octets, epoch, result, lifetime)


def announcement(epoch: int) -> bytes:
    """ANNOUNCE as an answer, and unsolicited to all clients (RFC 6887 section 14.1)."""
    return encode(AnnounceResponse(ResultCode.SUCCESS, epoch))


def _success(
    request: MapRequest, epoch: int, lifetime: int, port: int, address: IPAddress, options: tuple[Option, ...] = ()
) -> bytes:
    response = MapResponse(
        ResultCode.SUCCESS, lifetime, epoch, request.nonce, request.protocol, request.internal_port,
        port, address, options,
    )  # fmt: skip
    return encode(response)


def _option_fault(request: Request) -> int:
    """The result code that the options earn (RFC 6887 sections 7.3 and 13), 0 when they can be served."""
    codes = [option.code for option in request.options]
    if any(codes.count(code) > 1 for code in _ONCE):
        return ResultCode.MALFORMED_OPTION
    for option in request.options:
        fault = _fault_of(option, request)
        if fault:
            return fault
    return ResultCode.SUCCESS


def _fault_of(option: Option, request: Request) -> int:
    if option.code >= OPTIONAL_OPTIONS:
        return ResultCode.SUCCESS
    if isinstance(request, MapRequest):
        match option:
            case ThirdParty(address) if address == request.client_address:
                return ResultCode.MALFORMED_REQUEST  # RFC 6887 section 13.1
            case PreferFailure():
                return _preference_fault(request)
            case Filter() if not request.lifetime or not _is_prefix(option):
                return ResultCode.MALFORMED_OPTION
    return ResultCode.UNSUPP_OPTION


def _preference_fault(request: MapRequest) -> int:
    if not request.lifetime or not request.external_port:
        return ResultCode.MALFORMED_OPTION  # RFC 6887 section 13.2
    if request.external_address.version == 6 and int(request.external_address):
        return ResultCode.CANNOT_PROVIDE_EXTERNAL
    return ResultCode.SUCCESS


def _is_prefix(option: Filter) -> bool:
    """Whether the length is one of the address's family, or removes filters (RFC 6887 section 13.3)."""
    shortest = _IPV4_PREFIX if option.address.version == 4 else 0
    return option.prefix_length == CLEAR_PREFIX or shortest <= option.prefix_length <= HOST_PREFIX


def _map_fault(request: Request) -> int:
    """The result code for ports and protocols that cannot be mapped, deletions included (RFC 6887 section 11.3)."""
    if isinstance(request, AnnounceRequest):
        return ResultCode.SUCCESS
    if not request.protocol and request.internal_port:
        return ResultCode.MALFORMED_REQUEST
    if request.protocol not in (Protocol.TCP, Protocol.UDP) or not request.internal_port:
        return ResultCode.UNSUPP_PROTOCOL  # all ports of a host, or all protocols, are never given
    return ResultCode.SUCCESS


def _description(options: tuple[Option, ...]) -> str:
    text = next((option.text for option in options if isinstance(option, Description)), "")
    return describe("".join(filter(str.isprintable, text))).text


def _error(octets: bytes, epoch: int, result: int, lifetime: int = ERROR_LIFETIME, parsed: bool = True) -> bytes:
    """The request as it came, at least a header and at most MAX_LENGTH octets, with a response's header.

    What could not be parsed has the end of the client's address in the reserved bits (RFC 6887 section 7.2).
    """
    payload = octets[:MAX_LENGTH]
    payload += bytes(max(HEADER_LENGTH - len(payload), -len(payload) % 4))
    reserved = bytes(12) if parsed else payload[_CLIENT_TAIL]
    head = bytes([VERSION, octets[1] | RESPONSE_BIT, 0, result]) + lifetime.to_bytes(4, "big")
    return head + epoch.to_bytes(4, "big") + reserved + payload[HEADER_LENGTH:]
