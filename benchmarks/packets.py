# SPDX-License-Identifier: Apache-2.0
"""What mappings cost the packets that pass them: the first one of a connection, and whole TCP connections.

The sender stands at the carrier, one link from the router, and nothing but the router tracks connections: so little
else is in a figure. The kernel takes a packet all the way to the LAN host while the sender's call lasts.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import socket
import statistics
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.client import RESET_ON_CLOSE, Failed
from tests.lab.namespaces import LabError, poll
from tests.lab.topology import INTERNET_ADDRESS, LAN_ADDRESS, ROUTER_WAN_ADDRESS, Lab

BATCH = 25  # first packets that are timed together: short enough that most batches are not interrupted
BATCHES = 20  # in one turn; then the router forgets their connections
PATIENCE = 5.0
SOURCE_PORTS = range(1024, 65536)
IP_HEADER, UDP_HEADER = struct.Struct("!BBHHHBBH4s4s"), struct.Struct("!HHHH")
VERSION_AND_LENGTH, TIME_TO_LIVE = 0x45, 64

# What comes to the LAN host is counted and goes no further: neither sockets nor ICMP answers cost anything.
SINK = f"""
table netdev sink
delete table netdev sink
table netdev sink {{
	counter arrived {{ }}
	chain ingress {{
		type filter hook ingress device "eth0" priority 0; policy accept;
		ip saddr {INTERNET_ADDRESS} counter name arrived drop
	}}
}}
"""
WITHOUT_CARRIER_NAT = """
table ip cgn
delete table ip cgn
"""


class Passage:
    """The way from the carrier through the router of one lab to its LAN host; close it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        lab.carrier.nft(WITHOUT_CARRIER_NAT)
        lab.lan.nft(SINK)
        self._raw = lab.carrier.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self._raw.connect((ROUTER_WAN_ADDRESS, 0))
        self._source_ports = itertools.cycle(SOURCE_PORTS)
        self._expected = 0

    def close(self) -> None:
        self._raw.close()

    def first_packet(self, ports: Sequence[int], *, scattered: bool = False) -> float:
        """Seconds that the first datagram of a connection takes through ``ports``, mappings by age; one turn's median.

        Datagrams come in batches: each goes through one mapping, or ``scattered`` through as many as it has datagrams.
        Both take them at random from all ages alike: where the search is linear, half of the table is searched.
        """
        if scattered:
            through = _of_all_ages(ports, BATCH * BATCHES)
            batches = [through[first::BATCHES] for first in range(BATCHES)]
        else:
            batches = [[port] * BATCH for port in _of_all_ages(ports, BATCHES)]
        datagrams = [[self._datagram(port) for port in batch] for batch in batches]
        self._forget_connections()
        took = [self._send(batch) for batch in datagrams]
        self._expected += BATCH * BATCHES
        return statistics.median(took) / BATCH

    def _send(self, datagrams: Sequence[bytes]) -> float:
        send = self._raw.send
        began = time.perf_counter()
        for datagram in datagrams:
            send(datagram)
        return time.perf_counter() - began

    def warm_up(self, ports: Sequence[int]) -> None:
        """A turn that does not count: it fills caches and neighbour tables, and may lose packets while it does."""
        self.first_packet(ports)
        self._expected = self._arrived()

    def check_arrivals(self) -> None:
        """Raise Failed unless all that were sent since the last warm-up have come to the LAN host."""
        try:
            poll(lambda: self._arrived() >= self._expected, PATIENCE, "first packets at the LAN host")
        except LabError as error:
            lost = self._expected - self._arrived()
            raise Failed(f"the gateway did not let {lost} of {self._expected} first packets pass") from error

    def connections(self, ports: Sequence[int], seconds: float) -> float:
        """TCP connections a second to ``ports`` in turns: opened, accepted and closed by RST, one at a time."""
        self._forget_connections()
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(self._listener(port)) for port in ports]
            pairs = list(zip(ports, listeners, strict=True))
            return self._lab.carrier.inside(lambda: _connections(pairs, seconds))

    def _datagram(self, port: int) -> bytes:
        """An empty one from a source port that was not used in this turn; the kernel fills in the IP checksum."""
        addresses = (socket.inet_aton(INTERNET_ADDRESS), socket.inet_aton(ROUTER_WAN_ADDRESS))
        length = IP_HEADER.size + UDP_HEADER.size
        head = IP_HEADER.pack(VERSION_AND_LENGTH, 0, length, 0, 0, TIME_TO_LIVE, socket.IPPROTO_UDP, 0, *addresses)
        return head + UDP_HEADER.pack(next(self._source_ports), port, UDP_HEADER.size, 0)

    def _forget_connections(self) -> None:
        self._lab.router.run(["conntrack", "-F"])

    def _arrived(self) -> int:
        listing = self._lab.lan.nft_list("counter", "netdev", "sink", "arrived")
        return int(re.findall(r"packets (\d+)", listing)[0])

    def _listener(self, port: int) -> socket.socket:
        listener = self._lab.lan.socket(socket.SOCK_STREAM)
        listener.settimeout(PATIENCE)
        listener.bind((LAN_ADDRESS, port))
        listener.listen()
        return listener


def _connections(pairs: Sequence[tuple[int, socket.socket]], seconds: float) -> float:
    """One thread is client and server: connect returns when the kernel has made the connection at both ends."""
    count = 0
    turns = itertools.cycle(pairs)
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        port, listener = next(turns)
        with socket.socket() as sock:
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.connect((ROUTER_WAN_ADDRESS, port))
            listener.accept()[0].close()
        count += 1
    return count / (now - began)


def _of_all_ages(ports: Sequence[int], count: int) -> list[int]:
    """``count`` of the ports, each at random from another part of equal size."""
    return [ports[int((part + random.random()) * len(ports) / count)] for part in range(count)]


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How many times longer first packets take through many mappings than through one; ``one`` in seconds."""

    ratio: float
    scattered: float
    one: float


def slowdown(many: Passage, ports: Sequence[int], one: Passage, port: int, turns: int) -> Slowdown:
    """Both send in turns; ratios are those of one turn, the median of all. Raises Failed when packets did not pass."""
    many.warm_up(ports)
    one.warm_up([port])
    ratios, scattered, single = [], [], []
    for _ in range(turns):
        took = one.first_packet([port])
        single.append(took)
        ratios.append(many.first_packet(ports) / took)
        scattered.append(many.first_packet(ports, scattered=True) / took)
    for passage in (many, one):
        passage.check_arrivals()
    return Slowdown(*map(statistics.median, (ratios, scattered, single)))
