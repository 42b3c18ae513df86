# SPDX-License-Identifier: Apache-2.0
"""Is another gateway on the LANs? Searched for by IPv4, and noticed whenever one announces itself.

What says that it is another gateway is believed only when it names the address that it sends from and serves the
description of a gateway there. A host that does so can silence this gateway on its own LAN for as long as it goes on;
``option force 1`` is the remedy.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from urllib.parse import quote

from igdpcp.daemon.flood_guard import FloodGuard, plain_address
from igdpcp.log import RateLimit, SparingLog
from igdpcp.model import IPAddress
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_GROUP, SSDP_PORT, ssdp_searcher
from igdpcp.upnp.actions import DEVICE_TYPES, DEVICE_URN, Level
from igdpcp.upnp.description import DeviceIdentity
from igdpcp.upnp.ssdp import (
    GATEWAY,
    MESSAGE_LIMIT,
    Sighting,
    host_port,
    parse_announcement,
    parse_answer,
    search_request,
)

SEARCHES = 2  # of each LAN, as datagrams get lost
SEARCH_MX = 1
CHECK_TIMEOUT = 2.0  # seconds that another gateway has to show its description
DESCRIPTION_LIMIT = 64 * 1024  # bytes of it that are read
CHECKS_LIMIT = 8  # addresses that are checked at a time
CHECKS_BURST = 5  # of one address
CHECKS_PER_SECOND = 1.0
RECEIVE_BATCH = 32  # datagrams read before others get their turn

_SAFE_IN_PATH = "/?&=%:;@!$'()*+,~-._"  # RFC 3986: what may stand in path and query
_FOUND = re.compile(rb"HTTP/1\.[01] 200[ \r\n]")  # an error's text may repeat what was asked for
_GATEWAY_TYPE = f"{DEVICE_URN}{DEVICE_TYPES[Level.ROOT]}:".encode()


class OtherGateways:
    """``conflicts`` says which there is on a device, until a search finds none; ``changed`` is set with each change."""

    def __init__(
        self,
        identity: DeviceIdentity,
        admit: Callable[[IPAddress, str], bool],
        guard: FloodGuard,
        log: SparingLog,
    ) -> None:
        """``identity`` is our own; ``admit`` tells whether a host of that device is served, others do not count."""
        self.conflicts: dict[str, str] = {}
        self.changed = asyncio.Event()
        self.unconfirmed = 0  # that turned out to be none
        self._confirmed: set[str] = set()  # devices, since they were last searched
        self._identity = identity
        self._admit = admit
        self._guard = guard
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._searchers: dict[Lan, socket.socket] = {}
        self._ahead: asyncio.Task[None] | None = None
        self._searched_ahead: set[Lan] = set()
        self._checks: dict[IPv4Address, asyncio.Task[None]] = {}
        self._check_limit = RateLimit(CHECKS_BURST, CHECKS_PER_SECOND, self._loop.time)

    def open(self, lan: Lan) -> None:
        """Be ready to search this LAN, if it is not so yet; raises OurFault."""
        if isinstance(lan.address, IPv4Address) and lan not in self._searchers:
            searcher = self._searchers[lan] = ssdp_searcher(lan.device, lan.address)
            self._guard.watch(searcher)
            self._loop.add_reader(searcher, self._receive, lan.device, searcher)

    def close(self, lan: Lan) -> None:
        """Search it no more; what was found on a device goes with the last LAN there."""
        if searcher := self._searchers.pop(lan, None):
            self._loop.remove_reader(searcher)
            self._guard.forget(searcher)
            searcher.close()
            self._searched_ahead.discard(lan)
            if not self._searches(lan.device):
                self._withdraw(lan.device)

    def keep(self, lans: Iterable[Lan]) -> None:
        """Search no LAN but these any more."""
        for lan in self._searchers.keys() - set(lans):
            self.close(lan)

    async def stop(self) -> None:
        """Search no LAN any more, and end what runs."""
        running: list[asyncio.Task[None]] = list(self._checks.values())
        if self._ahead:
            running.append(self._ahead)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self.keep(())

    def search_ahead(self, spacing: float) -> None:
        """Begin a search of the LANs that are open; the next ``search`` waits for it instead of searching them anew."""
        self._searched_ahead = set(self._searchers)
        self._ahead = self._loop.create_task(self._search(self._searched_ahead.copy(), spacing))

    async def search(self, lans: Iterable[Lan], spacing: float) -> None:
        """Search these LANs and wait for the checks of what answered; where nothing is found, nothing is there.

        An answer counts whenever it comes. ``spacing`` is the seconds after each search.
        """
        if self._ahead:
            await asyncio.wait([self._ahead])
            lans = [lan for lan in lans if lan not in self._searched_ahead]
            self._ahead = None
        await self._search(lans, spacing)

    async def _search(self, lans: Iterable[Lan], spacing: float) -> None:
        searched = [(lan, self._searchers[lan]) for lan in lans if lan in self._searchers]
        devices = {lan.device for lan, _ in searched}  # an IPv6 address that comes later ends no conflict there
        self._confirmed -= devices
        for _ in range(SEARCHES if searched else 0):
            for lan, searcher in searched:
                self._send(lan, searcher)
            await asyncio.sleep(spacing)
        if searched and self._checks:
            await asyncio.wait(self._checks.values(), timeout=CHECK_TIMEOUT)
        for device in devices - self._confirmed:
            self._withdraw(device)

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
        """Believe it when it serves a gateway's description: anybody can send that a gateway is somewhere."""
        address, tcp_port = endpoint
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                is_gateway = await _serves_a_gateway(address, tcp_port, sighting.location)
        except (OSError, ValueError):  # TimeoutError is an OSError
            is_gateway = False
        if is_gateway:
            self._confirm(device, sighting, address)
        else:
            self._doubt(sighting, address, "no gateway's description is served there")

    def _doubt(self, sighting: Sighting, address: IPAddress, reason: str) -> None:
        self.unconfirmed += 1
        self._log.write(logging.INFO, "ssdp_no_gateway", address, location=sighting.location, reason=reason)

    def _searches(self, device: str) -> bool:
        return any(lan.device == device for lan in self._searchers)

    def _withdraw(self, device: str) -> None:
        if self.conflicts.pop(device, None):
            self.changed.set()

    def _confirm(self, device: str, sighting: Sighting, address: IPv4Address) -> None:
        if not self._searches(device):  # its last LAN went while this was checked
            return
        self._confirmed.add(device)
        if device in self.conflicts:
            return
        self.conflicts[device] = f"{address} ({device}) {sighting.location} {sighting.server}".strip()
        self.changed.set()
        self._log.write(
            logging.ERROR,
            "ssdp_conflict",
            address,
            device=device,
            location=sighting.location,
            server=sighting.server,
            reason="another UPnP gateway is on this LAN: stop it (miniupnpd?), or set option force 1",
        )


async def _serves_a_gateway(address: IPv4Address, tcp_port: int, location: str) -> bool:
    """Whether there is a description at this URL, whose host is ``address``, and it is a gateway's.

    Raises OSError when nobody answers; what is read is bounded.
    """
    path = quote(location.partition("://")[2].partition("/")[2], safe=_SAFE_IN_PATH)
    reader, writer = await asyncio.open_connection(str(address), tcp_port)
    try:
        writer.write(f"GET /{path} HTTP/1.0\r\nHost: {host_port(address, tcp_port)}\r\n\r\n".encode())
        description = bytearray()
        while _GATEWAY_TYPE not in description:
            piece = await reader.read(DESCRIPTION_LIMIT - len(description))
            if not piece:  # it ends here, or the limit is reached
                break
            description += piece
        return _FOUND.match(description) is not None and _GATEWAY_TYPE in description
    finally:
        writer.transport.abort()
