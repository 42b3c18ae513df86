# SPDX-License-Identifier: Apache-2.0
"""What is heard on the SSDP sockets: searches of LAN hosts are answered, other gateways are reported."""

from __future__ import annotations

from collections.abc import Callable

from igdpcp.daemon.flood_guard import FloodGuard, plain_address
from igdpcp.daemon.lan_hosts import HostOf
from igdpcp.daemon.ssdp_sockets import Door, Link, Sender, SsdpSockets
from igdpcp.daemon.wall_clock import http_date
from igdpcp.errors import MalformedRequest
from igdpcp.log import RateLimit
from igdpcp.model import IPAddress
from igdpcp.upnp.ssdp import Search, answers, parse_search
from igdpcp.values import dataclass

HOST_SHARE = 0.3  # of the searches that are answered in a second, for one host
WAITING_SEARCHES_LIMIT = 64  # searches kept while it is not known whether another gateway is there


@dataclass(slots=True)
class SsdpCounters:
    """What happened since the start."""

    searches: int = 0
    answers: int = 0
    announcements: int = 0
    not_on_lan: int = 0  # datagrams from addresses that are not served
    over_limit: int = 0  # searches beyond a ceiling
    flood: int = 0  # datagrams of hosts that had had their share
    barred: int = 0  # times that the kernel was told to drop those of a host
    malformed: int = 0
    unconfirmed: int = 0  # other gateways that turned out to be none
    send_errors: int = 0


class Searches:
    """Answers at once: MX spreads the answers of many devices, and a LAN has one gateway.

    Doors that are not shown yet answer when ``release`` is called, those that are not going to be shown never.
    """

    def __init__(
        self,
        *,
        guard: FloodGuard,
        counters: SsdpCounters,
        admit: Callable[[IPAddress, str], bool],
        host_of: HostOf,
        per_second: int,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        send: Callable[[Door, bytes, Sender], None],
        other_message: Callable[[str, bytes, IPAddress], None],
    ) -> None:
        """``other_message`` is told what is no search, with the device where it was heard and who sent it."""
        self.doors = SsdpSockets(guard, self._heard)
        self._counters = counters
        self._admit = admit
        self._host_of = host_of
        self._send = send
        self._other_message = other_message
        self._wall_clock = wall_clock
        self._waiting: list[tuple[Door, Door, Search, Sender]] | None = None
        self._limit = RateLimit(per_second, per_second, clock)
        per_host = max(1, int(per_second * HOST_SHARE))
        self._host_limit = RateLimit(per_host, per_host, clock)

    def hold(self) -> None:
        """Keep the searches that doors which are not shown hear from now on."""
        self._waiting = self._waiting or []

    def release(self) -> None:
        """Answer what was kept, by the doors that are shown, and keep nothing more."""
        waiting, self._waiting = self._waiting or [], None
        for door, through, search, sender in waiting:
            if door.shown:
                self._answer(door, through, search, sender)

    def _heard(self, door: Door | None, link: Link, data: bytes, sender: Sender) -> None:
        address = plain_address(sender[0])
        served = self._admit(address, link.device)
        if not served and all(address != own.lan.address for own in self.doors.on(link)):
            self._counters.not_on_lan += 1
        elif data.startswith((b"NOTIFY", b"HTTP/1.")):
            self._other_message(link.device, data, address)
        elif served:
            self._searched(door, link, data, sender, address)

    def _searched(self, heard_by: Door | None, link: Link, data: bytes, sender: Sender, asker: IPAddress) -> None:
        try:
            search = parse_search(data)
        except MalformedRequest:
            self._counters.malformed += 1
            return
        if search is None:
            return
        self._counters.searches += 1
        door = self._door_for(asker, heard_by, link)
        if door is None or not (door.shown or self._waiting is not None) or not answers(search, door.presence):
            return
        if self._host_limit.take(self._host_of(asker, link.device)) is None or self._limit.take("") is None:
            self._counters.over_limit += 1
        elif door.shown:
            self._answer(door, heard_by or door, search, sender)
        elif self._waiting is not None and len(self._waiting) < WAITING_SEARCHES_LIMIT:
            self._waiting.append((door, heard_by or door, search, sender))
        else:
            self._counters.over_limit += 1

    def _door_for(self, asker: IPAddress, heard_by: Door | None, link: Link) -> Door | None:
        """The door that the asker is told of: one that it can reach, so the one that it asked if that is one."""
        link_local = asker.version == 6 and asker.is_link_local
        doors = [door for door in self.doors.on(link) if door.lan.is_link_local == link_local]
        if heard_by in doors:
            return heard_by
        near = (door for door in doors if asker in door.lan.interface.network)
        return next(near, doors[0] if doors else None)

    def _answer(self, door: Door, through: Door, search: Search, sender: Sender) -> None:
        """Tell of ``door``; the answer comes from the address that was asked."""
        for message in answers(search, door.presence, http_date(self._wall_clock())):
            self._counters.answers += 1
            self._send(through, message, sender)
