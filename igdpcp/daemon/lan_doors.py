# SPDX-License-Identifier: Apache-2.0
"""The doors to the LANs, HTTP, SSDP and PCP, opened on the addresses that the LANs have now."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections import Counter

from igdpcp.config import MainConfig
from igdpcp.daemon.boot_id import BootId
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.lan_hosts import HostOf, by_address
from igdpcp.daemon.pcp_server import PcpServer
from igdpcp.daemon.ssdp_server import SsdpServer
from igdpcp.daemon.status import Status
from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.net.router import Lan, RouterView
from igdpcp.net.sockets import http_listener
from igdpcp.upnp.description import DeviceIdentity

ADDRESSES_PER_LAN = 8  # served; a host that sends router advertisements can give a router many
RETRY_INTERVAL = 30.0  # seconds between attempts to open what could not be opened: its holder may have ended

LOG = logging.getLogger("igdpcp.daemon")


class LanDoors:
    """``open`` again whenever the LANs are others; what cannot be opened is reported, left out and tried again."""

    def __init__(
        self,
        *,
        main: MainConfig,
        identity: DeviceIdentity,
        boot_id: BootId,
        http: HttpServer,
        pcp_server: PcpServer,
        router: RouterView,
        status: Status,
        host_of: HostOf = by_address,
    ) -> None:
        """``host_of`` tells whose searches count together."""
        self.left_out = 0  # addresses beyond the ceiling
        self._main = main
        self._identity = identity
        self._boot_id = boot_id
        self._http = http
        self._pcp_server = pcp_server
        self._router = router
        self._status = status
        self._host_of = host_of
        self._ssdp: SsdpServer | None = None
        self._lans: tuple[Lan, ...] = ()
        self._listeners: dict[Lan, socket.socket] = {}  # of HTTP; what has no control URL is not advertised
        self._reported: set[tuple[str, Lan]] = set()
        self._retry: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    def look_around(self, lans: tuple[Lan, ...]) -> None:
        """See what other gateways these LANs have, while everything else is made ready for the first ``open``."""
        self._ssdp = self._status.ssdp = self._make_ssdp()
        self._ssdp.look_around(self._within_ceiling(lans))

    async def open(self, lans: tuple[Lan, ...]) -> None:
        """Serve exactly these from now on; those that stay keep their sockets and connections."""
        async with self._turn:
            self._stop_trying()
            self._lans = self._within_ceiling(lans)
            self._reported = {report for report in self._reported if report[1] in self._lans}
            for lan in [lan for lan in self._listeners if lan not in self._lans]:
                await self._http.close_listener(self._listeners.pop(lan))
            if not await self._open_missing():
                self._retry = asyncio.create_task(self._try_again())

    async def close(self) -> None:
        """Say goodbye and serve no LAN."""
        async with self._turn:
            self._stop_trying()
            self._lans = ()
            if self._ssdp:
                await self._ssdp.stop()
                self._ssdp = self._status.ssdp = None
            await self._pcp_server.stop()
            await self._http.close()
            self._listeners.clear()

    def _within_ceiling(self, lans: tuple[Lan, ...]) -> tuple[Lan, ...]:
        """As many of each device as may be served: IPv4 first, then what is served already."""
        served: Counter[str] = Counter()
        chosen = []
        for lan in sorted(lans, key=lambda lan: (lan.is_ipv6, lan not in self._listeners)):
            if served[lan.device] < ADDRESSES_PER_LAN:
                chosen.append(lan)
            served[lan.device] += 1
        self.left_out = len(lans) - len(chosen)
        return tuple(chosen)

    async def _try_again(self) -> None:
        everything = False
        while not everything:
            await asyncio.sleep(RETRY_INTERVAL)
            async with self._turn:
                everything = await self._open_missing()

    async def _open_missing(self) -> bool:
        """Open what is not open yet; whether everything is."""
        for lan in self._lans:
            if lan not in self._listeners:
                try:
                    listener = http_listener(lan.address, self._main.http_port, lan.device)
                except OurFault as fault:
                    self._report("lan_not_served", lan, fault)
                    continue
                self._listeners[lan] = listener
                await self._http.start([(listener, lan.device)])
        unserved = self._pcp_server.serve(self._lans)
        for lan, reason in unserved.items():
            self._report("pcp_not_served", lan, reason)
        if self._ssdp is None:
            self._ssdp = self._status.ssdp = self._make_ssdp()
        faults = await self._ssdp.serve(self._listeners)
        for lan, reason in faults.items():
            self._report("not_advertised", lan, reason)
        return not faults and not unserved and len(self._listeners) == len(self._lans)

    def _make_ssdp(self) -> SsdpServer:
        main = self._main
        return SsdpServer(
            identity=self._identity,
            boot_id=self._boot_id,
            http_port=main.http_port,
            igd_version=main.igd_version,
            notify_interval=main.notify_interval,
            searches_per_second=main.searches_per_second,
            force=main.force,
            admit=self._router.on_lan_device,
            host_of=self._host_of,
            rng=random.SystemRandom(),
        )

    def _report(self, event: str, lan: Lan, fault: OurFault) -> None:
        """Once for each: it is tried again and again."""
        if (event, lan) not in self._reported:
            self._reported.add((event, lan))
            LOG.error(line(event, device=lan.device, address=lan.address, reason=fault))

    def _stop_trying(self) -> None:
        if self._retry:
            self._retry.cancel()
            self._retry = None
