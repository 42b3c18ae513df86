# SPDX-License-Identifier: Apache-2.0
"""Listens on the lab's LAN and puts together what a control point and the gateway said to each other."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.lab import topology
from tests.lab.clients import HTTP_PORT
from tests.lab.topology import Lab
from tests.support.transcripts import (
    HTTP,
    SSDP,
    Exchange,
    Transcript,
    Uuids,
    decisive_event,
    decisive_found,
    decisive_reply,
)

ETH_P_IP = 0x0800
ETH_P_ALL = 0x0003  # with any other, a packet socket sees nothing of what the router sends
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it
CAPTURE_BUFFER = 4 << 20  # nothing may be lost while this machine is busy
PACKET_LIMIT = 1 << 17  # segmentation offload makes packets longer than the link's MTU
SSDP_PORT = 1900
TCP, UDP = 6, 17
TCP_SYN = 0x02
CONTINUE = b"HTTP/1.1 100 "
CHANGING_NOTHING = (b"M-SEARCH ", b"GET ")
KERNEL = re.compile(rb"Linux/\d[\w.+-]*")  # what libupnp tells of the machine that records
NEUTRAL_KERNEL = b"Linux/6.1.0"
DATE = re.compile(rb"^DATE:.*\r\n", re.IGNORECASE | re.MULTILINE)

End = tuple[str, int]


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection."""

    first: int = 0  # sequence number of the first byte
    segments: dict[int, tuple[int, bytes]] = field(default_factory=dict)  # offset: place in the capture, bytes

    def take(self, place: int, sequence: int, data: bytes) -> None:
        self.segments.setdefault((sequence - self.first) % (1 << 32), (place, data))

    def data(self) -> bytes:
        joined = b""
        for offset, (_, data) in sorted(self.segments.items()):
            joined += data[max(0, len(joined) - offset) :] if offset <= len(joined) else b""
        return joined

    def place(self, position: int) -> int:
        """Where in the capture the byte at ``position`` came."""
        return max(place for offset, (place, _) in self.segments.items() if offset <= position)


@dataclass(slots=True)
class _Placed:
    """What was found, and where in the capture it began."""

    place: int
    transport: str
    request: bytes
    answers: list[bytes] = field(default_factory=list)

    @property
    def undated(self) -> list[bytes]:
        return [DATE.sub(b"", answer) for answer in self.answers]


class Recorder:
    """Records from its construction until ``transcript`` is called; use as a context manager."""

    def __init__(self, lab: Lab) -> None:
        self._socket = lab.router.socket(socket.SOCK_DGRAM, socket.AF_PACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BUFFER)
        self._socket.bind((topology.LAN_DEVICE, ETH_P_ALL))
        self._socket.setblocking(False)
        self._packets: list[bytes] = []
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._capture, daemon=True)
        self._thread.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _capture(self) -> None:
        while self._wake not in select.select([self._socket, self._wake], [], [])[0]:
            self._drain()
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, (_, protocol, *_) = self._socket.recvfrom(PACKET_LIMIT)
                if protocol == ETH_P_IP:
                    self._packets.append(packet)

    def stop(self) -> None:
        """End the capture; nothing happens when it has ended before."""
        if self._thread.is_alive():
            self._waker.send(b"x")
            self._thread.join()
            for end in (self._socket, self._wake, self._waker):
                end.close()

    def transcript(self, client: str, igd_version: str) -> Transcript:
        """The dialogue of the LAN's first host with the gateway."""
        self.stop()
        datagrams, connections = _taken_apart(self._packets)
        found = sorted([*_searches(datagrams), *_requests(connections)], key=lambda each: each.place)
        found = [each for number, each in enumerate(found) if not _repeats(each, found[:number])]
        events = _initial_events(connections)
        uuids = Uuids()
        exchanges = [_exchange(each, events, uuids) for each in found]
        return Transcript(client, "recorded", "", igd_version, exchanges, uuids.known)


def _exchange(found: _Placed, events: dict[bytes, bytes], uuids: Uuids) -> Exchange:
    if found.transport == SSDP:
        answer = decisive_found(found.answers, uuids)
    else:
        answer = tuple(line for reply in found.answers for line in decisive_reply(reply, uuids, found.request))
        for sid, event in events.items():
            if found.request.startswith(b"SUBSCRIBE ") and any(sid in reply for reply in found.answers):
                answer += decisive_event(event, uuids)
    return Exchange(found.transport, KERNEL.sub(NEUTRAL_KERNEL, found.request), answer)


