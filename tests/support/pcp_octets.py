# SPDX-License-Identifier: Apache-2.0
"""RFC 6887 octets for the scripted server: constants, addresses and options, by slicing."""

from __future__ import annotations

import ipaddress

# Numbers of RFC 6887; the section stands behind each.
PCP_PORT, CLIENT_PORT = 5351, 5350  # 19.1
VERSION, RESPONSE = 2, 0x80  # 7.1, 7.2
HEADER, MAP_DATA, LONGEST = 24, 36, 1100  # 7, 11.1
ANNOUNCE, MAP = 0, 1  # 19.2
THIRD_PARTY, PREFER_FAILURE, FILTER = 1, 2, 3  # 19.4
DESCRIPTION = 128  # RFC 7220 section 4
OPTION_NAMES = {1: "THIRD_PARTY", 2: "PREFER_FAILURE", 3: "FILTER", 128: "DESCRIPTION"}
OPTION_LENGTHS = {THIRD_PARTY: 16, PREFER_FAILURE: 0, FILTER: 20}
MANDATORY_OPTIONS = range(1, 128)  # 7.3
# Result codes, 7.4, and how long a refusal holds
SUCCESS, UNSUPP_VERSION, NOT_AUTHORIZED, MALFORMED_REQUEST, UNSUPP_OPCODE, UNSUPP_OPTION, MALFORMED_OPTION = range(7)
UNSUPP_PROTOCOL, USER_EX_QUOTA, CANNOT_PROVIDE_EXTERNAL, ADDRESS_MISMATCH, EXCESSIVE_REMOTE_PEERS = range(9, 14)
SHORT, LONG = 30, 1800
PROTOCOLS = {6: "tcp", 17: "udp"}


class Refusal(Exception):
    """The request gets this result code and lifetime."""

    def __init__(self, result: int, lifetime: int = LONG) -> None:
        super().__init__(result, lifetime)
        self.result = result
        self.lifetime = lifetime


def address_text(octets: bytes) -> str:
    address = ipaddress.IPv6Address(octets)
    return str(address.ipv4_mapped or address)


def address_octets(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


def options_of(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """The options as (code, data, the whole option); Refusal(MALFORMED_OPTION) when one runs past the end."""
    found = []
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 4 + (length + 3) // 4 * 4
        if end > len(data):
            raise Refusal(MALFORMED_OPTION)
        found.append((data[at], data[at + 4 : at + 4 + length], data[at:end]))
        at = end
    return found


def options_in_words(data: bytes) -> dict[str, list[str]]:
    """Option name and what each occurrence says; ``broken`` when their structure is."""
    words: dict[str, list[str]] = {}
    try:
        for code, value, _ in options_of(data):
            text = value.hex()
            if code == THIRD_PARTY and len(value) == 16:
                text = address_text(value)
            elif code == FILTER and len(value) == 20:
                text = f"{address_text(value[4:])}/{value[1]} port {int.from_bytes(value[2:4], 'big')}"
            elif code == DESCRIPTION:
                text = value.decode(errors="replace")
            words.setdefault(OPTION_NAMES.get(code, str(code)), []).append(text)
    except Refusal:
        words["broken"] = [data.hex()]
    return words
