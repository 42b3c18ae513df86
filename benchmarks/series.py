# SPDX-License-Identifier: Apache-2.0
"""One series: everything that is measured of one gateway in one lab, as figures by name.

It goes step by step, so that two series can take turns: a machine that others share is not the same for long.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks import client
from benchmarks.control_point import TARGET, ControlPoint, Entry
from benchmarks.gateways import Gateway, Igdpcp, Variant, memory
from benchmarks.packets import Passage, Slowdown, slowdown
from tests.lab.carrier import ROOT
from tests.lab.topology import LAN_ADDRESS, Lab

CROWD = 32
CROWD_EACH = 64
RUSH = 8  # control points that fill the table together
SECOND_ADDRESS = "192.168.1.51"  # igdpcp serves 16 connections of one host at a time
START_PATIENCE = 10.0
FEW, SOME, MANY, MOST = 10, 100, 1000, 5000
FIRST_PORT = 20000
LOOP = 10_000_000  # turns, about 0.2 to 0.5 s
BATCHES = 5  # in which the requests of one figure are made

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for each figure of a series."""

    rounds: int
    requests: int
    seconds: float
    starts: int
    searches: int
    commands: int
    tables: tuple[int, ...]  # numbers of mappings with which all is measured, ascending
    lists: int  # GetListOfPortMappings
    turns: int  # of first packets


TABLES = (FEW, SOME, MANY)
QUICK = Effort(rounds=1, requests=30, seconds=0.5, starts=2, searches=5, commands=3, tables=TABLES, lists=3, turns=5)
USUAL = Effort(
    rounds=3, requests=100, seconds=1.5, starts=3, searches=10, commands=10, tables=TABLES, lists=10, turns=15
)
FULL = Effort(
    rounds=1, requests=100, seconds=1.5, starts=3, searches=10, commands=10, tables=(*TABLES, MOST), lists=10, turns=25
)


