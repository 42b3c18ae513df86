# SPDX-License-Identifier: Apache-2.0
"""A strict PCP server with switches, for tests: RFC 6887 by slicing bytes, sharing no code with what it tests.

Run as a program in the carrier's namespace. Stdin takes one JSON object per line, stdout answers each with one:
``{"set": {switch: value}}``, ``{"get": "table" | "counters" | "requests"}``, ``{"reset": {"epoch", "forget"}}``,
``{"announce": ADDRESS}``.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import select
import socket
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.pcp_octets import (
    ADDRESS_MISMATCH,
    ANNOUNCE,
    CANNOT_PROVIDE_EXTERNAL,
    CLIENT_PORT,
    EXCESSIVE_REMOTE_PEERS,
    FILTER,
    HEADER,
    LONG,
    LONGEST,
    MALFORMED_OPTION,
    MALFORMED_REQUEST,
    MANDATORY_OPTIONS,
    MAP,
    MAP_DATA,
    NOT_AUTHORIZED,
    OPTION_LENGTHS,
    OPTION_NAMES,
    PCP_PORT,
    PREFER_FAILURE,
    PROTOCOLS,
    RESPONSE,
    SHORT,
    SUCCESS,
    THIRD_PARTY,
    UNSUPP_OPCODE,
    UNSUPP_OPTION,
    UNSUPP_PROTOCOL,
    UNSUPP_VERSION,
    USER_EX_QUOTA,
    VERSION,
    Refusal,
    address_octets,
    address_text,
    options_in_words,
    options_of,
)
from tests.support.scripted_nat import Entry, Key, Nat

NEVER_GIVEN = {("udp", CLIENT_PORT), ("udp", PCP_PORT)}
UNSPECIFIED = ("0.0.0.0", "::")
REQUESTS_KEPT = 20000


@dataclass
class Switches:
    """What the test wants the server to do; see ScriptedCarrier for what each means."""

    external: str = "62.0.0.1"
    refuse: list[int] | None = None
    refuse_ports: dict[str, list[int]] = field(default_factory=dict)
    refuse_deletes: list[int] | None = None
    silent: bool = False
    drop: int = 0
    grant_port: int = 0
    block: list[int] = field(default_factory=lambda: [1024, 65535])
    cap: int = 86400
    floor: int = 0
    delay: float = 0.0
    third_party: bool = False
    prefer_failure: bool = True
    quota: int = 0


@dataclass
class Request:
    """A MAP request, taken apart."""

    key: Key
    nonce: str
    lifetime: int
    external_port: int
    external: str
    exact: bool
    filters: list[tuple[int, int, str]]
    description: str | None


class Server:
    """Datagrams in, datagrams out; ``now`` is passed in."""

    def __init__(self, nat: Nat, now: float) -> None:
        self.switches = Switches()
        self.table: dict[Key, Entry] = {}
        self.counters: Counter[str] = Counter()
        self.requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)
        self._nat = nat
        self._epoch_zero = now

    def answer(self, data: bytes, source: tuple[str, int], now: float) -> bytes | None:
        """What goes back, None for nothing (P 8.2)."""
        self._expire(now)
        self.counters["datagrams"] += 1
        if len(data) < 2 or data[1] & RESPONSE:
            self.counters["dropped_nonsense"] += 1
            return None
        if self.switches.silent or self.switches.drop:
            self.switches.drop = max(0, self.switches.drop - 1)
            self.counters["dropped_on_demand"] += 1
            self._note(data, source, now, None)
            return None
        try:
            reply = self._process(data, source, now)
            result = SUCCESS
        except Refusal as refusal:
            if data[0] == VERSION and len(data) < HEADER:
                self.counters["dropped_nonsense"] += 1
                return None
            result = refusal.result
            reply = self._error(data, refusal, now)
        self._note(data, source, now, result)
        self.counters[f"result_{result}"] += 1
        return reply

    def announcement(self, now: float) -> bytes:
        return bytes([VERSION, RESPONSE | ANNOUNCE, 0, SUCCESS]) + bytes(4) + self._epoch(now) + bytes(12)

    def reset(self, now: float, epoch: int, forget: bool) -> None:
        self._epoch_zero = now - epoch
        if forget:
            self.table.clear()
            self._nat.clear()

    def listing(self, now: float) -> list[dict[str, Any]]:
        self._expire(now)
        return [
            {
                "protocol": protocol,
                "external_port": entry.external_port,
                "address": address,
                "port": port,
                "lifetime": round(entry.ends - now),
                "filters": entry.filters,
                "description": entry.description,
                "nonce": entry.nonce,
            }
            for (address, protocol, port), entry in self.table.items()
        ]

    def _epoch(self, now: float) -> bytes:
        return int(now - self._epoch_zero).to_bytes(4, "big")

    def _error(self, data: bytes, refusal: Refusal, now: float) -> bytes:
        body = data[:LONGEST].ljust(HEADER, b"\0")
        body += bytes(-len(body) % 4)
        head = bytes([VERSION, RESPONSE | body[1], 0, refusal.result]) + refusal.lifetime.to_bytes(4, "big")
        return head + self._epoch(now) + bytes(12) + body[HEADER:]

    def _process(self, data: bytes, source: tuple[str, int], now: float) -> bytes:
        if data[0] != VERSION:
            raise Refusal(UNSUPP_VERSION)
        opcode = data[1]
        needed = HEADER + (MAP_DATA if opcode == MAP else 0)
        if not needed <= len(data) <= LONGEST or len(data) % 4:
            raise Refusal(MALFORMED_REQUEST)
        if data[8:24] != address_octets(source[0]):
            raise Refusal(ADDRESS_MISMATCH)
        if opcode == ANNOUNCE:
            return self.announcement(now)
        if opcode != MAP:
            raise Refusal(UNSUPP_OPCODE)
        request, processed = self._parse_map(data, source[0])
        if request.lifetime:
            return self._map(data, request, processed, now)
        return self._delete(data, request, processed, now)

    def _parse_map(self, data: bytes, source: str) -> tuple[Request, bytes]:
        lifetime = int.from_bytes(data[4:8], "big")
        external_port = int.from_bytes(data[42:44], "big")
        internal, filters, exact, description = source, [], False, None
        processed = b""
        codes: list[int] = []
        for code, value, whole in options_of(data[HEADER + MAP_DATA :]):
            if code not in OPTION_NAMES:
                if code in MANDATORY_OPTIONS:
                    raise Refusal(UNSUPP_OPTION)
                continue
            if len(value) != OPTION_LENGTHS.get(code, len(value)) or (code in codes and code != FILTER):
                raise Refusal(MALFORMED_OPTION)
            codes.append(code)
            processed += whole
            if code == THIRD_PARTY:
                internal = self._third_party(value, source)
            elif code == PREFER_FAILURE:
                exact = self._prefer_failure(lifetime, external_port)
            elif code == FILTER:
                filters.append(self._filter(value, lifetime))
            else:
                description = value.decode(errors="replace")
        protocol = PROTOCOLS.get(data[36])
        internal_port = int.from_bytes(data[40:42], "big")
        if protocol is None or not internal_port:
            raise Refusal(MALFORMED_REQUEST if data[36] == 0 and internal_port else UNSUPP_PROTOCOL)
        key = (internal, protocol, internal_port)
        nonce, wanted = data[24:36].hex(), address_text(data[44:60])
        return Request(key, nonce, lifetime, external_port, wanted, exact, filters, description), processed

    def _third_party(self, value: bytes, source: str) -> str:
        if not self.switches.third_party:
            raise Refusal(UNSUPP_OPTION)
        address = address_text(value)
        if address == source:
            raise Refusal(MALFORMED_REQUEST)
        return address

    def _prefer_failure(self, lifetime: int, external_port: int) -> bool:
        if not self.switches.prefer_failure:
            raise Refusal(UNSUPP_OPTION)
        if not lifetime or not external_port:
            raise Refusal(MALFORMED_OPTION)
        return True

    def _filter(self, value: bytes, lifetime: int) -> tuple[int, int, str]:
        prefix, port = value[1], int.from_bytes(value[2:4], "big")
        if not lifetime or (prefix and not 96 <= prefix <= 128):
            raise Refusal(MALFORMED_OPTION)
        if prefix not in (0, 128) or (prefix and port):
            raise Refusal(EXCESSIVE_REMOTE_PEERS)  # only whole hosts are kept here
        return prefix, port, address_text(value[4:20])

    def _map(self, data: bytes, request: Request, processed: bytes, now: float) -> bytes:
        entry = self.table.get(request.key)
        if entry is not None and entry.nonce != request.nonce:
            raise Refusal(NOT_AUTHORIZED, int(entry.ends - now) + 1)
        self._refuse_on_demand(request)
        lifetime = max(self.switches.floor, min(request.lifetime, self.switches.cap))
        before = None if entry is None else replace(entry)
        if entry is None:
            entry = Entry(request.nonce, self._new_port(request), now)
        elif request.exact and not self._is_what_was_suggested(request, entry):
            raise Refusal(CANNOT_PROVIDE_EXTERNAL, SHORT)
        for prefix, _, peer in request.filters:
            entry.filters = [*entry.filters, peer] if prefix and peer not in entry.filters else entry.filters
            if not prefix:
                entry.filters = []
        entry.description = entry.description if request.description is None else request.description
        entry.ends = now + lifetime
        self.table[request.key] = entry
        self._nat.put(request.key, entry, lifetime, before)
        return self._success(data, lifetime, entry.external_port, self.switches.external, processed, now)

    def _delete(self, data: bytes, request: Request, processed: bytes, now: float) -> bytes:
        entry = self.table.get(request.key)
        if entry is not None and entry.nonce != request.nonce:
            raise Refusal(NOT_AUTHORIZED, int(entry.ends - now) + 1)
        if self.switches.refuse_deletes:
            raise Refusal(*self.switches.refuse_deletes)
        if entry is not None:
            self._nat.drop(request.key, self.table.pop(request.key))
        head = bytes([VERSION, RESPONSE | MAP, 0, SUCCESS]) + bytes(4) + self._epoch(now) + bytes(12)
        return head + data[24:60] + processed

    def _success(self, data: bytes, lifetime: int, port: int, external: str, processed: bytes, now: float) -> bytes:
        head = bytes([VERSION, RESPONSE | MAP, 0, SUCCESS]) + lifetime.to_bytes(4, "big") + self._epoch(now) + bytes(12)
        return head + data[24:42] + port.to_bytes(2, "big") + address_octets(external) + processed

    def _refuse_on_demand(self, request: Request) -> None:
        by_port = self.switches.refuse_ports.get(str(request.external_port))
        refusal = by_port or self.switches.refuse
        if refusal:
            raise Refusal(*refusal)

    def _is_what_was_suggested(self, request: Request, entry: Entry) -> bool:
        return request.external_port == entry.external_port and self._is_our_address(request.external)

    def _is_our_address(self, address: str) -> bool:
        return address in (*UNSPECIFIED, self.switches.external)

    def _new_port(self, request: Request) -> int:
        address, protocol, internal_port = request.key
        if self.switches.quota and sum(key[0] == address for key in self.table) >= self.switches.quota:
            raise Refusal(USER_EX_QUOTA, SHORT)
        taken = {entry.external_port for key, entry in self.table.items() if key[1] == protocol}
        low, high = self.switches.block

        def free(port: int) -> bool:
            return low <= port <= high and port not in taken and (protocol, port) not in NEVER_GIVEN

        if self.switches.grant_port:
            port = self.switches.grant_port
        else:
            wishes = (request.external_port, internal_port, *range(low, high + 1))
            port = next((wish for wish in wishes if free(wish)), 0)
        as_suggested = port == request.external_port and self._is_our_address(request.external)
        if not port or (request.exact and not as_suggested):
            raise Refusal(CANNOT_PROVIDE_EXTERNAL, LONG)
        return port

    def _expire(self, now: float) -> None:
        for key in [key for key, entry in self.table.items() if entry.ends <= now]:
            self._nat.drop(key, self.table.pop(key))

    def _note(self, data: bytes, source: tuple[str, int], now: float, result: int | None) -> None:
        note: dict[str, Any] = {"at": now, "from": source[0], "from_port": source[1], "version": data[0]}
        note |= {"opcode": data[1], "result": result, "raw": data.hex()}
        if data[0] == VERSION and data[1] == MAP and len(data) >= HEADER + MAP_DATA:
            note |= {"lifetime": int.from_bytes(data[4:8], "big"), "client": address_text(data[8:24])}
            note |= {"nonce": data[24:36].hex(), "protocol": PROTOCOLS.get(data[36], data[36])}
            note |= {"internal_port": int.from_bytes(data[40:42], "big")}
            note |= {"external_port": int.from_bytes(data[42:44], "big"), "external": address_text(data[44:60])}
            note["options"] = options_in_words(data[HEADER + MAP_DATA :])
        self.requests.append(note)


def command(server: Server, order: dict[str, Any], sender: socket.socket, now: float) -> Any:
    """Obey one line of stdin; what is returned goes to stdout."""
    if "set" in order:
        for name, value in order["set"].items():
            if not hasattr(server.switches, name):
                raise KeyError(name)
            setattr(server.switches, name, value)
    if "reset" in order:
        server.reset(now, int(order["reset"].get("epoch", 0)), bool(order["reset"].get("forget", True)))
    if "announce" in order:
        sender.sendto(server.announcement(now), (order["announce"], CLIENT_PORT))
    if order.get("get") == "table":
        return server.listing(now)
    if order.get("get") == "counters":
        return dict(server.counters)
    if order.get("get") == "requests":
        return list(server.requests)
    return True


def serve(server: Server, receiver: socket.socket) -> None:
    """Until stdin ends. Replies wait in a heap for the time the ``delay`` switch gives them."""
    waiting: list[tuple[float, int, bytes, tuple[str, int]]] = []
    pending = b""
    serial = 0
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([receiver, sys.stdin], [], [], patience)
        now = time.monotonic()
        if receiver in ready:
            data, source = receiver.recvfrom(2048)
            reply = server.answer(data, source, now)
            if reply is not None:
                serial += 1
                heapq.heappush(waiting, (now + server.switches.delay, serial, reply, source))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, reply, source = heapq.heappop(waiting)
            with suppress(OSError):  # the link is gone with its addresses, and may return
                receiver.sendto(reply, source)
        if sys.stdin in ready:
            chunk = os.read(sys.stdin.fileno(), 65536)
            if not chunk:
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                print(json.dumps(command(server, json.loads(line), receiver, now)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="address to serve on")
    parser.add_argument("--no-nat", action="store_true", help="grant without translating any packet")
    arguments = parser.parse_args()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(arguments.address))
        receiver.bind((arguments.address, PCP_PORT))
        server = Server(Nat(not arguments.no_nat), time.monotonic())
        print(json.dumps("ready"), flush=True)
        serve(server, receiver)


if __name__ == "__main__":
    main()
