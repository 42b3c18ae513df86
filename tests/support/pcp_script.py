# SPDX-License-Identifier: Apache-2.0
"""A PCP server in memory, written by slicing octets, and a dialogue of it with a client in virtual time."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address

from igdpcp.model import Protocol
from igdpcp.pcp.client import Event, PcpClient, Timing, WantedMapping
from igdpcp.pcp.conduct import STANDARD_CONDUCT, Conduct

SERVER = (IPv4Address("192.0.2.1"), 5351)
OWN = IPv4Address("100.64.12.34")
EXTERNAL = bytes(10) + b"\xff\xff" + bytes([203, 0, 113, 77])
PREFER_FAILURE, FILTER, DESCRIPTION, THIRD_PARTY = 2, 3, 128, 1


@dataclass
class Sent:
    """One datagram of the client, taken apart by octet position (RFC 6887 sections 7 and 11)."""

    at: float
    octets: bytes

    @property
    def is_map(self) -> bool:
        return self.octets[1] == 1

    @property
    def lifetime(self) -> int:
        return int.from_bytes(self.octets[4:8], "big")

    @property
    def nonce(self) -> bytes:
        return self.octets[24:36]

    @property
    def internal_port(self) -> int:
        return int.from_bytes(self.octets[40:42], "big")

    @property
    def suggested_port(self) -> int:
        return int.from_bytes(self.octets[42:44], "big")

    @property
    def suggested_address(self) -> bytes:
        return self.octets[44:60]

    @property
    def options(self) -> list[tuple[int, bytes]]:
        found, at = [], 60
        while at < len(self.octets):
            length = int.from_bytes(self.octets[at + 2 : at + 4], "big")
            found.append((self.octets[at], self.octets[at + 4 : at + 4 + length]))
            at += 4 + (length + 3) // 4 * 4
        return found

    @property
    def codes(self) -> list[int]:
        return [code for code, _ in self.options]


def answer(
    request: bytes, *, epoch: int, result: int = 0, lifetime: int | None = None, port: int | None = None,
    address: bytes = EXTERNAL,
) -> bytes:  # fmt: skip
    """The response to a request: the header rewritten, on success the assigned port and address put in."""
    life = int.from_bytes(request[4:8], "big") if lifetime is None else lifetime
    head = struct.pack("!BBBBII12x", 2, request[1] | 0x80, 0, result, life, epoch)
    if request[1] == 0:
        return head
    if result == 0 and request[4:8] != bytes(4):
        given = port or int.from_bytes(request[42:44], "big") or int.from_bytes(request[40:42], "big")
        return head + request[24:42] + given.to_bytes(2, "big") + address + request[60:]
    return head + request[24:]


@dataclass
class ScriptedServer:
    """Grants what is asked for, unless one of its switches says otherwise.

    ``drop``: that many requests stay unanswered. ``refuse``: result and lifetime by option code (0: any MAP create).
    ``port``: the port assigned instead of the suggested one. ``scripted``: answers of its own, first.
    """

    booted: float = -86000.0
    drop: int = 0
    silent: bool = False
    longest: int = 86400
    shortest: int = 120
    port: int | None = None
    address: bytes = EXTERNAL
    refuse: dict[int, tuple[int, int]] = field(default_factory=dict)
    delete_result: tuple[int, int] = (0, 0)
    scripted: Callable[[Sent], list[bytes] | None] | None = None
    mappings: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)

    def epoch(self, now: float) -> int:
        return int(now - self.booted)

    def restart(self, now: float) -> None:
        self.booted = now
        self.mappings.clear()

    def receive(self, sent: Sent) -> list[bytes]:
        if self.scripted is not None and (own := self.scripted(sent)) is not None:
            return own
        if self.silent or self.drop > 0:
            self.drop -= 1
            return []
        epoch = self.epoch(sent.at)
        if not sent.is_map:
            return [answer(sent.octets, epoch=epoch)]
        internal = sent.octets[36:42] + b"".join(data for code, data in sent.options if code == THIRD_PARTY)
        if sent.lifetime == 0:
            result, lifetime = self.delete_result
            if result == 0:
                self.mappings.pop(internal, None)
            return [answer(sent.octets, epoch=epoch, result=result, lifetime=lifetime)]
        for code in [0, *sent.codes]:
            if code in self.refuse:
                result, lifetime = self.refuse[code]
                return [answer(sent.octets, epoch=epoch, result=result, lifetime=lifetime)]
        lifetime = min(max(sent.lifetime, self.shortest), self.longest)
        reply = answer(sent.octets, epoch=epoch, lifetime=lifetime, port=self.port, address=self.address)
        self.mappings[internal] = int.from_bytes(reply[42:44], "big"), sent.nonce
        return [reply]


class Dialogue:
    """A client and a scripted server in virtual time; all that was sent and every event is kept with its time."""

    def __init__(
        self, *, seed: int = 1, rtt: float = 0.02, timing: Timing | None = None, conduct: Conduct = STANDARD_CONDUCT
    ) -> None:
        self.now = 1000.0
        self.rtt = rtt
        self.server = ScriptedServer()
        self.client = PcpClient(
            server=SERVER, server_identity="wan", secret=b"secret", rng=random.Random(seed), timing=timing or Timing(),
            conduct=conduct,
        )  # fmt: skip
        self.sent: list[Sent] = []
        self.events: list[tuple[float, Event]] = []
        self._underway: list[tuple[float, bytes]] = []
        self.client.address_changed(OWN, self.now)

    def want(self, key: str = "web", **changes: object) -> WantedMapping:
        wanted = wanted_mapping(key, now=self.now, **changes)  # type: ignore[arg-type]
        self.client.want(wanted, self.now)
        self.flush()
        return wanted

    def drop(self, key: str = "web") -> None:
        self.client.drop(key, self.now)
        self.flush()

    def deliver(self, octets: bytes, source: tuple[object, int] = SERVER) -> None:
        self.client.receive_datagram(octets, source, self.now)  # type: ignore[arg-type]
        self.flush()

    def flush(self) -> None:
        """Let out what may leave now, and take the events."""
        for octets in self.client.datagrams_to_send(self.now):
            sent = Sent(self.now, octets)
            self.sent.append(sent)
            self._underway += [(self.now + self.rtt, reply) for reply in self.server.receive(sent)]
        while (event := self.client.next_event()) is not None:
            self.events.append((self.now, event))

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        self.flush()
        while True:
            timer = self.client.next_timer()
            arrival = min((at for at, _ in self._underway), default=None)
            at = min((at for at in (timer, arrival) if at is not None), default=None)
            if at is None or at > end:
                break
            self.now = max(self.now, at)
            arrived = [reply for due, reply in self._underway if due <= self.now]
            self._underway = [entry for entry in self._underway if entry[0] > self.now]
            for reply in arrived:
                self.client.receive_datagram(reply, SERVER, self.now)
            self.client.handle_timer(self.now)
            self.flush()
        self.now = end

    def of(self, kind: type) -> list[object]:
        """The events of one kind, oldest first."""
        return [event for _, event in self.events if isinstance(event, kind)]

    @property
    def maps(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.is_map]

    def times(self, since: float = 1000.0) -> list[float]:
        return [sent.at - since for sent in self.sent]


def wanted_mapping(
    key: str = "web", *, now: float = 1000.0, lease: float | None = 3600, **changes: object
) -> WantedMapping:
    """V2 of the test vectors as a wish: tcp 8080 for the router itself, exactly 8080, for an hour."""
    values: dict[str, object] = {
        "protocol": Protocol.TCP, "internal_address": OWN, "internal_port": 8080, "external_port": 8080, "exact": True,
        "until": None if lease is None else now + lease,
    }  # fmt: skip
    return WantedMapping(key, **(values | changes))  # type: ignore[arg-type]


def mapped(address: str) -> bytes:
    """16 octets of an address, IPv4 in its mapped form."""
    parsed = ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed
