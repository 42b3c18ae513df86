# SPDX-License-Identifier: Apache-2.0
"""The doors to the LANs, HTTP and SSDP, opened on the addresses that the LANs have now."""

from __future__ import annotations

import asyncio
import logging
import random

from igdpcp.config import MainConfig
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.ssdp_server import SsdpLan, SsdpServer
from igdpcp.daemon.status import Status
from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.net.router import Lan, RouterView
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.description import DeviceIdentity

RETRY_INTERVAL = 30.0  # seconds between attempts to open what could not be opened: its holder may have ended

LOG = logging.getLogger("igdpcp.daemon")


class LanDoors:
    """``open`` again whenever the LANs are others; what cannot be opened is reported, left out and tried again."""

    def __init__(
        self, main: MainConfig, identity: DeviceIdentity, http: HttpServer, router: RouterView, status: Status
    ) -> None:
        self._main = main
        self._identity = identity
        self._http = http
        self._router = router
        self._status = status
        self._ssdp: SsdpServer | None = None
        self._lans: tuple[Lan, ...] = ()
        self._served: set[SsdpLan] = set()  # by HTTP; what has no control URL is not advertised
        self._reported: set[tuple[str, SsdpLan]] = set()
        self._retry: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def open(self, lans: tuple[Lan, ...]) -> None:
        """Serve exactly these LANs from now on."""
        async with self._turn:
            await self._shut()
            self._lans = lans
            self._ssdp = self._status.ssdp = SsdpServer(
                self._identity,
                self._main.http_port,
                self._main.igd_version,
                self._main.notify_interval,
                self._main.force,
                self._router.on_lan_device,
                random.SystemRandom(),
            )
            if not await self._open_missing(self._ssdp):
                self._retry = asyncio.create_task(self._try_again(self._ssdp))

    async def close(self) -> None:
        """Say goodbye and serve no LAN."""
        async with self._turn:
            await self._shut()

    async def _try_again(self, ssdp: SsdpServer) -> None:
        everything = False
        while not everything:
            await asyncio.sleep(RETRY_INTERVAL)
            async with self._turn:
                everything = await self._open_missing(ssdp)

    async def _open_missing(self, ssdp: SsdpServer) -> bool:
        """Open what is not open yet; whether everything is."""
        for lan in self._lans:
            door = SsdpLan(lan.device, lan.address)
            if door not in self._served:
                try:
                    listener = http_listener(lan.address, self._main.http_port, lan.device)
                except OurFault as fault:
                    self._report("lan_not_served", door, fault)
                    continue
                self._served.add(door)
                await self._http.start([(listener, lan.device)])
        faults = await ssdp.start(self._served)
        for door, reason in faults.items():
            self._report("not_advertised", door, reason)
        return not faults and len(self._served) == len(self._lans)

    def _report(self, event: str, door: SsdpLan, fault: OurFault) -> None:
        """Once for each door: it is tried again and again."""
        if (event, door) not in self._reported:
            self._reported.add((event, door))
            LOG.error(line(event, device=door.device, address=door.address, reason=fault))

    async def _shut(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None
        if self._ssdp:
            await self._ssdp.stop()
            self._ssdp = self._status.ssdp = None
        await self._http.close()
        self._served.clear()
        self._reported.clear()
