# SPDX-License-Identifier: Apache-2.0
"""SSDP on the LANs: makes the gateway found and announces it, but not where another gateway already is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import zip_longest

from igdpcp.daemon.boot_id import BootId
from igdpcp.daemon.flood_guard import FloodGuard
from igdpcp.daemon.lan_hosts import HostOf, by_address
from igdpcp.daemon.other_gateways import OtherGateways
from igdpcp.daemon.ssdp_searches import Searches, SsdpCounters
from igdpcp.daemon.ssdp_sockets import Door, Sender
from igdpcp.errors import OurFault
from igdpcp.log import SparingLog, line
from igdpcp.model import IPAddress
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_PORT, ssdp_group
from igdpcp.upnp.description import DeviceIdentity
from igdpcp.upnp.ssdp import MAX_AGE, Presence, alive, byebye, host_port, update

PROBE_SPACING = 0.1  # seconds after each search for others at the start: with two the first answer takes 0.2 s
CONFLICT_RECHECK = 60.0  # seconds between searches where a gateway keeps us silent
RECHECK_SPACING = 1.25  # seconds: long enough for every answer
ALIVE_SETS = 2  # UPnP Device Architecture 1.1 section 1.2.2: at most 3, as datagrams get lost
ALIVE_SET_SPACING = 0.25
ALIVE_START_JITTER = 0.1  # seconds, UPnP Device Architecture 1.1 section 1.2.1
MESSAGE_SPACING = 0.003  # seconds between the messages of a set: weak radio drivers drop bursts
EARLY = (0.002, 0.1)  # the part of the interval that an announcement comes early

_log = logging.getLogger("igdpcp.ssdp")


class SsdpServer:
    """Makes the gateway found on every LAN, but keeps silent where another gateway is; ``conflict`` says where."""

    def __init__(
        self,
        *,
        identity: DeviceIdentity,
        boot_id: BootId,
        http_port: int,
        igd_version: str,
        notify_interval: float,
        searches_per_second: int,
        force: bool,
        admit: Callable[[IPAddress, str], bool],
        rng: random.Random,
        host_of: HostOf = by_address,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """``force``: advertise beside other gateways. ``admit`` tells whether a host of that device is served."""
        self._identity = replace(identity, boot_id=boot_id.value)
        self._boot_id = boot_id
        self._http_port = http_port
        self._igd_version = igd_version
        self._notify_interval = min(notify_interval, MAX_AGE / 2)
        self._force = force
        self._rng = rng
        self._spoken = False  # in this boot instance
        self._sets_due = 0  # announcements that are to follow one another soon
        self._announce_at = 0.0
        self._counters = SsdpCounters()
        self._task: asyncio.Task[None] | None = None
        self._clock = clock = asyncio.get_running_loop().time
        self._log = SparingLog(_log, clock)
        self._guard = FloodGuard()
        self._others = OtherGateways(identity, admit, self._guard, self._log)
        self._searches = Searches(
            guard=self._guard, counters=self._counters, admit=admit, host_of=host_of, per_second=searches_per_second,
            clock=clock, wall_clock=wall_clock, send=self._send,
            other_message=(lambda *_: None) if force else self._others.heard,
        )  # fmt: skip
        self._doors = self._searches.doors

    @property
    def advertising(self) -> bool:
        """Whether the gateway can be found anywhere."""
        return any(door.shown for door in self._doors)

    @property
    def conflict(self) -> str | None:
        """Which other gateways there are, each with its device."""
        return "; ".join(self._others.conflicts.values()) or None

    @property
    def counters(self) -> SsdpCounters:
        return replace(
            self._counters,
            flood=self._guard.dropped,
            barred=self._guard.barred_hosts,
            unconfirmed=self._others.unconfirmed,
        )

    # -- the LANs ------------------------------------------------------------------------------------------------

    def look_around(self, lans: Collection[Lan]) -> None:
        """Begin to look for other gateways where nothing is served yet: after ``serve`` it takes that much less long.

        What cannot be opened is for ``serve`` to try again, and to tell.
        """
        if not self._force:
            for lan in lans:
                with contextlib.suppress(OurFault):
                    self._others.open(lan)
            self._others.search_ahead(PROBE_SPACING)

    async def serve(self, lans: Collection[Lan]) -> dict[Lan, OurFault]:
        """Serve exactly these, and say which could not be opened; may be called again, what stays is not disturbed.

        Where something is new or gone, a boot instance begins (UPnP Device Architecture 1.1 section 1.2.4), and on
        new ones another gateway is looked for before anything is shown.
        """
        going = [door for door in self._doors if door.lan not in lans]
        coming = [lan for lan in lans if lan not in self._doors]
        faults = self._open(coming)
        self._others.keep(door.lan for door in self._doors)
        if not going and len(faults) == len(coming):
            return faults
        await self._halt()
        self._searches.hold()
        links = {door.link for door in self._doors if door not in going}
        await self._say([door for door in going if door.shown and door.link not in links], byebye)
        for door in going:
            self._close(door)
        await self._begin_boot_instance()
        if list(self._doors):
            self._task = asyncio.get_running_loop().create_task(self._run())
        return faults

    async def stop(self) -> None:
        """Say goodbye and close the sockets."""
        await self._halt()
        await self._others.stop()
        await self._withdraw(self._doors)
        for door in self._doors:
            self._close(door)
        self._guard.close()

    def _open(self, lans: Iterable[Lan]) -> dict[Lan, OurFault]:
        faults: dict[Lan, OurFault] = {}
        for lan in lans:
            try:
                with contextlib.ExitStack() as undo:
                    undo.callback(self._doors.close, self._doors.open(lan, self._presence(lan)))
                    if not self._force:
                        self._others.open(lan)
                    undo.pop_all()
            except OurFault as fault:
                faults[lan] = fault
        return faults

    def _close(self, door: Door) -> None:
        self._doors.close(door)
        self._others.close(door.lan)

    async def _halt(self) -> None:
        """End what runs in the background."""
        task, self._task = self._task, None
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # -- being there ---------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Look for others where we are not shown; be there wherever there is none, whatever changes."""
        hidden = [door for door in self._doors if not door.shown]
        links = {door.link for door in self._doors if door.shown}
        flush = self._say([door for door in hidden if door.link not in links], byebye)
        to_search = [] if self._force else [door.lan for door in hidden]
        await asyncio.gather(flush, self._others.search(to_search, PROBE_SPACING))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look_again())
            while True:
                self._others.changed.clear()
                await self._withdraw([door for door in self._doors if door.lan.device in self._others.conflicts])
                await self._show()
                await self._advertise()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(CONFLICT_RECHECK)
            silent = [door.lan for door in self._doors if door.lan.device in self._others.conflicts]
            await self._others.search(silent, RECHECK_SPACING)

    async def _show(self) -> None:
        """Show the gateway where it may be but is not: answer those who waited, and announce it soon."""
        if self._coming():
            await self._begin_boot_instance()
        if coming := self._coming():
            if not self.advertising:
                _log.info(line("ssdp_advertising", igd_version=self._igd_version, server=self._identity.server))
            for door in coming:
                door.shown = True
        if coming or not self._spoken:
            self._sets_due = ALIVE_SETS
            self._announce_at = self._clock() + self._rng.uniform(0, ALIVE_START_JITTER)
        self._spoken = self._spoken or self.advertising
        self._searches.release()

    def _coming(self) -> list[Door]:
        return [door for door in self._doors if not door.shown and door.lan.device not in self._others.conflicts]

    async def _advertise(self) -> None:
        """Announce again and again; returns when another gateway was seen, or one is gone."""
        while not await self._pause(self._announce_at - self._clock() if self.advertising else None):
            await self._say([door for door in self._doors if door.shown], alive)
            self._sets_due -= 1
            early = self._rng.uniform(*EARLY)
            pause = ALIVE_SET_SPACING if self._sets_due > 0 else self._notify_interval * (1 - early)
            self._announce_at = self._clock() + pause

    async def _withdraw(self, doors: Iterable[Door]) -> None:
        """Fall silent: with another gateway on the LAN, control points would map on either."""
        shown = [door for door in doors if door.shown]
        for door in shown:
            door.shown = False
        await self._say(shown, byebye)

    async def _pause(self, seconds: float | None) -> bool:
        """Whether another gateway was seen, or one is gone, before or meanwhile."""
        try:
            await asyncio.wait_for(self._others.changed.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _begin_boot_instance(self) -> None:
        """Take the next boot number where this one was shown; who is shown says so before."""
        if not self._spoken:
            return
        following = self._boot_id.following
        await self._say([door for door in self._doors if door.shown], lambda presence: update(presence, following))
        self._boot_id.advance()
        self._identity = replace(self._identity, boot_id=self._boot_id.value)
        self._spoken = False
        for door in self._doors:
            door.presence = self._presence(door.lan)

    def _presence(self, lan: Lan) -> Presence:
        location_base = f"http://{host_port(lan.address, self._http_port)}"
        host = host_port(ssdp_group(lan.address), SSDP_PORT).upper()
        return Presence(self._identity, location_base, self._igd_version, host)

    # -- sending -------------------------------------------------------------------------------------------------

    async def _say(self, doors: Iterable[Door], messages: Callable[[Presence], list[bytes]]) -> None:
        """Send a set of messages to the group of each door, in step with one another."""
        sets = [[(door, message) for message in messages(door.presence)] for door in doors]
        for together in zip_longest(*sets):
            for door, message in filter(None, together):
                self._counters.announcements += 1
                self._send(door, message, door.everybody)
            await asyncio.sleep(MESSAGE_SPACING)

    def _send(self, door: Door, message: bytes, to: Sender) -> None:
        try:
            door.speaker.sendto(message, to)
        except OSError as error:
            self._counters.send_errors += 1
            self._log.write(logging.DEBUG, "ssdp_send", to[0], reason=error.strerror)