class Series:
    """Go through ``steps`` once."""

    def __init__(self, variant: Variant, lab: Lab, gateway: Gateway, effort: Effort) -> None:
        self._variant = variant
        self._lab = lab
        self._gateway = gateway
        self._effort = effort
        self.figures: Figures = {}  # those measured so far
        self._loops: list[float] = []
        self._held: list[Entry] = []
        self._ports = itertools.count(FIRST_PORT)
        self._point: ControlPoint

    def steps(self) -> Iterator[None]:
        """Measure; after each step somebody else may."""
        self._lab.lan.run(["ip", "addr", "add", f"{SECOND_ADDRESS}/24", "dev", "eth0"])
        self._starts()
        yield
        self._point = ControlPoint(self._lab)
        self._memory("idle")
        self._searches()
        self._addresses()
        yield
        oldest = self._add_tcp()
        for present in self._effort.tables:
            self._machine()
            if present == self._effort.tables[-1]:
                self._rush(present)
            else:
                self._fill(present)
            yield
            yield from self._actions(present)
            if present >= MANY:
                self._walk(present)
                self._memory(f"n{present}")
                yield
            if present == MANY and isinstance(self._gateway, Igdpcp):
                self._list(present)
                self._commands(self._gateway)
            self._packets(present, oldest)
            yield
        self._gateway.stop()

    def _machine(self) -> None:
        """How fast the machine itself is meanwhile; others may share it."""
        began = time.perf_counter()
        for _ in range(LOOP):
            pass
        self._loops.append(1000 * (time.perf_counter() - began))
        self.figures["loop"] = statistics.median(self._loops)

    def _starts(self) -> None:
        """Start it several times; the last one stays."""
        took = []
        for number in range(self._effort.starts):
            if number:
                self._gateway.stop()
            began = time.perf_counter()
            took.append(1000 * (_start(self._lab, self._gateway) - began))
        self.figures["start"] = statistics.median(took)

    def _memory(self, when: str) -> None:
        for kind, megabytes in memory(self._gateway.pid).items():
            self.figures[f"{kind}_{when}"] = megabytes
            self.figures[f"{kind}_{when}_growth"] = megabytes - self.figures[f"{kind}_idle"]

    def _searches(self) -> None:
        count = self._effort.searches
        took = self._lab.lan.inside(lambda: [client.search_latency(LAN_ADDRESS) for _ in range(count)])
        self.figures["search"] = 1000 * statistics.median(took)

    def _addresses(self) -> None:
        """GetExternalIPAddress, by one connection after the other and by many at once."""
        request = self._point.request("GetExternalIPAddress")
        seconds = self._effort.seconds
        on_lan = self._lab.lan.inside
        self.figures["address_1"] = on_lan(lambda: client.one_after_another(TARGET, request, seconds))
        sources = [LAN_ADDRESS, SECOND_ADDRESS] * (CROWD // 2)
        crowd = client.Crowd(TARGET, [(source, itertools.repeat(request, CROWD_EACH)) for source in sources])
        self.figures[f"address_{CROWD}"] = CROWD * CROWD_EACH / on_lan(crowd.run)
        self.figures[f"address_{CROWD}_p99"] = 1000 * percentile(crowd.took, 99)
        self.figures[f"address_{CROWD}_worst"] = 1000 * max(crowd.took)

    def _fill(self, present: int) -> None:
        """Add until there are ``present`` mappings, one at a time."""
        new = self._new(present - len(self._held))
        self._point.ask(map(self._point.add, new))
        self._held += new

    def _rush(self, present: int) -> None:
        """Empty the table, then fill it by several control points at once, which share the work."""
        self._point.ask(map(self._point.delete, self._held))
        self._held = self._new(present)
        requests = iter([self._point.add(entry) for entry in self._held])
        crowd = client.Crowd(TARGET, [(LAN_ADDRESS, requests)] * RUSH)
        self.figures[f"rush_n{present}"] = self._lab.lan.inside(crowd.run)

    def _actions(self, present: int) -> Iterator[None]:
        """Add and delete one mapping at a time, so that their number stays; refresh and look up one that is there."""
        point, standing, times = self._point, self._held[0], self._effort.requests // BATCHES
        took: dict[str, list[float]] = {action: [] for action in ("add", "delete", "refresh", "specific")}
        for _ in range(BATCHES):
            pairs = point.ask(
                request for entry in self._new(times) for request in (point.add(entry), point.delete(entry))
            )
            took["add"] += pairs[0::2]
            took["delete"] += pairs[1::2]
            took["refresh"] += point.ask([point.add(standing)] * times)
            took["specific"] += point.ask([point.specific(standing)] * times)
            yield
        for action, seconds in took.items():
            self._note(f"{action}_n{present}", seconds)
        self.figures[f"add_n{present}_flatness"] = self.figures[f"add_n{present}"] / self.figures[f"add_n{FEW}"]

    def _walk(self, present: int) -> None:
        """GetGenericPortMappingEntry of every index, as control points do who want to see all."""
        indices = range(present)
        walk = [self._point.request("GetGenericPortMappingEntry", NewPortMappingIndex=index) for index in indices]
        self.figures[f"walk_n{present}"] = sum(self._point.ask(walk))

    def _list(self, present: int) -> None:
        """GetListOfPortMappings of all, igdpcp's only: miniupnpd with nftables crashes above 128 entries."""
        ports = {"NewStartPort": FIRST_PORT, "NewEndPort": 65535, "NewProtocol": "UDP"}
        request = self._point.request("GetListOfPortMappings", 2, **ports, NewManage=0, NewNumberOfPorts=present)
        self._note(f"list_n{present}", self._point.ask([request] * self._effort.lists))

    def _packets(self, present: int, oldest: Entry) -> None:
        """What passes the mappings that are there, and a TCP mapping on either side of them."""
        with contextlib.closing(Passage(self._lab)) as passage:
            newest = self._add_tcp()
            through = [oldest.port, newest.port]
            self.figures[f"connections_n{present}"] = passage.connections(through, self._effort.seconds)
            self._point.ask([self._point.delete(newest)])
            found = self._slowdown(passage)
        self.figures["first_packet"] = 1e6 * found.one
        self.figures[f"first_packet_n{present}"] = found.ratio
        self.figures[f"first_packet_n{present}_scattered"] = found.scattered

    def _slowdown(self, passage: Passage) -> Slowdown:
        """Compared with a gateway of the same kind that stands beside this one and holds one mapping."""
        ports = [entry.port for entry in self._held]
        with self._variant.in_a_lab() as (lab, gateway):
            _start(lab, gateway)
            point = ControlPoint(lab)
            point.ask([point.add(self._held[0])])
            with contextlib.closing(Passage(lab)) as single:
                found = slowdown(passage, ports, single, ports[0], self._effort.turns)
            gateway.stop()
        return found

    def _add_tcp(self) -> Entry:
        """The mapping of a TCP listener."""
        entry = Entry(next(self._ports), "TCP")
        self._point.ask([self._point.add(entry)])
        return entry

    def _commands(self, gateway: Igdpcp) -> None:
        """The command line, outside of any namespace, as it needs none."""
        status = [sys.executable, "-m", "igdpcp.cli", "--socket", str(gateway.daemon.control_socket), "status"]
        self.figures["status"] = self._wall_time(status)
        self.figures["version"] = self._wall_time([sys.executable, "-m", "igdpcp", "--version"])

    def _wall_time(self, argv: list[str]) -> float:
        took = []
        for _ in range(self._effort.commands):
            began = time.perf_counter()
            subprocess.run(argv, check=True, capture_output=True, cwd=ROOT)
            took.append(1000 * (time.perf_counter() - began))
        return statistics.median(took)

    def _new(self, count: int) -> list[Entry]:
        """Mappings on ports that were never used before."""
        return [Entry(port) for port in itertools.islice(self._ports, count)]

    def _note(self, name: str, seconds: Iterable[float]) -> None:
        took = [1000 * second for second in seconds]
        self.figures[name] = statistics.median(took)
        self.figures[f"{name}_p90"] = percentile(took, 90)


def _start(lab: Lab, gateway: Gateway) -> float:
    """Start it and wait until it grants mappings; the moment of its first answer to M-SEARCH."""
    gateway.launch()
    found = lab.lan.inside(lambda: client.first_search_answer(LAN_ADDRESS, START_PATIENCE))
    gateway.wait_until_ready()
    return found


def percentile(values: list[float], percent: int) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, len(ranked) * percent // 100)]
