# SPDX-License-Identifier: Apache-2.0
"""What the series mean: medians, spread, the ratio to the peer, and the limit that igdpcp has to keep."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gateways import BACKENDS, Igdpcp, Miniupnpd
from benchmarks.series import CROWD, FEW, LOOP, MANY, MOST, RUSH, SOME, Figures
from igdpcp import __version__
from tests.lab.carrier import PEERS

LIBRARIES = ("h11", "pyroute2", "ujson", "click")
Results = Mapping[str, Sequence[Figures]]  # by the key of the variant, one item for each round


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that igdpcp may need, or the least that it must reach; ``of_peer``: times the peer's figure."""

    value: float
    least: bool = False
    of_peer: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.value:g}{' ×' if self.of_peer else ''}"

    def met(self, ours: float, peer: float | None) -> bool:
        value = self.value * (peer or 0.0) if self.of_peer else self.value
        return ours >= value if self.least else ours <= value


Limits = Mapping[str, Limit]  # by back-end, where there is one


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``must``: what igdpcp has to keep; ``goal``: what it is after."""

    figure: str
    title: str
    must: Limits = field(default_factory=dict)
    goal: Limits = field(default_factory=dict)
    digits: int = 2


def _most(nftables: float | None = None, iptables: float | None = None) -> Limits:
    values = dict(zip(BACKENDS, (nftables, iptables), strict=True))
    return {backend: Limit(value) for backend, value in values.items() if value is not None}


def _both(most: float) -> Limits:
    return _most(most, most)


def _of_peer(least: float) -> Limits:
    return dict.fromkeys(BACKENDS, Limit(least, least=True, of_peer=True))


def _quick_reads(action: str, title: str, goal: float) -> Iterator[Row]:
    """What needs neither the upstream nor the kernel."""
    for present in TABLES:
        yield Row(f"{action}_n{present}", f"{title}, N={present}, ms", _both(0.8), _both(goal))


TABLES = (FEW, SOME, MANY, MOST)
ROWS = (
    Row("loop", f"{LOOP} turns of an empty loop, ms", digits=0),
    Row(f"add_n{FEW}", f"AddPortMapping, new, N={FEW}, ms", _both(2.4), _both(1.0)),
    Row(f"add_n{FEW}_p90", "— its p90, ms"),
    Row(f"add_n{SOME}", f"AddPortMapping, new, N={SOME}, ms", _most(2.4), _most(1.0)),
    Row(f"add_n{MANY}", f"AddPortMapping, new, N={MANY}, ms", _most(2.4, 7.7), _most(1.0, 4.0)),
    Row(f"add_n{MANY}_p90", "— its p90, ms"),
    Row(f"add_n{MOST}", f"AddPortMapping, new, N={MOST}, ms", _most(2.4, 25.0), _most(1.0, 16.0)),
    Row(f"add_n{MOST}_p90", "— its p90, ms"),
    Row(f"add_n{MANY}_flatness", f"AddPortMapping, N={MANY} : N={FEW}"),
    Row(f"add_n{MOST}_flatness", f"AddPortMapping, N={MOST} : N={FEW}", goal=_most(1.2)),
    Row(f"rush_n{MANY}", f"AddPortMapping, 0 to {MANY}, {RUSH} at a time, s"),
    Row(f"rush_n{MOST}", f"AddPortMapping, 0 to {MOST}, {RUSH} at a time, s", _most(12.0), _most(5.0), 1),
    *(Row(f"delete_n{n}", f"DeletePortMapping, N={n}, ms", _most(2.4), _most(1.0)) for n in TABLES),
    *_quick_reads("refresh", "refresh", 0.4),
    *_quick_reads("specific", "GetSpecificPortMappingEntry", 0.3),
    Row(f"walk_n{MANY}", f"GetGenericPortMappingEntry, all of {MANY}, s", _both(0.8), _both(0.3)),
    Row(f"walk_n{MOST}", f"GetGenericPortMappingEntry, all of {MOST}, s", _both(4.0), _both(1.5)),
    Row(f"list_n{MANY}", f"GetListOfPortMappings, {MANY}, ms", _both(40.0), _both(15.0), 1),
    Row("address_1", "GetExternalIPAddress, 1 connection, /s", _of_peer(0.2), _of_peer(0.4), 0),
    Row(f"address_{CROWD}", f"— {CROWD} connections, /s", _of_peer(1.5), _of_peer(3.0), 0),
    Row(f"address_{CROWD}_p99", "— their p99, ms", _both(50.0), _both(15.0), 1),
    Row(f"address_{CROWD}_worst", "— their slowest, ms", digits=1),
    Row("search", "answer to M-SEARCH, ms", _both(10.0), _both(3.0)),
    Row("first_packet", "first packet of a connection, 1 mapping, µs"),
    *(Row(f"first_packet_n{n}", f"— N={n} : 1 mapping", _most(1.1), _most(1.05, 3.0)) for n in TABLES),
    *(Row(f"first_packet_n{n}_scattered", f"— N={n}, each through another : 1 mapping") for n in TABLES),
    *(Row(f"connections_n{n}", f"TCP connections through a mapping, N={n}, /s", digits=0) for n in TABLES),
    Row("start", "start to first SSDP answer, ms", _both(600.0), _both(350.0), 0),
    Row("version", "igdpcpd --version, ms", digits=0),
    Row("VmRSS_idle", "RSS, idle, MB", _most(46.0), _most(34.0), 1),
    Row("RssAnon_idle", "— its RssAnon, MB", digits=1),
    Row(f"VmRSS_n{MANY}_growth", f"RSS, N={MANY}, above idle, MB", digits=1),
    Row(f"RssAnon_n{MANY}_growth", "— its RssAnon, MB", digits=1),
    Row(f"VmRSS_n{MOST}_growth", f"RSS, N={MOST}, above idle, MB", _both(10.0), _both(5.0), 1),
    Row(f"RssAnon_n{MOST}_growth", "— its RssAnon, MB", digits=1),
    Row("status", f"igdpcp-cli status, N={MANY}, ms", _both(250.0), _both(120.0), 0),
)


def table(results: Results) -> str:
    """The Markdown table, one part for each back-end."""
    lines = []
    for backend in BACKENDS:
        ours, peers = (results.get(f"{kind.name} {backend}", ()) for kind in (Igdpcp, Miniupnpd))
        if not ours:
            continue
        lines += [
            f"| {backend} | igdpcp | (spread) | miniupnpd | (spread) | ratio | must | met | goal | met |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_line(row, backend, values, _values(peers, row)) for row in ROWS if (values := _values(ours, row))),
            "",
        ]
    return "\n".join(lines)


def _values(rounds: Sequence[Figures], row: Row) -> list[float]:
    return [figures[row.figure] for figures in rounds if row.figure in figures]


def _line(row: Row, backend: str, ours: list[float], peers: list[float]) -> str:
    middle = statistics.median(ours)
    peer = statistics.median(peers) if peers else None
    cells = [row.title, *_cells(ours, row.digits), *_cells(peers, row.digits), f"{middle / peer:.2f}" if peer else ""]
    for limits, no in ((row.must, "**no**"), (row.goal, "no")):
        limit = limits.get(backend)
        cells += ["", ""] if limit is None else [str(limit), "yes" if limit.met(middle, peer) else no]
    return f"| {' | '.join(cells)} |"


def _cells(values: list[float], digits: int) -> list[str]:
    """The median of the series, and their least and greatest."""
    if not values:
        return ["", ""]
    return [f"{statistics.median(values):.{digits}f}", f"{min(values):.{digits}f}–{max(values):.{digits}f}"]


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    peer = subprocess.run([PEERS / BACKENDS[0] / "usr/sbin/miniupnpd", "--version"], capture_output=True, text=True)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": f"{platform.python_version()} in {sys.base_prefix}",
        "libraries": {name: version(name) for name in LIBRARIES},
        "igdpcp": __version__,
        "peer": peer.stdout.splitlines()[0] if peer.stdout else "unknown",
    }


def _processor() -> str:
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            return text.partition(":")[2].strip()
    return platform.machine()
