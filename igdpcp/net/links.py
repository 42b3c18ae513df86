# SPDX-License-Identifier: Apache-2.0
"""Links, addresses and IPv4 default routes: read in a thread of their own, taken apart by pyroute2, and watched.

Loading pyroute2 and reading block, so they only ever happen in the thread, which hands plain values to the loop. What
is read is read whole: the kernel's notifications say *when*, so a notification that was lost or overran its buffer
costs nothing but a second look.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import IPAddress
from igdpcp.net import message_classes
from igdpcp.values import dataclass

LOG = logging.getLogger("igdpcp.net")
SETTLE_SECONDS = 0.05  # notifications come in bursts
PAUSES_PER_READING = 9.0  # where links or routes change all the time, reading them takes no larger share of it
RETRY_SECONDS = 5.0
MAIN_TABLE = 254  # rtnetlink(7): RT_TABLE_MAIN
# rtnetlink(7): RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
NOTIFICATION_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
# linux/if_addr.h: IFA_F_TEMPORARY, IFA_F_DEPRECATED; IFA_F_DADFAILED, IFA_F_TENTATIVE
IPV6_NOT_TO_BE_NAMED = 0x01 | 0x20
IPV6_NOT_OURS = 0x08 | 0x40
RTN_UNICAST = 1  # rtnetlink(7)
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300  # netlink(7)
NLMSG_ERROR, NLMSG_DONE, NLMSG_ALIGNTO = 2, 3, 4  # netlink(7), netlink(3)
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE = 18, 22, 26  # linux/rtnetlink.h
_NOTIFICATION_SPACE = 65536
_DUMP_SPACE = 65536  # the kernel fills at most half of it at a time
_HEADER = struct.Struct("=LHHLL")  # netlink(7): struct nlmsghdr
_ERROR = struct.Struct("=l")
_MESSAGES = ("ifinfmsg", "ifaddrmsg", "rtmsg")

Parsed = tuple[Any, dict[str, Any]]  # a message of pyroute2 and its attributes by name
IPInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route; ``gateway`` is None on a point-to-point link."""

    device: str
    gateway: IPAddress | None
    metric: int


@dataclass(frozen=True, slots=True)
class LinkSnapshot:
    """What the kernel had at one moment: every device's index, addresses in the kernel's order, routes by metric.

    ``addresses`` are those that others can be told of; ``unnamed`` are ours, too, but on their way out or temporary.
    """

    devices: Mapping[str, int]
    addresses: tuple[tuple[str, IPInterface], ...]
    default_routes: tuple[DefaultRoute, ...]
    unnamed: tuple[tuple[str, IPInterface], ...] = ()
    default_routes6: tuple[DefaultRoute, ...] = ()


def read_links() -> LinkSnapshot:
    """Ask the kernel; blocks. Raises OurFault when netlink cannot be used."""
    try:
        link_message, address_message, route_message = message_classes.load("pyroute2.netlink.rtnl", _MESSAGES)
    except ImportError as error:
        raise OurFault(f"pyroute2 cannot be loaded ({error}); install python3-pyroute2") from error
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            links = _dump(sock, RTM_GETLINK, socket.AF_UNSPEC, link_message)
            addresses = _dump(sock, RTM_GETADDR, socket.AF_INET, address_message)
            addresses += _dump(sock, RTM_GETADDR, socket.AF_INET6, address_message)
            routes = _dump(sock, RTM_GETROUTE, socket.AF_INET, route_message)
            routes6 = _dump(sock, RTM_GETROUTE, socket.AF_INET6, route_message)
    except OSError as error:
        raise OurFault(f"cannot read links and routes from the kernel: {error}") from error
    names = {message["index"]: str(attributes["IFLA_IFNAME"]) for message, attributes in links}
    ours = [parsed for parsed in addresses if parsed[0]["index"] in names and not _has(parsed, IPV6_NOT_OURS)]
    return LinkSnapshot(
        devices={name: index for index, name in names.items()},
        addresses=tuple(_interface(parsed, names) for parsed in ours if not _has(parsed, IPV6_NOT_TO_BE_NAMED)),
        default_routes=_default_routes(routes, names),
        unnamed=tuple(_interface(parsed, names) for parsed in ours if _has(parsed, IPV6_NOT_TO_BE_NAMED)),
        default_routes6=_default_routes(routes6, names),
    )


def _dump(sock: socket.socket, request: int, family: int, message_class: Any) -> list[Parsed]:
    """Every message, with its attributes, of the kernel's answer to a request for all of a kind (netlink(7))."""
    body = bytes([family, 0, 0, 0])  # struct rtgenmsg, padded
    sock.send(_HEADER.pack(_HEADER.size + len(body), request, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + body)
    found: list[Parsed] = []
    while True:
        data = sock.recv(_DUMP_SPACE)
        at = 0
        while at < len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == NLMSG_DONE:
                return found
            if kind == NLMSG_ERROR:
                code = -_ERROR.unpack_from(data, at + _HEADER.size)[0]
                raise OSError(code, os.strerror(code))
            message = message_class(data[at : at + length])
            message.decode()
            if family in (socket.AF_UNSPEC, message["family"]):  # a kernel without IPv6 answers with all it has
                found.append((message, _attributes(message)))
            at += length + -length % NLMSG_ALIGNTO


def _attributes(message: Any) -> dict[str, Any]:
    return {attribute[0]: attribute[1] for attribute in message["attrs"]}


def _interface(address: Parsed, names: dict[int, str]) -> tuple[str, IPInterface]:
    message, attributes = address
    own = attributes.get("IFA_LOCAL") or attributes["IFA_ADDRESS"]
    return names[message["index"]], ip_interface(f"{own}/{message['prefixlen']}")


def _has(address: Parsed, ipv6_flags: int) -> bool:
    message = address[0]
    return message["family"] == socket.AF_INET6 and bool(message["flags"] & ipv6_flags)


def _default_routes(routes: list[Parsed], names: dict[int, str]) -> tuple[DefaultRoute, ...]:
    """By metric; those that are for some sources only, as OpenWrt makes them for IPv6, count as well."""
    found = []
    for message, attributes in routes:
        if message["dst_len"] or message["type"] != RTN_UNICAST:
            continue
        if attributes.get("RTA_TABLE", message["table"]) != MAIN_TABLE:
            continue
        gateway = attributes.get("RTA_GATEWAY")
        device = names.get(attributes.get("RTA_OIF", 0))
        if device:
            metric = int(attributes.get("RTA_PRIORITY", 0))
            found.append(DefaultRoute(device, ip_address(gateway) if gateway else None, metric))
    return tuple(sorted(found, key=lambda route: route.metric))


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
        started = ended = self._loop.time()
        while True:
            await self._news.wait()
            pause = ended + PAUSES_PER_READING * (ended - started) - self._loop.time()
            await asyncio.sleep(max(SETTLE_SECONDS, pause))
            self._news.clear()
            started = self._loop.time()
            try:
                latest = await self._loop.run_in_executor(self._thread, read_links)
            except Exception as error:  # the watcher may not end: nothing would be noticed any more
                LOG.error(line("links_unknown", reason=error), exc_info=not isinstance(error, OurFault))
                self._loop.call_later(RETRY_SECONDS, self._news.set)
                continue
            finally:
                ended = self._loop.time()
            if latest == snapshot:
                continue
            snapshot = latest
            try:
                self._on_change(latest)
            except Exception:
                LOG.exception(line("link_change_failed"))
