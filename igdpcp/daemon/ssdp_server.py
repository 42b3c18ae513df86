# SPDX-License-Identifier: Apache-2.0
"""SSDP on the LANs: answers searches and announces the gateway, unless another gateway is already there.

What says that it is another gateway is believed only when it names the address that it sends from and accepts a TCP
connection there. A host of the LAN that really listens, or forges the address of one that does, can still silence
this gateway for as long as it goes on; ``option force 1`` is the remedy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from igdpcp.errors import MalformedRequest, OurFault
from igdpcp.log import RateLimit, SparingLog, line
from igdpcp.net.sockets import SSDP_GROUP, SSDP_PORT, ssdp_listener, ssdp_sender
from igdpcp.upnp.description import DeviceIdentity
from igdpcp.upnp.ssdp import (
    GATEWAY,
    MAX_AGE,
    MESSAGE_LIMIT,
    Sighting,
    alive,
    answers,
    byebye,
    parse_announcement,
    parse_answer,
    parse_search,
    search_request,
)

SEARCHES_PER_SECOND = 100  # answered on all LANs together; more are dropped
SEARCHES_PER_HOST = 30  # of them for one host
WAITING_SEARCHES_LIMIT = 64  # searches kept while it is not known whether another gateway is there
PROBE_SENDS = 2  # searches for another gateway before the first announcement
PROBE_SPACING = 0.1  # seconds after each of them; with both the first answer is delayed by 0.2 s
PROBE_MX = 1
CHECK_TIMEOUT = 1.0  # seconds that another gateway has to accept a connection
CHECKS_LIMIT = 8  # addresses that are checked at a time
CHECKS_BURST = 5  # of one address
CHECKS_PER_SECOND = 1.0
CONFLICT_RECHECK = 60.0  # seconds between searches for a gateway that kept us silent
RECHECK_SPACING = PROBE_MX + 0.25  # seconds: long enough for every answer
ALIVE_SETS = 2  # UPnP Device Architecture 1.1 section 1.2.2: at most 3, as datagrams get lost
ALIVE_SET_SPACING = 0.25
ALIVE_START_JITTER = 0.1  # seconds, UPnP Device Architecture 1.1 section 1.2.1
MESSAGE_SPACING = 0.003  # seconds between the messages of a set: weak radio drivers drop bursts
INTERVAL_JITTER = 64.0  # seconds that an announcement may come early
RECEIVE_BATCH = 32  # datagrams read before others get their turn

_log = logging.getLogger("igdpcp.ssdp")


@dataclass(frozen=True, slots=True)
class SsdpLan:
    """One LAN: its device and our address there."""

    device: str
    address: IPv4Address


@dataclass(slots=True)
class SsdpCounters:
    """What happened since the start."""

    searches: int = 0
    answers: int = 0
    announcements: int = 0
    not_on_lan: int = 0  # datagrams from addresses that are not served
    over_limit: int = 0  # searches beyond a ceiling
    malformed: int = 0
    unconfirmed: int = 0  # other gateways that turned out to be none
    send_errors: int = 0


@dataclass(frozen=True, slots=True)
class _Port:
    """The two sockets of one LAN."""

    lan: SsdpLan
    listener: socket.socket
    sender: socket.socket
    location_base: str


class SsdpServer:
    """Makes the gateway found on every LAN; ``conflict`` says who else is a gateway there, and keeps it silent."""

    def __init__(
        self,
        identity: DeviceIdentity,
        http_port: int,
        igd_version: str,
        notify_interval: float,
        force: bool,
        admit: Callable[[IPv4Address, str], bool],
        rng: random.Random,
    ) -> None:
        """``force``: advertise beside other gateways. ``admit`` tells whether a host of that device is served."""
        self.identity = identity
        self.http_port = http_port
        self.igd_version = igd_version
        self.notify_interval = min(notify_interval, MAX_AGE / 2)
        self.force = force
        self.admit = admit
        self.rng = rng
        self.conflict: str | None = None
        self.advertising = False
        self.counters = SsdpCounters()
        self._ports: list[_Port] = []
        self._waiting: list[tuple[_Port, tuple[bytes, ...], tuple[str, int]]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._seen = asyncio.Event()  # another gateway, since it was last looked for
        self._checks: dict[IPv4Address, asyncio.Task[None]] = {}  # of what may be another gateway
        clock = asyncio.get_running_loop().time
        self._host_limit = RateLimit(SEARCHES_PER_HOST, SEARCHES_PER_HOST, clock)
        self._limit = RateLimit(SEARCHES_PER_SECOND, SEARCHES_PER_SECOND, clock)
        self._check_limit = RateLimit(CHECKS_BURST, CHECKS_PER_SECOND, clock)
        self._log = SparingLog(_log, clock)

    async def start(self, lans: Iterable[SsdpLan]) -> dict[SsdpLan, OurFault]:
        """Open the LANs that are not open yet, and say which could not be; may be called again.

        With every new LAN everything begins again: to look for another gateway, then to advertise.
        """
        faults: dict[SsdpLan, OurFault] = {}
        already = {port.lan for port in self._ports}
        for lan in lans:
            if lan not in already:
                try:
                    self._open_port(lan)
                except OurFault as fault:
                    faults[lan] = fault
        if len(self._ports) > len(already):
            await self._halt()
            self._task = asyncio.get_running_loop().create_task(self._run())
        return faults

    async def stop(self) -> None:
        """Say goodbye and close the sockets."""
        await self._halt()
        if self.advertising:
            self._say_goodbye()
        self.advertising = False
        self._close_ports()

    async def _halt(self) -> None:
        """End what runs in the background."""
        tasks = [*self._checks.values(), *([self._task] if self._task else [])]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open_port(self, lan: SsdpLan) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(ssdp_listener(lan.device, lan.address))
            sender = opened.enter_context(ssdp_sender(lan.device, lan.address))
            opened.pop_all()
        port = _Port(lan, listener, sender, f"http://{lan.address}:{self.http_port}")
        self._ports.append(port)
        loop.add_reader(listener, self._receive, port, listener)
        loop.add_reader(sender, self._receive, port, sender)

    async def _run(self) -> None:
        """Look for others, advertise until one is seen, keep silent while it is there."""
        self.advertising = False
        self._waiting = []
        if not self.force:
            await self._look_for_others(PROBE_SPACING)
        while True:
            if not self._seen.is_set():
                self.conflict = None
                await self._advertise()
                await self._keep_alive()
            self._waiting = None
            await asyncio.sleep(CONFLICT_RECHECK)
            await self._look_for_others(RECHECK_SPACING)

    async def _look_for_others(self, spacing: float) -> None:
        """Search for another gateway, and wait for the checks of what answered; an answer counts whenever it comes."""
        self._seen.clear()
        for _ in range(PROBE_SENDS):
            for port in self._ports:
                self._send(port.sender, search_request(GATEWAY, PROBE_MX), (str(SSDP_GROUP), SSDP_PORT))
            await asyncio.sleep(spacing)
        if self._checks:
            await asyncio.wait(self._checks.values(), timeout=CHECK_TIMEOUT)

    async def _advertise(self) -> None:
        """Flush what control points remember of an earlier run, answer those who waited, announce."""
        self.advertising = True
        self._say_goodbye()
        waiting, self._waiting = self._waiting or [], None
        for port, messages, sender in waiting:
            self._answer(port, messages, sender)
        _log.info(line("ssdp_advertising", igd_version=self.igd_version, server=self.identity.server))
        await asyncio.sleep(self.rng.uniform(0, ALIVE_START_JITTER))
        for _ in range(ALIVE_SETS):
            await self._announce()
            await asyncio.sleep(ALIVE_SET_SPACING)

    async def _keep_alive(self) -> None:
        """Announce again and again; returns when another gateway was seen."""
        while not self._seen.is_set():
            jitter = self.rng.uniform(0, min(INTERVAL_JITTER, self.notify_interval / 10))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._seen.wait(), self.notify_interval - jitter)
            await self._announce()

    async def _announce(self) -> None:
        for port in self._ports:
            for message in alive(self.identity, port.location_base, self.igd_version):
                if not self.advertising:
                    return
                self._multicast(port, message)
                await asyncio.sleep(MESSAGE_SPACING)

    def _say_goodbye(self) -> None:
        for port in self._ports:
            for message in byebye(self.identity, self.igd_version):
                self._multicast(port, message)

    def _multicast(self, port: _Port, message: bytes) -> None:
        self.counters.announcements += 1
        self._send(port.sender, message, (str(SSDP_GROUP), SSDP_PORT))

    def _receive(self, port: _Port, sock: socket.socket) -> None:
        for _ in range(RECEIVE_BATCH):
            try:
                data, sender = sock.recvfrom(MESSAGE_LIMIT)
            except OSError:  # nothing left, or an ICMP error of something sent earlier
                return
            self._datagram(port, data, sender)

    def _datagram(self, port: _Port, data: bytes, sender: tuple[str, int]) -> None:
        address = IPv4Address(sender[0])
        admitted = self.admit(address, port.lan.device)
        sighting = parse_answer(data) or parse_announcement(data)
        if sighting is not None and (admitted or address == port.lan.address):
            self._sighted(port, sighting, address)
            return
        if not admitted:
            self.counters.not_on_lan += 1
            return
        try:
            search = parse_search(data)
        except MalformedRequest:
            self.counters.malformed += 1
            return
        if search is None:
            return
        self.counters.searches += 1
        messages = answers(search, self.identity, port.location_base, self.igd_version)
        if messages:
            self._searched(port, messages, sender)

    def _searched(self, port: _Port, messages: tuple[bytes, ...], sender: tuple[str, int]) -> None:
        """Answer at once: MX spreads the answers of many devices, and a LAN has one gateway."""
        if not self.advertising and self._waiting is None:
            return
        if self._host_limit.take(sender[0]) is None or self._limit.take("") is None:
            self.counters.over_limit += 1
        elif self._waiting is None:
            self._answer(port, messages, sender)
        elif len(self._waiting) < WAITING_SEARCHES_LIMIT:
            self._waiting.append((port, messages, sender))
        else:
            self.counters.over_limit += 1

    def _answer(self, port: _Port, messages: tuple[bytes, ...], sender: tuple[str, int]) -> None:
        for message in messages:
            self.counters.answers += 1
            self._send(port.listener, message, sender)

    def _sighted(self, port: _Port, sighting: Sighting, address: IPv4Address) -> None:
        """Check what may be another gateway, one check of an address at a time."""
        if self.force or not sighting.is_gateway or sighting.belongs_to(self.identity):
            return
        endpoint = sighting.endpoint
        if endpoint is None or endpoint[0] != address:
            self._doubt(sighting, address, "LOCATION is not at the address that sent it")
            return
        if address in self._checks or len(self._checks) >= CHECKS_LIMIT or self._check_limit.take(address) is None:
            return
        task = asyncio.get_running_loop().create_task(self._check(port, sighting, endpoint))
        self._checks[address] = task
        task.add_done_callback(lambda _: self._checks.pop(address))

    async def _check(self, port: _Port, sighting: Sighting, endpoint: tuple[IPv4Address, int]) -> None:
        """Fall silent when it accepts a connection: anybody on the LAN can send that a gateway is somewhere."""
        address, tcp_port = endpoint
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                transport, _ = await loop.create_connection(asyncio.Protocol, str(address), tcp_port)
        except OSError:  # TimeoutError is one
            self._doubt(sighting, address, "nobody accepts connections there")
            return
        transport.abort()
        self._fall_silent(port, sighting, address)

    def _doubt(self, sighting: Sighting, address: IPv4Address, reason: str) -> None:
        self.counters.unconfirmed += 1
        self._log.write(logging.INFO, "ssdp_no_gateway", address, location=sighting.location, reason=reason)

    def _fall_silent(self, port: _Port, sighting: Sighting, address: IPv4Address) -> None:
        """Another gateway is on the LAN: control points would map on either."""
        self._seen.set()
        if self.conflict is not None:
            return
        self.conflict = f"{address} ({port.lan.device}) {sighting.location} {sighting.server}".strip()
        _log.error(
            line(
                "ssdp_conflict",
                address=address,
                device=port.lan.device,
                location=sighting.location,
                server=sighting.server,
                reason="another UPnP gateway is on this LAN: stop it (miniupnpd?), or set option force 1",
            )
        )
        if self.advertising:
            self._say_goodbye()
            self.advertising = False

    def _send(self, sock: socket.socket, message: bytes, to: tuple[str, int]) -> None:
        try:
            sock.sendto(message, to)
        except OSError as error:
            self.counters.send_errors += 1
            self._log.write(logging.DEBUG, "ssdp_send", to[0], reason=error.strerror)

    def _close_ports(self) -> None:
        loop = asyncio.get_running_loop()
        for port in self._ports:
            for sock in (port.listener, port.sender):
                loop.remove_reader(sock)
                sock.close()
        self._ports.clear()
