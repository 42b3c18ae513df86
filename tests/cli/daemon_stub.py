# SPDX-License-Identifier: Apache-2.0
"""A control socket with canned answers, and the shapes that the daemon answers with."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from igdpcp.daemon.control import Command, ControlServer

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "mode": "cascaded",
    "backend": "nftables",
    "activation": {"state": "active", "reason": "answered ANNOUNCE", "since_seconds": 8000, "usable": True},
    "upstream": {
        "name": "carrier",
        "type": "pcp",
        "server": "100.64.12.1",
        "addresses": ["100.64.12.1"],
        "origin": "configured",
        "identity": "carrier",
        "epoch": 12,
        "counters": {},
    },
    "external_address": "62.0.0.1",
    "external_address_reason": "learnt from the carrier",
    "wan": {"device": "wan", "address": "100.64.12.34"},
    "lans": [{"device": "br-lan", "addresses": ["192.168.1.1/24", "2600:1::1/64", "fe80::1/64"]}],
    "igd": {
        "advertising": True,
        "conflict": None,
        "http_port": 5000,
        "location": "http://192.168.1.1:5000/rootDesc.xml",
        "version": "auto",
    },
    "pcp_server": {"languages": ["pcp", "nat-pmp"], "addresses": ["192.168.1.1"], "epoch": 8039, "waiting": 0},
    "mappings": {"active": 12, "local_only": 0, "pending": 0, "limit": 5000},
    "pinholes": {"open": 0, "limit": 1000},
    "firewall": {"active": True, "problem": None, "compared": None},
    "errors": [],
    "uptime_seconds": 8040,
    "static": {"wanted": 0, "open": 0, "problems": []},
    "port_conflicts": [],
    "warnings": [],
    "counters": {},
}

MAPPING: dict[str, Any] = {
    "kind": "mapping",
    "id": "m1",
    "protocol": "tcp",
    "external_address": "62.0.0.1",
    "external_port": 8080,
    "public_port": 8080,
    "client": "192.168.1.50",
    "client_port": 80,
    "wan_port": 8080,
    "remote_host": "",
    "description": "web",
    "requester": "192.168.1.50",
    "owner": "upnp1",
    "shared_with": "",
    "agent": "",
    "state": "active",
    "local_only": False,
    "lease_left": None,
    "grant_left": 3600,
    "upstream": "carrier",
}

PINHOLE: dict[str, Any] = {
    **MAPPING,
    "kind": "pinhole",
    "id": "pinhole-17",
    "external_address": "2600:1::50",
    "external_port": 7000,
    "public_port": 7000,
    "client": "2600:1::50",
    "client_port": 7000,
    "wan_port": None,
    "remote_port": 0,
    "description": "",
    "requester": "2600:1::50",
    "lease_left": 600,
    "grant_left": None,
    "upstream": None,
}


def status(**changes: Any) -> dict[str, Any]:
    """A healthy status with these parts replaced; a dict replaces only the keys that it has."""
    result = copy.deepcopy(STATUS)
    for key, value in changes.items():
        if isinstance(value, dict):
            result[key].update(value)
        else:
            result[key] = value
    return result


def mapping(**changes: Any) -> dict[str, Any]:
    """The mapping above with these keys replaced."""
    return {**MAPPING, **changes}


def pinhole(**changes: Any) -> dict[str, Any]:
    """The pinhole above with these keys replaced."""
    return {**PINHOLE, **changes}


@contextmanager
def serving(path: str, commands: dict[str, Command]) -> Iterator[None]:
    """Serve ``commands`` at ``path`` from a thread with an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = ControlServer(path, commands)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
