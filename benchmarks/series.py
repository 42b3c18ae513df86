# SPDX-License-Identifier: Apache-2.0
"""One series: everything that is measured of one gateway in one lab, as figures by name."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from benchmarks import client
from benchmarks.gateways import Gateway, Igdpcp, memory
from tests.lab.carrier import ROOT
from tests.lab.clients import HTTP_PORT, soap_client
from tests.lab.topology import LAN_ADDRESS, ROUTER_LAN_ADDRESS, Lab
from tests.support.soap_client import SERVICE_TYPE, envelope

TARGET = (ROUTER_LAN_ADDRESS, HTTP_PORT)
URN = SERVICE_TYPE.format(service="WANIPConnection", version=1)
CROWD = 32
CROWD_EACH = 64
SECOND_ADDRESS = "192.168.1.51"  # igdpcp serves 16 connections of one host at a time
START_PATIENCE = 10.0
FEW, MANY, MOST = 10, 1000, 5000
FIRST_PORT = 20000

Figures = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done for each figure of a series."""

    rounds: int
    requests: int
    seconds: float
    starts: int
    searches: int
    commands: int
    tables: tuple[int, ...]  # numbers of mappings with which the actions are measured, ascending
    lists: int  # GetListOfPortMappings


QUICK = Effort(rounds=1, requests=30, seconds=0.5, starts=2, searches=5, commands=3, tables=(FEW, MANY), lists=3)
USUAL = Effort(rounds=3, requests=100, seconds=1.5, starts=3, searches=10, commands=10, tables=(FEW, MANY), lists=10)
FULL = Effort(
    rounds=1, requests=100, seconds=1.5, starts=3, searches=10, commands=10, tables=(FEW, MANY, MOST), lists=10
)


