# SPDX-License-Identifier: Apache-2.0
"""Links, IPv4 addresses and default routes: read with pyroute2 in a thread of its own, and watched.

pyroute2 0.9 cannot be used from a running event loop and 0.7 has no asynchronous form, so it only ever runs in the
thread and hands plain values to the loop. What it reads is read whole: the kernel's notifications say *when*, so a
notification that was lost or overran its buffer costs nothing but a second look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from igdpcp.errors import OurFault
from igdpcp.log import line

LOG = logging.getLogger("igdpcp.net")
SETTLE_SECONDS = 0.05  # notifications come in bursts
RETRY_SECONDS = 5.0
MAIN_TABLE = 254  # rtnetlink(7): RT_TABLE_MAIN
NOTIFICATION_GROUPS = 0x1 | 0x10 | 0x40  # rtnetlink(7): RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
_NOTIFICATION_SPACE = 65536


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route; ``gateway`` is None on a point-to-point link."""

    device: str
    gateway: IPv4Address | None
    metric: int


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """What the kernel had at one moment; addresses per device in the kernel's order, routes by metric."""

    devices: frozenset[str]
    addresses: tuple[tuple[str, IPv4Interface], ...]
    default_routes: tuple[DefaultRoute, ...]


def read_links() -> LinkSnapshot:
    """Ask the kernel; blocks. Raises OurFault when netlink cannot be used."""
    try:
        from pyroute2 import IPRoute  # 13 MB: only the thread that needs it pays
    except ImportError as error:
        raise OurFault(f"pyroute2 cannot be loaded ({error}); install python3-pyroute2") from error
    try:
        with IPRoute() as netlink:
            links = [(message["index"], _attributes(message)) for message in netlink.get_links()]
            addresses = [(message, _attributes(message)) for message in netlink.get_addr(family=socket.AF_INET)]
            routes = [
                (message, _attributes(message))
                for message in netlink.get_routes(family=socket.AF_INET)
                if message["dst_len"] == 0
            ]
    except OSError as error:
        raise OurFault(f"cannot read links and routes from the kernel: {error}") from error
    names = {index: str(attributes["IFLA_IFNAME"]) for index, attributes in links}
    return LinkSnapshot(
        devices=frozenset(names.values()),
        addresses=tuple(
            (names[message["index"]], IPv4Interface(f"{_own_address(attributes)}/{message['prefixlen']}"))
            for message, attributes in addresses
            if message["index"] in names
        ),
        default_routes=tuple(sorted(_default_routes(routes, names), key=lambda route: route.metric)),
    )


def _attributes(message: Any) -> dict[str, Any]:
    return {attribute[0]: attribute[1] for attribute in message["attrs"]}


def _own_address(attributes: dict[str, Any]) -> str:
    return str(attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"])


def _default_routes(routes: list[tuple[Any, dict[str, Any]]], names: dict[int, str]) -> list[DefaultRoute]:
    found = []
    for message, attributes in routes:
        if attributes.get("RTA_TABLE", message["table"]) != MAIN_TABLE:
            continue
        gateway = attributes.get("RTA_GATEWAY")
        device = names.get(attributes.get("RTA_OIF", 0))
        if device:
            metric = int(attributes.get("RTA_PRIORITY", 0))
            found.append(DefaultRoute(device, IPv4Address(gateway) if gateway else None, metric))
    return found


class LinkWatcher:
    """Calls ``on_change`` on the event loop whenever the snapshot is another one."""

    def __init__(self, on_change: Callable[[LinkSnapshot], None]) -> None:
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="links")
        self._socket: socket.socket | None = None
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> LinkSnapshot:
        """Begin to watch; returns what is there now. Raises OurFault."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        sock.bind((0, NOTIFICATION_GROUPS))
        self._socket = sock
        self._loop.add_reader(sock, self._notified)
        snapshot = await self._loop.run_in_executor(self._thread, read_links)
        self._task = self._loop.create_task(self._watch(snapshot))
        return snapshot

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self._thread.shutdown(wait=False)

    def _notified(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):  # ENOBUFS too: the snapshot is read whole anyway
            while self._socket.recv(_NOTIFICATION_SPACE):
                pass
        self._news.set()

    async def _watch(self, snapshot: LinkSnapshot) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._news.clear()
            try:
                latest = await self._loop.run_in_executor(self._thread, read_links)
            except OurFault as fault:
                LOG.error(line("links_unknown", reason=fault))
                self._loop.call_later(RETRY_SECONDS, self._news.set)
                continue
            if latest != snapshot:
                snapshot = latest
                self._on_change(latest)
