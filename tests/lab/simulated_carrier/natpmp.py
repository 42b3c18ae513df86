# SPDX-License-Identifier: Apache-2.0
"""What a strict server answers to one NAT-PMP request (RFC 6886 section 3)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace

from tests.lab.simulated_carrier.table import NETWORK_FAILURE, TCP, UDP, Entry, MappingTable, Translation, Wish
from tests.support.pcp_octets import Refusal

VERSION, RESPONSE = 0, 0x80  # section 3
EXTERNAL_ADDRESS = 0  # section 3.2
MAP_PROTOCOLS = {1: UDP, 2: TCP}  # opcodes, section 3.3
MAP_LENGTH = 12
# Result codes, section 3.5
SUCCESS, UNSUPPORTED_VERSION, NOT_AUTHORIZED, NO_NETWORK, OUT_OF_RESOURCES, UNSUPPORTED_OPCODE = range(6)

Key = tuple[int, str, int]


class NatPmpServer:
    """Answers NAT-PMP requests from the table that PCP shares; ``epoch`` tells the time."""

    def __init__(self, table: MappingTable, epoch: Callable[[float], int]) -> None:
        self._table = table
        self._epoch = epoch

    def answer(self, raw: bytes, source: tuple[str, int], now: float) -> bytes | None:
        """The response to a request of version 0, None for nothing."""
        opcode = raw[1]
        if opcode == EXTERNAL_ADDRESS:
            return self.address_response(source[0], now)
        if opcode not in MAP_PROTOCOLS:
            return bytes([VERSION, RESPONSE | opcode]) + UNSUPPORTED_OPCODE.to_bytes(2, "big") + raw[4:]
        if len(raw) < MAP_LENGTH:
            return None
        key = (MAP_PROTOCOLS[opcode], source[0], int.from_bytes(raw[4:6], "big"))
        lifetime = int.from_bytes(raw[8:12], "big")
        if not lifetime:
            return self._mapped(raw, self._delete(key, now), 0, 0, now)
        result, port, lifetime = self._map(key, int.from_bytes(raw[6:8], "big"), lifetime, now)
        return self._mapped(raw, result, port, lifetime, now)

    def address_response(self, internal: str, now: float) -> bytes:
        """The external address of an internal one; also the announcement of another one (section 3.2.1)."""
        try:
            result, address = SUCCESS, self._table.paired_address(internal)
        except Refusal:
            result, address = NO_NETWORK, "0.0.0.0"
        head = bytes([VERSION, RESPONSE | EXTERNAL_ADDRESS]) + result.to_bytes(2, "big")
        return head + self._epoch(now).to_bytes(4, "big") + ipaddress.IPv4Address(address).packed

    def unsupported_version(self, raw: bytes, now: float) -> bytes:
        """What a server that speaks nothing else answers to PCP (section 3.5)."""
        opcode = RESPONSE | raw[1] if self._table.profile.refusal_has_opcode else 0
        return bytes([VERSION, opcode]) + UNSUPPORTED_VERSION.to_bytes(2, "big") + self._epoch(now).to_bytes(4, "big")

    def _map(self, key: Key, wanted: int, requested: int, now: float) -> tuple[int, int, int]:
        """Result, external port and lifetime."""
        lifetime = min(requested, self._table.profile.longest)
        entry = self._table.get(key)
        if entry is not None and entry.nonce is not None:
            return NOT_AUTHORIZED, 0, 0
        if not key[2]:
            return NOT_AUTHORIZED, 0, 0
        if entry is None:
            try:
                address, port = self._table.assign(Wish(key, None, wanted), now)
            except Refusal as refusal:
                return (NO_NETWORK if refusal.result == NETWORK_FAILURE else OUT_OF_RESOURCES), 0, 0
            entry = Entry(Translation(*key, address, port), None, now + lifetime)
        self._table.put(replace(entry, ends=now + lifetime))
        return SUCCESS, entry.translation.external_port, lifetime

    def _delete(self, key: Key, now: float) -> int:
        """Internal port 0: all of this client's mappings of the protocol (section 3.4)."""
        chosen = [e for e in self._table if e.key == key or (not key[2] and e.key[:2] == key[:2])]
        for entry in chosen:
            if entry.nonce is None:
                self._table.remove(entry, now)
        return NOT_AUTHORIZED if any(entry.nonce is not None for entry in chosen) else SUCCESS

    def _mapped(self, raw: bytes, result: int, port: int, lifetime: int, now: float) -> bytes:
        head = bytes([VERSION, RESPONSE | raw[1]]) + result.to_bytes(2, "big") + self._epoch(now).to_bytes(4, "big")
        return head + raw[4:6] + port.to_bytes(2, "big") + lifetime.to_bytes(4, "big")
