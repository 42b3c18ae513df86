# SPDX-License-Identifier: Apache-2.0
"""What the series mean: medians, spread, the ratio to the peer, and the limit that igdpcp has to keep."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gateways import BACKENDS, Igdpcp, Miniupnpd
from benchmarks.series import CROWD, FEW, MANY, MOST, Figures
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


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``limits`` by back-end, where there is one."""

    figure: str
    title: str
    limits: Mapping[str, Limit]
    digits: int = 2


def _both(limit: Limit) -> dict[str, Limit]:
    return dict.fromkeys(BACKENDS, limit)


ROWS = (
    Row(f"add_n{FEW}", f"AddPortMapping, new, N={FEW}, ms", _both(Limit(2.4))),
    Row(f"add_n{FEW}_p90", "— its p90, ms", {}),
    Row(f"add_n{MANY}", f"AddPortMapping, new, N={MANY}, ms", {"nftables": Limit(2.4), "iptables": Limit(7.7)}),
    Row(f"add_n{MANY}_p90", "— its p90, ms", {}),
    Row(f"add_n{MOST}", f"AddPortMapping, new, N={MOST}, ms", {"nftables": Limit(2.4), "iptables": Limit(25.0)}),
    Row(f"delete_n{FEW}", f"DeletePortMapping, N={FEW}, ms", {"nftables": Limit(2.4)}),
    Row(f"delete_n{MANY}", f"DeletePortMapping, N={MANY}, ms", {"nftables": Limit(2.4)}),
    Row(f"delete_n{MOST}", f"DeletePortMapping, N={MOST}, ms", {"nftables": Limit(2.4)}),
    Row(f"refresh_n{FEW}", f"refresh, N={FEW}, ms", _both(Limit(0.8))),
    Row(f"refresh_n{MANY}", f"refresh, N={MANY}, ms", _both(Limit(0.8))),
    Row(f"refresh_n{MOST}", f"refresh, N={MOST}, ms", _both(Limit(0.8))),
    Row(f"specific_n{FEW}", f"GetSpecificPortMappingEntry, N={FEW}, ms", _both(Limit(0.8))),
    Row(f"specific_n{MANY}", f"GetSpecificPortMappingEntry, N={MANY}, ms", _both(Limit(0.8))),
    Row(f"specific_n{MOST}", f"GetSpecificPortMappingEntry, N={MOST}, ms", _both(Limit(0.8))),
    Row(f"walk_n{MANY}", f"GetGenericPortMappingEntry, all of {MANY}, s", _both(Limit(0.8))),
    Row(f"walk_n{MOST}", f"GetGenericPortMappingEntry, all of {MOST}, s", _both(Limit(4.0))),
    Row(f"list_n{MANY}", f"GetListOfPortMappings, {MANY}, ms", _both(Limit(40.0)), 1),
    Row("address_1", "GetExternalIPAddress, 1 connection, /s", _both(Limit(0.2, least=True, of_peer=True)), 0),
    Row(f"address_{CROWD}", f"— {CROWD} connections, /s", _both(Limit(1.5, least=True, of_peer=True)), 0),
    Row(f"address_{CROWD}_p99", "— their p99, ms", _both(Limit(50.0)), 1),
    Row(f"address_{CROWD}_worst", "— their slowest, ms", {}, 1),
    Row("search", "answer to M-SEARCH, ms", _both(Limit(10.0))),
    Row("start", "start to first SSDP answer, ms", _both(Limit(600.0)), 0),
    Row("version", "igdpcpd --version, ms", {}, 0),
    Row("VmRSS_idle", "RSS, idle, MB", {"nftables": Limit(46.0)}, 1),
    Row("RssAnon_idle", "— its RssAnon, MB", {}, 1),
    Row(f"VmRSS_n{MANY}", f"RSS, N={MANY}, MB", {}, 1),
    Row(f"RssAnon_n{MANY}", "— its RssAnon, MB", {}, 1),
    Row(f"VmRSS_n{MOST}", f"RSS, N={MOST}, MB", {}, 1),
    Row(f"RssAnon_n{MOST}", "— its RssAnon, MB", {}, 1),
    Row("status", f"igdpcp-cli status, N={MANY}, ms", _both(Limit(250.0)), 0),
)


def table(results: Results) -> str:
    """The Markdown table, one part for each back-end."""
    lines = []
    for backend in BACKENDS:
        ours, peers = (results.get(f"{kind.name} {backend}", ()) for kind in (Igdpcp, Miniupnpd))
        if not ours:
            continue
        lines += [
            f"| {backend} | igdpcp | (spread) | miniupnpd | (spread) | ratio | must | met |",
            "|---|---|---|---|---|---|---|---|",
            *(
                _line(row, row.limits.get(backend), values, _values(peers, row))
                for row in ROWS
                if (values := _values(ours, row))
            ),
            "",
        ]
    return "\n".join(lines)


def _values(rounds: Sequence[Figures], row: Row) -> list[float]:
    return [figures[row.figure] for figures in rounds if row.figure in figures]


def _line(row: Row, limit: Limit | None, ours: list[float], peers: list[float]) -> str:
    middle = statistics.median(ours)
    peer = statistics.median(peers) if peers else None
    ratio = f"{middle / peer:.2f}" if peer else ""
    met = "" if limit is None else "yes" if limit.met(middle, peer) else "**no**"
    cells = [row.title, *_cells(ours, row.digits), *_cells(peers, row.digits), ratio, str(limit or ""), met]
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