def _repeats(found: _Placed, earlier: list[_Placed]) -> bool:
    """Whether it was asked and answered before, and does not change anything."""
    return found.request.startswith(CHANGING_NOTHING) and any(
        (found.request, found.undated) == (each.request, each.undated) for each in earlier
    )


def _taken_apart(
    packets: list[bytes],
) -> tuple[list[tuple[int, End, End, bytes]], dict[tuple[End, End], _Stream]]:
    """The UDP datagrams and the TCP streams of a capture of IPv4 packets."""
    datagrams = []
    streams: dict[tuple[End, End], _Stream] = {}
    for place, packet in enumerate(packets):
        length, total, protocol = (packet[0] & 0x0F) * 4, struct.unpack_from("!H", packet, 2)[0], packet[9]
        body = packet[length : total or None]
        if protocol not in (TCP, UDP):
            continue
        source_port, target_port = struct.unpack_from("!HH", body)
        source = (socket.inet_ntoa(packet[12:16]), source_port)
        target = (socket.inet_ntoa(packet[16:20]), target_port)
        if protocol == UDP:
            datagrams.append((place, source, target, body[8:]))
            continue
        sequence, flags = struct.unpack_from("!I", body, 4)[0], body[13]
        if flags & TCP_SYN:
            streams[source, target] = _Stream(sequence + 1)
        elif data := body[(body[12] >> 4) * 4 :]:
            streams.setdefault((source, target), _Stream(sequence)).take(place, sequence, data)
    return datagrams, streams


def _searches(datagrams: list[tuple[int, End, End, bytes]]) -> Iterator[_Placed]:
    """The control point's searches with their answers; one that is sent again from the same port is the same."""
    searches: dict[tuple[int, bytes], _Placed] = {}
    for place, source, target, data in datagrams:
        if source[0] == topology.LAN_ADDRESS and target[1] == SSDP_PORT and data.startswith(b"M-SEARCH"):
            searches.setdefault((source[1], data), _Placed(place, SSDP, data))
        elif source[0] == topology.ROUTER_LAN_ADDRESS and target[0] == topology.LAN_ADDRESS:
            asked = [each for (port, _), each in searches.items() if port == target[1] and _answers(data, each.request)]
            if asked and DATE.sub(b"", data) not in asked[-1].undated:
                asked[-1].answers.append(data)
    yield from searches.values()


def _answers(answer: bytes, search: bytes) -> bool:
    target = _field(search, b"ST")
    return target in (b"ssdp:all", _field(answer, b"ST"))


def _field(message: bytes, name: bytes) -> bytes:
    match = re.search(rb"^" + name + rb":[ \t]*(\S+)", message, re.IGNORECASE | re.MULTILINE)
    return match.group(1) if match else b""


def _requests(streams: dict[tuple[End, End], _Stream]) -> Iterator[_Placed]:
    """The requests to the gateway with their responses."""
    gateway = (topology.ROUTER_LAN_ADDRESS, HTTP_PORT)
    for (client, server), stream in streams.items():
        if client[0] != topology.LAN_ADDRESS or server != gateway:
            continue
        replies = [
            each for each in _messages(streams.get((server, client), _Stream()).data()) if not each.startswith(CONTINUE)
        ]
        position = 0
        for number, request in enumerate(_messages(stream.data())):
            yield _Placed(stream.place(position), HTTP, request, replies[number : number + 1])
            position += len(request)


def _initial_events(streams: dict[tuple[End, End], _Stream]) -> dict[bytes, bytes]:
    """The first event of each subscription, by its SID."""
    events: dict[bytes, bytes] = {}
    for (source, target), stream in streams.items():
        if source[0] == topology.ROUTER_LAN_ADDRESS and target[0] == topology.LAN_ADDRESS:
            for message in _messages(stream.data()):
                if message.startswith(b"NOTIFY ") and _field(message, b"SEQ") == b"0":
                    events[_field(message, b"SID")] = message
    return events


def _messages(data: bytes) -> list[bytes]:
    """The HTTP messages of a stream; what follows the last whole one belongs to it."""
    found: list[bytes] = []
    while data:
        head, separator, _ = data.partition(b"\r\n\r\n")
        if not separator or b" " not in head:
            if found:
                found[-1] += data
            break
        size = len(head) + len(separator) + int(_field(head, b"CONTENT-LENGTH") or 0)
        found.append(data[:size])
        data = data[size:]
    return found
