# SPDX-License-Identifier: Apache-2.0
"""PCP options: those of the interworking function as values, all others as they came (RFC 6887 section 7.3)."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from igdpcp.errors import MalformedPcp
from igdpcp.model import IPAddress
from igdpcp.values import dataclass

ANY_IPV4 = IPv4Address(0)  # "no preference", IPv4 wanted (RFC 6887 section 5)
ANY_IPV6 = IPv6Address(0)

DESCRIPTION_LIMIT = 128  # RFC 7220 section 3.1: what every server should be able to store
HOST_PREFIX = 128  # RFC 6887 section 13.3: IPv4 prefixes count from 96
CLEAR_PREFIX = 0  # RFC 6887 section 13.3: "remove all filters"

_ADDRESS_LENGTH = 16
_IPV4_MAPPED = bytes(10) + b"\xff\xff"
_HEADER = struct.Struct("!BxH")
_FILTER = struct.Struct("!xBH16s")


class OptionCode(enum.IntEnum):
    """Option codes that this program knows."""

    THIRD_PARTY = 1
    PREFER_FAILURE = 2
    FILTER = 3
    DESCRIPTION = 128


def pack_address(address: IPAddress) -> bytes:
    """16 octets; IPv4 as IPv4-mapped (RFC 6887 section 5)."""
    return _IPV4_MAPPED + address.packed if address.version == 4 else address.packed


@lru_cache(maxsize=64)  # the few addresses that a carrier gives are in every answer, and kept with every grant
def unpack_address(octets: bytes) -> IPAddress:
    """The address in 16 octets; all twelve leading ones decide whether it is IPv4."""
    if octets[:12] == _IPV4_MAPPED:
        return IPv4Address(octets[12:])
    return IPv6Address(octets)


@dataclass(frozen=True, slots=True)
class ThirdParty:
    """THIRD_PARTY (RFC 6887 section 13.1): the mapping is for this host, not for the sender."""

    address: IPAddress
    code = OptionCode.THIRD_PARTY


@dataclass(frozen=True, slots=True)
class PreferFailure:
    """PREFER_FAILURE (RFC 6887 section 13.2): the suggested address and port, or nothing."""

    code = OptionCode.PREFER_FAILURE


@dataclass(frozen=True, slots=True)
class Filter:
    """FILTER (RFC 6887 section 13.3): adds an allowed remote peer; prefix length 0 removes all filters."""

    prefix_length: int
    address: IPAddress
    port: int = 0
    code = OptionCode.FILTER


@dataclass(frozen=True, slots=True)
class Description:
    """DESCRIPTION (RFC 7220)."""

    text: str
    code = OptionCode.DESCRIPTION


@dataclass(frozen=True, slots=True)
class Unknown:
    """An option that is not interpreted."""

    code: int
    data: bytes = b""


Option = ThirdParty | PreferFailure | Filter | Description | Unknown


def describe(text: str) -> Description:
    """A description of at most DESCRIPTION_LIMIT octets, cut between characters."""
    octets = text.encode("utf-8", "replace")[:DESCRIPTION_LIMIT]
    return Description(octets.decode("utf-8", "ignore"))


def filters_for(hosts: Iterable[IPv4Address]) -> tuple[Filter, ...]:
    """Replace whatever filters a mapping has by these hosts, any port: the clearing one, then one each."""
    return (Filter(CLEAR_PREFIX, ANY_IPV4), *(Filter(HOST_PREFIX, host) for host in hosts))


def encode_options(options: Iterable[Option]) -> bytes:
    """The options one after the other, each padded to a multiple of four octets."""
    parts = []
    for option in options:
        data = _data(option)
        parts.append(_HEADER.pack(option.code, len(data)) + data + bytes(-len(data) % 4))
    return b"".join(parts)


def decode_options(octets: bytes) -> tuple[Option, ...]:
    """The options in ``octets``. Raises MalformedPcp when a length runs past the end or does not fit the option."""
    options: list[Option] = []
    at = 0
    while at < len(octets):
        if len(octets) - at < _HEADER.size:
            raise MalformedPcp("option header cut short")
        code, length = _HEADER.unpack_from(octets, at)
        at += _HEADER.size
        if length > len(octets) - at:
            raise MalformedPcp(f"option {code} runs past the end")
        options.append(_option(code, octets[at : at + length]))
        at += length + -length % 4
    return tuple(options)


def _data(option: Option) -> bytes:
    match option:
        case ThirdParty(address):
            return pack_address(address)
        case PreferFailure():
            return b""
        case Filter(prefix_length, address, port):
            return _FILTER.pack(prefix_length, port, pack_address(address))
        case Description(text):
            return text.encode()
        case Unknown(_, data):
            return data


def _option(code: int, data: bytes) -> Option:
    if code == OptionCode.THIRD_PARTY:
        _expect(code, data, _ADDRESS_LENGTH)
        return ThirdParty(unpack_address(data))
    if code == OptionCode.PREFER_FAILURE:
        _expect(code, data, 0)
        return PreferFailure()
    if code == OptionCode.FILTER:
        _expect(code, data, _FILTER.size)
        prefix_length, port, address = _FILTER.unpack(data)
        return Filter(prefix_length, unpack_address(address), port)
    if code == OptionCode.DESCRIPTION:
        try:
            return Description(data.decode())
        except UnicodeDecodeError:
            return Unknown(code, data)  # RFC 7220 section 3: text that is not UTF-8 is ignored
    return Unknown(code, data)


def _expect(code: int, data: bytes, length: int) -> None:
    if len(data) != length:
        raise MalformedPcp(f"option {code} has {len(data)} octets, not {length}")
