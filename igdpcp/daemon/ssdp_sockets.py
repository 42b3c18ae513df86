# SPDX-License-Identifier: Apache-2.0
"""The SSDP sockets of the LANs: one that hears the groups for each device and family, one for each address."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

from igdpcp.daemon.flood_guard import FloodGuard
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_PORT, ssdp_group, ssdp_listener, ssdp_speaker
from igdpcp.upnp.ssdp import MESSAGE_LIMIT, Presence
from igdpcp.values import dataclass

RECEIVE_BATCH = 32  # datagrams of a socket read before others get their turn

Sender = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Link:
    """Where searches of one family are heard."""

    device: str
    index: int
    is_ipv6: bool


@dataclass(slots=True, eq=False)
class Door:
    """One of our addresses, its socket, and how the gateway is found there; ``shown``: control points may know it."""

    lan: Lan
    speaker: socket.socket
    presence: Presence
    shown: bool = False

    @property
    def link(self) -> Link:
        return Link(self.lan.device, self.lan.index, self.lan.is_ipv6)

    @property
    def everybody(self) -> Sender:
        """The group to which it is announced from here."""
        group = str(ssdp_group(self.lan.address))
        return (group, SSDP_PORT, 0, self.lan.index) if self.lan.is_ipv6 else (group, SSDP_PORT)


class SsdpSockets:
    """``heard`` is called with the door (None: a group), the link, the datagram and its sender."""

    def __init__(self, guard: FloodGuard, heard: Callable[[Door | None, Link, bytes, Sender], None]) -> None:
        self._guard = guard
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._doors: dict[Lan, Door] = {}
        self._listeners: dict[Link, socket.socket] = {}

    def __iter__(self) -> Iterator[Door]:
        return iter(list(self._doors.values()))

    def __contains__(self, lan: Lan) -> bool:
        return lan in self._doors

    def open(self, lan: Lan, presence: Presence) -> Door:
        """Listen and be ready to speak on that address; raises OurFault, and nothing is open then."""
        with contextlib.ExitStack() as undo:
            door = Door(lan, undo.enter_context(ssdp_speaker(lan.device, lan.address)), presence)
            if door.link not in self._listeners:
                listener = ssdp_listener(lan.device, door.speaker.family)
                self._listeners[door.link] = listener
                self._read(listener, None, door.link)
            undo.pop_all()
        self._doors[lan] = door
        self._read(door.speaker, door, door.link)
        return door

    def close(self, door: Door) -> None:
        """The link's listener is closed with its last door."""
        del self._doors[door.lan]
        self._unread(door.speaker)
        if not self.on(door.link):
            self._unread(self._listeners.pop(door.link))

    def on(self, link: Link) -> list[Door]:
        return [door for door in self._doors.values() if door.link == link]

    def _read(self, sock: socket.socket, door: Door | None, link: Link) -> None:
        self._guard.watch(sock)
        self._loop.add_reader(sock, self._receive, sock, door, link)

    def _unread(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        self._guard.forget(sock)
        sock.close()

    def _receive(self, sock: socket.socket, door: Door | None, link: Link) -> None:
        for _ in range(RECEIVE_BATCH):
            try:
                data, sender = sock.recvfrom(MESSAGE_LIMIT)
            except OSError:  # nothing left, or an ICMP error of something sent earlier
                return
            if self._guard.admits(sender[0]):
                self._heard(door, link, data, sender)