class Series:
    """``run`` once."""

    def __init__(self, lab: Lab, gateway: Gateway, effort: Effort) -> None:
        self._lab = lab
        self._gateway = gateway
        self._effort = effort
        self._figures: Figures = {}
        self._port = FIRST_PORT
        self._control: tuple[str, int, str]

    def run(self) -> Figures:
        self._lab.lan.run(["ip", "addr", "add", f"{SECOND_ADDRESS}/24", "dev", "eth0"])
        self._starts()
        self._control = (*TARGET, soap_client(self._lab.lan).control_path("WANIPConnection"))
        self._memory("idle")
        self._searches()
        self._addresses()
        for present in self._effort.tables:
            self._mappings(present)
            self._reads(present)
            if present > FEW:
                self._walk(present)
                self._memory(f"n{present}")
            if present == MANY and isinstance(self._gateway, Igdpcp):
                self._list(present)
                self._commands(self._gateway)
        self._gateway.stop()
        return self._figures

    def _starts(self) -> None:
        """Start it several times; the last one stays."""
        took = []
        for number in range(self._effort.starts):
            if number:
                self._gateway.stop()
            began = time.perf_counter()
            self._gateway.launch()
            found = self._on_lan(lambda: client.first_search_answer(LAN_ADDRESS, START_PATIENCE))
            took.append(1000 * (found - began))
            self._gateway.wait_until_ready()
        self._figures["start"] = statistics.median(took)

    def _memory(self, when: str) -> None:
        for kind, megabytes in memory(self._gateway.pid).items():
            self._figures[f"{kind}_{when}"] = megabytes

    def _searches(self) -> None:
        count = self._effort.searches
        took = self._on_lan(lambda: [client.search_latency(LAN_ADDRESS) for _ in range(count)])
        self._figures["search"] = 1000 * statistics.median(took)

    def _addresses(self) -> None:
        """GetExternalIPAddress, by one connection after the other and by many at once."""
        request = self._request("GetExternalIPAddress")
        seconds = self._effort.seconds
        self._figures["address_1"] = self._on_lan(lambda: client.one_after_another(TARGET, request, seconds))
        crowd = client.Crowd(TARGET, request, [LAN_ADDRESS, SECOND_ADDRESS] * (CROWD // 2), CROWD_EACH)
        self._figures[f"address_{CROWD}"] = self._on_lan(crowd.run)
        self._figures[f"address_{CROWD}_p99"] = 1000 * percentile(crowd.took, 99)
        self._figures[f"address_{CROWD}_worst"] = 1000 * max(crowd.took)

    def _mappings(self, present: int) -> None:
        """Fill up to ``present`` mappings, then add, refresh and delete one at a time, so that their number stays."""
        held = self._port - FIRST_PORT
        self._ask([self._add(self._next_port()) for _ in range(present - held)])
        standing = self._add(FIRST_PORT)
        ports = range(self._port, self._port + self._effort.requests)
        pairs = [request for port in ports for request in (self._add(port), self._delete(port))]
        took = self._ask(pairs)
        self._note(f"add_n{present}", took[0::2])
        self._note(f"delete_n{present}", took[1::2])
        self._note(f"refresh_n{present}", self._ask([standing] * self._effort.requests))

    def _reads(self, present: int) -> None:
        """GetSpecificPortMappingEntry of a mapping that is there."""
        known = self._request("GetSpecificPortMappingEntry", **_key(FIRST_PORT))
        self._note(f"specific_n{present}", self._ask([known] * self._effort.requests))

    def _walk(self, present: int) -> None:
        """GetGenericPortMappingEntry of every index, as control points do who want to see all."""
        walk = [self._request("GetGenericPortMappingEntry", NewPortMappingIndex=index) for index in range(present)]
        self._figures[f"walk_n{present}"] = sum(self._ask(walk))

    def _list(self, present: int) -> None:
        """GetListOfPortMappings of all, igdpcp's only: miniupnpd with nftables crashes above 128 entries."""
        urn = SERVICE_TYPE.format(service="WANIPConnection", version=2)
        ports = {"NewStartPort": FIRST_PORT, "NewEndPort": 65535, "NewProtocol": "UDP"}
        body = envelope(urn, "GetListOfPortMappings", {**ports, "NewManage": 0, "NewNumberOfPorts": present})
        request = client.post(self._control, "GetListOfPortMappings", urn, body)
        self._note(f"list_n{present}", self._ask([request] * self._effort.lists))

    def _commands(self, gateway: Igdpcp) -> None:
        """The command line, outside of any namespace, as it needs none."""
        status = [sys.executable, "-m", "igdpcp.cli", "--socket", str(gateway.daemon.control_socket), "status"]
        self._figures["status"] = self._wall_time(status)
        self._figures["version"] = self._wall_time([sys.executable, "-m", "igdpcp", "--version"])

    def _wall_time(self, argv: list[str]) -> float:
        took = []
        for _ in range(self._effort.commands):
            began = time.perf_counter()
            subprocess.run(argv, check=True, capture_output=True, cwd=ROOT)
            took.append(1000 * (time.perf_counter() - began))
        return statistics.median(took)

    def _next_port(self) -> int:
        self._port += 1
        return self._port - 1

    def _request(self, action: str, **arguments: object) -> bytes:
        return client.post(self._control, action, URN, envelope(URN, action, arguments))

    def _add(self, port: int) -> bytes:
        return self._request(
            "AddPortMapping",
            NewRemoteHost="",
            NewExternalPort=port,
            NewProtocol="UDP",
            NewInternalPort=port,
            NewInternalClient=LAN_ADDRESS,
            NewEnabled=1,
            NewPortMappingDescription="benchmark",
            NewLeaseDuration=0,
        )

    def _delete(self, port: int) -> bytes:
        return self._request("DeletePortMapping", **_key(port))

    def _ask(self, requests: list[bytes]) -> list[float]:
        return self._on_lan(lambda: client.latencies(TARGET, requests))

    def _on_lan(self, work: Callable[[], T]) -> T:
        return self._lab.lan.inside(work)

    def _note(self, name: str, seconds: Iterable[float]) -> None:
        took = [1000 * second for second in seconds]
        self._figures[name] = statistics.median(took)
        self._figures[f"{name}_p90"] = percentile(took, 90)


def _key(port: int) -> dict[str, object]:
    return {"NewRemoteHost": "", "NewExternalPort": port, "NewProtocol": "UDP"}


def percentile(values: list[float], percent: int) -> float:
    """The nearest-rank percentile."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, len(ranked) * percent // 100)]
