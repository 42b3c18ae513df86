# SPDX-License-Identifier: Apache-2.0
"""What a test asks the carrier by itself, the answers read by octet position, and a carrier without sockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.lab.simulated_carrier.profiles import profile_from
from tests.lab.simulated_carrier.server import SimulatedServer
from tests.support.pcp_octets import MAP, PREFER_FAILURE, VERSION, address_octets, address_text

TCP, UDP = 6, 17
WAN, OTHER, HOST = "100.64.12.34", "100.64.12.99", "192.168.1.50"
EXTERNAL, EXTERNAL2 = "203.0.113.77", "203.0.113.78"
PEER, PEER2 = "198.51.100.9", "198.51.100.10"
NONCE = b"twelve bytes"
OTHER_NONCE = b"another one!"
EXACT = bytes([PREFER_FAILURE, 0, 0, 0])


@dataclass(frozen=True, slots=True)
class Reply:
    """A PCP response; the fields of MAP are zero in a shorter one."""

    raw: bytes

    @property
    def result(self) -> int:
        return self.raw[3]

    @property
    def lifetime(self) -> int:
        return int.from_bytes(self.raw[4:8], "big")

    @property
    def epoch(self) -> int:
        return int.from_bytes(self.raw[8:12], "big")

    @property
    def external_port(self) -> int:
        return int.from_bytes(self.raw[42:44], "big")

    @property
    def external_address(self) -> str:
        return address_text(self.raw[44:60])

    @property
    def options(self) -> bytes:
        return self.raw[60:]


def map_request(
    client: str,
    port: int,
    external_port: int = 0,
    *,
    protocol: int = TCP,
    lifetime: int = 600,
    nonce: bytes = NONCE,
    options: bytes = b"",
    address: str = "0.0.0.0",
    version: int = VERSION,
) -> bytes:
    """A MAP request; ``nonce`` is empty in version 1."""
    head = bytes([version, MAP, 0, 0]) + lifetime.to_bytes(4, "big") + address_octets(client)
    ports = port.to_bytes(2, "big") + external_port.to_bytes(2, "big")
    return head + nonce + bytes([protocol, 0, 0, 0]) + ports + address_octets(address) + options


def announce_request(client: str, options: bytes = b"") -> bytes:
    return bytes([VERSION, 0, 0, 0]) + bytes(4) + address_octets(client) + options


def option(code: int, data: bytes = b"") -> bytes:
    return bytes([code, 0]) + len(data).to_bytes(2, "big") + data + bytes(-len(data) % 4)


def third_party(address: str) -> bytes:
    return option(1, address_octets(address))


def only_from(address: str, *, prefix: int = 128, port: int = 0) -> bytes:
    """A FILTER; prefix 0 clears."""
    return option(3, bytes([0, prefix]) + port.to_bytes(2, "big") + address_octets(address))


def description(text: str) -> bytes:
    return option(128, text.encode())


class Carrier:
    """A server without sockets, started at 0, and a clock that the test sets."""

    def __init__(
        self, profile: str = "strict", *, external: tuple[str, ...] = (EXTERNAL,), now: float = 0.0, **overrides: Any
    ) -> None:
        self.server = SimulatedServer(profile_from(profile, overrides), external, seed=1, now=0.0)
        self.now = now

    def send(self, raw: bytes, source: str = WAN) -> bytes | None:
        sent = self.server.receive(raw, (source, 40000), self.now)
        assert all(datagram.to == (source, 40000) for datagram in sent)
        return sent[0].data if sent else None

    def ask(self, raw: bytes, source: str = WAN) -> Reply:
        reply = self.send(raw, source)
        assert reply is not None
        return Reply(reply)

    def map(self, port: int, external_port: int = 0, *, client: str = WAN, **fields: Any) -> Reply:
        return self.ask(map_request(client, port, external_port, **fields), client)

    def table(self) -> list[tuple[str, int, int]]:
        rows = self.server.listing(self.now)
        return [(row["address"], row["port"], row["external_port"]) for row in rows]

    def sent_until(self, end: float) -> list[tuple[float, bytes, tuple[str, int]]]:
        """What the server sends by itself up to ``end``."""
        sent = []
        while (at := self.server.next_timer()) is not None and at <= end:
            self.now = max(self.now, at)
            sent += [(self.now, datagram.data, datagram.to) for datagram in self.server.handle_timer(self.now)]
        return sent
