# SPDX-License-Identifier: Apache-2.0
"""Drives miniupnpc's Python module."""

from __future__ import annotations

import miniupnpc
from orders import serve

DISCOVERY_MILLISECONDS = 200

gateway = miniupnpc.UPnP()
gateway.discoverdelay = DISCOVERY_MILLISECONDS


def find() -> str:
    gateway.discover()
    gateway.selectigd()
    return str(gateway.externalipaddress())


def add(protocol: str, port: int) -> bool:
    return bool(gateway.addportmapping(port, protocol, gateway.lanaddr, port, "python3-miniupnpc", ""))


def entry(protocol: str, port: int) -> object:
    return gateway.getspecificportmapping(port, protocol)


def entries() -> list[object]:
    rows: list[object] = []
    while (row := gateway.getgenericportmapping(len(rows))) is not None:
        rows.append(row)
    return rows


def delete(protocol: str, port: int) -> bool:
    return bool(gateway.deleteportmapping(port, protocol))


serve({"find": find, "add": add, "entry": entry, "entries": entries, "delete": delete})
