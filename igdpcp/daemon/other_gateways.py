# SPDX-License-Identifier: Apache-2.0
"""Is another gateway on the LANs? Searched for by IPv4, and noticed whenever one announces itself.

What says that it is another gateway is believed only when it names the address that it sends from and accepts a TCP
connection there. A host of the LAN that really listens, or forges the address of one that does, can still silence
this gateway for as long as it goes on; ``option force 1`` is the remedy.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from igdpcp.daemon.flood_guard import FloodGuard, plain_address
from igdpcp.log import RateLimit, SparingLog, line
from igdpcp.model import IPAddress
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_GROUP, SSDP_PORT, ssdp_searcher
from igdpcp.upnp.description import DeviceIdentity
from igdpcp.upnp.ssdp import (
    GATEWAY,
    MESSAGE_LIMIT,
    Sighting,
    parse_announcement,
    parse_answer,
    search_request,
)

SEARCHES = 2  # of each LAN, as datagrams get lost
SEARCH_MX = 1
CHECK_TIMEOUT = 1.0  # seconds that another gateway has to accept a connection
CHECKS_LIMIT = 8  # addresses that are checked at a time
CHECKS_BURST = 5  # of one address
CHECKS_PER_SECOND = 1.0
RECEIVE_BATCH = 32  # datagrams read before others get their turn

_log = logging.getLogger("igdpcp.ssdp")


class OtherGateways:
    """``seen`` is set when there is one, until ``forget``; ``conflict`` says which, until a search finds none."""

    def __init__(
        self,
        identity: DeviceIdentity,
        admit: Callable[[IPAddress, str], bool],
        guard: FloodGuard,
        log: SparingLog,
    ) -> None:
        """``identity`` is our own; ``admit`` tells whether a host of that device is served, others do not count."""
        self.seen = asyncio.Event()
        self.conflict: str | None = None
        self.unconfirmed = 0  # that turned out to be none
        self._identity = identity
        self._admit = admit
        self._guard = guard
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._searchers: dict[Lan, socket.socket] = {}
        self._checks: dict[IPv4Address, asyncio.Task[None]] = {}
        self._check_limit = RateLimit(CHECKS_BURST, CHECKS_PER_SECOND, self._loop.time)

    def open(self, lan: Lan) -> None:
        """Be ready to search this LAN; raises OurFault."""
        if isinstance(lan.address, IPv4Address):
            searcher = self._searchers[lan] = ssdp_searcher(lan.device, lan.address)
            self._guard.watch(searcher)
            self._loop.add_reader(searcher, self._receive, lan.device, searcher)

    def close(self, lan: Lan) -> None:
        if searcher := self._searchers.pop(lan, None):
            self._loop.remove_reader(searcher)
            self._guard.forget(searcher)
            searcher.close()

    async def stop(self) -> None:
        """End the checks that run."""
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    def forget(self) -> None:
        """What was seen may be gone."""
        self.seen.clear()

    async def search(self, lans: Iterable[Lan], spacing: float) -> None:
        """Search these LANs, and wait for the checks of what answered; an answer counts whenever it comes.

        ``spacing`` is the seconds after each search.
        """
        searched = [(lan, self._searchers[lan]) for lan in lans if lan in self._searchers]
        for _ in range(SEARCHES if searched else 0):
            for lan, searcher in searched:
                self._send(lan, searcher)
            await asyncio.sleep(spacing)
        if self._checks:
            await asyncio.wait(self._checks.values(), timeout=CHECK_TIMEOUT)
        if not self.seen.is_set():
            self.conflict = None

    def heard(self, device: str, data: bytes, address: IPAddress) -> None:
        """Check what may be another gateway, one check of an address at a time."""
        sighting = parse_answer(data) or parse_announcement(data)
        if sighting is None or not sighting.is_gateway or sighting.belongs_to(self._identity):
            return
        if not self._admit(address, device) and all(address != own.address for own in self._searchers):
            return
        endpoint = sighting.endpoint
        if endpoint is None or endpoint[0] != address:
            self._doubt(sighting, address, "LOCATION is not at the address that sent it")
            return
        if address in self._checks or len(self._checks) >= CHECKS_LIMIT or self._check_limit.take(address) is None:
            return
        task = self._loop.create_task(self._check(device, sighting, endpoint))
        self._checks[endpoint[0]] = task
        task.add_done_callback(lambda _: self._checks.pop(endpoint[0]))

    def _send(self, lan: Lan, searcher: socket.socket) -> None:
        try:
            searcher.sendto(search_request(GATEWAY, SEARCH_MX), (str(SSDP_GROUP), SSDP_PORT))
        except OSError as error:
            self._log.write(logging.DEBUG, "ssdp_send", lan.address, reason=error.strerror)

    def _receive(self, device: str, searcher: socket.socket) -> None:
        for _ in range(RECEIVE_BATCH):
            try:
                data, sender = searcher.recvfrom(MESSAGE_LIMIT)
            except OSError:  # nothing left, or an ICMP error of something sent earlier
                return
            if self._guard.admits(sender[0]):
                self.heard(device, data, plain_address(sender[0]))

    async def _check(self, device: str, sighting: Sighting, endpoint: tuple[IPv4Address, int]) -> None:
        """Believe it when it accepts a connection: anybody on the LAN can send that a gateway is somewhere."""
        address, tcp_port = endpoint
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                transport, _ = await self._loop.create_connection(asyncio.Protocol, str(address), tcp_port)
        except OSError:  # TimeoutError is one
            self._doubt(sighting, address, "nobody accepts connections there")
            return
        transport.abort()
        self._confirm(device, sighting, address)

    def _doubt(self, sighting: Sighting, address: IPAddress, reason: str) -> None:
        self.unconfirmed += 1
        self._log.write(logging.INFO, "ssdp_no_gateway", address, location=sighting.location, reason=reason)

    def _confirm(self, device: str, sighting: Sighting, address: IPv4Address) -> None:
        self.seen.set()
        if self.conflict is not None:
            return
        self.conflict = f"{address} ({device}) {sighting.location} {sighting.server}".strip()
        _log.error(
            line(
                "ssdp_conflict",
                address=address,
                device=device,
                location=sighting.location,
                server=sighting.server,
                reason="another UPnP gateway is on this LAN: stop it (miniupnpd?), or set option force 1",
            )
        )
