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

LOG = logging.getLogger("igdpcp.daemon")


class LanDoors:
    """``open`` again whenever the LANs are others; a LAN whose doors cannot be opened is reported and left out."""

    def __init__(
        self, main: MainConfig, identity: DeviceIdentity, http: HttpServer, router: RouterView, status: Status
    ) -> None:
        self._main = main
        self._identity = identity
        self._http = http
        self._router = router
        self._status = status
        self._ssdp: SsdpServer | None = None
        self._turn = asyncio.Lock()

    async def open(self, lans: tuple[Lan, ...]) -> None:
        """Serve exactly these LANs from now on."""
        async with self._turn:
            await self._shut()
            listeners = []
            for lan in lans:
                try:
                    listeners.append((http_listener(lan.address, self._main.http_port, lan.device), lan.device))
                except OurFault as fault:
                    LOG.error(line("lan_not_served", lan=lan.name, device=lan.device, reason=fault))
            served = {device for _, device in listeners}
            await self._http.start(listeners)
            self._ssdp = self._status.ssdp = SsdpServer(
                self._identity,
                [SsdpLan(lan.device, lan.address) for lan in lans if lan.device in served],
                self._main.http_port,
                self._main.igd_version,
                self._main.notify_interval,
                self._main.force,
                self._router.on_lan_device,
                random.SystemRandom(),
            )
            try:
                await self._ssdp.start()
            except OurFault as fault:
                LOG.error(line("not_advertised", reason=fault))

    async def close(self) -> None:
        """Say goodbye and serve no LAN."""
        async with self._turn:
            await self._shut()

    async def _shut(self) -> None:
        if self._ssdp:
            await self._ssdp.stop()
            self._ssdp = self._status.ssdp = None
        await self._http.close()
