# SPDX-License-Identifier: Apache-2.0
"""The PCP and NAT-PMP server of the LANs: its sockets, what hosts ask there, and how much of it at a time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.config import MainConfig
from igdpcp.daemon.flood_guard import FloodGuard, plain_address
from igdpcp.daemon.lan_hosts import HostOf, by_address
from igdpcp.daemon.pcp_epoch import PcpEpoch
from igdpcp.daemon.pcp_requests import Asked, PcpRequests
from igdpcp.errors import OurFault
from igdpcp.iwf.internal_tuples import InternalTuples
from igdpcp.iwf.outside import Outside
from igdpcp.log import SparingLog
from igdpcp.model import PCP_CLIENT_PORT, IPAddress, Mapping
from igdpcp.net.router import Lan
from igdpcp.net.sockets import ANNOUNCE_GROUP, pcp_listener
from igdpcp.pcp import natpmp_server, server
from igdpcp.pcp.message import MAX_LENGTH
from igdpcp.pcp.natpmp import NATPMP_VERSION
from igdpcp.values import dataclass

RECEIVE_BATCH = 32  # datagrams of a socket read before others get their turn
WAITING_LIMIT = 256  # requests that wait for their outcome, of all hosts together
WAITING_PER_HOST = 32
ANSWER_TIMEOUT = 20.0  # seconds until nobody waits for an outcome any more

_EVERYBODY = (str(ANNOUNCE_GROUP), PCP_CLIENT_PORT)
_Sender = tuple[str, int]

_log = logging.getLogger("igdpcp.pcp_server")


@dataclass(slots=True)
class PcpServerCounters:
    """What happened since the start."""

    requests: int = 0
    answers: int = 0
    announcements: int = 0
    not_on_lan: int = 0  # datagrams from addresses that are not served
    repeated: int = 0  # requests that came again while they waited for their outcome
    over_limit: int = 0  # requests beyond a ceiling
    late: int = 0  # requests without an outcome
    flood: int = 0  # datagrams of hosts that had had their share
    barred: int = 0  # times that the kernel was told to drop those of a host
    no_request: int = 0  # datagrams that no answer is due to
    send_errors: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Door:
    lan: Lan
    socket: socket.socket


_Waiting = tuple[_Door, _Sender, bytes]


class PcpServer:
    """Answers hosts of the LANs at the router's addresses there, and tells them when its epoch begins anew.

    What needs an outcome is waited for in a task of its own. A request that comes again meanwhile is answered once;
    beyond the ceilings there is no answer, so that it is sent again.
    """

    def __init__(
        self,
        *,
        main: MainConfig,
        tuples: InternalTuples,
        outside: Outside,
        mappings: Iterable[Mapping],
        admit: Callable[[IPAddress, str], bool],
        host_of: HostOf = by_address,
    ) -> None:
        """``mappings``: the table's. ``admit`` tells for an address and a device whether that host is served."""
        self._speaks_pcp = main.pcp_server
        self._speaks_natpmp = main.natpmp_server
        self._tuples = tuples
        self._mappings = mappings
        self._admit = admit
        self._host_of = host_of
        self._log = SparingLog(_log)
        self._requests = PcpRequests(tuples, outside, self._log)
        self._epoch = PcpEpoch(tuples, lambda: outside.address()[0], self._uses, self._announce)
        self._guard = FloodGuard()
        self._counters = PcpServerCounters()
        self._loop = asyncio.get_running_loop()
        self._doors: dict[Lan, _Door] = {}
        self._waiting: dict[_Waiting, tuple[asyncio.Task[None], object]] = {}  # and whose it is

    @property
    def languages(self) -> list[str]:
        """What is spoken: a router that does no NAT does not speak NAT-PMP (RFC 6886 section 3)."""
        spoken = {"pcp": self._speaks_pcp, "nat-pmp": self._speaks_natpmp and self._tuples.does_nat}
        return [language for language, speaks in spoken.items() if speaks]

    @property
    def addresses(self) -> list[IPAddress]:
        """Where it is served."""
        return [lan.address for lan in self._doors]

    @property
    def epoch(self) -> int:
        return self._epoch.seconds

    @property
    def waiting(self) -> int:
        """Requests that wait for their outcome."""
        return len(self._waiting)

    @property
    def counters(self) -> PcpServerCounters:
        return replace(self._counters, flood=self._guard.dropped, barred=self._guard.barred_hosts)

    # -- the LANs ------------------------------------------------------------------------------------------------

    def serve(self, lans: Collection[Lan]) -> dict[Lan, OurFault]:
        """Serve exactly these, those of IPv4, and say which could not be opened; what stays is not disturbed."""
        wanted = [lan for lan in lans if not lan.is_ipv6] if self._speaks_pcp or self._speaks_natpmp else []
        for lan in [lan for lan in self._doors if lan not in wanted]:
            self._close(self._doors.pop(lan))
        faults: dict[Lan, OurFault] = {}
        coming = [lan for lan in wanted if lan not in self._doors]
        for lan in coming:
            try:
                door = _Door(lan, pcp_listener(lan.device, lan.address))
            except OurFault as fault:
                faults[lan] = fault
                continue
            self._doors[lan] = door
            self._guard.watch(door.socket)
            self._loop.add_reader(door.socket, self._receive, door)
        if len(faults) < len(coming):
            self._epoch.announce()
        return faults

    def outside_changed(self) -> None:
        """The external address may be another one. Cheap: it is called with every change of the table."""
        if self._doors:
            self._epoch.look_again()

    async def stop(self) -> None:
        """Serve no LAN, and end what waits."""
        tasks = [task for task, _ in self._waiting.values()]
        for door in self._doors.values():
            self._close(door)
        self._doors.clear()
        self._epoch.stop()
        self._guard.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _close(self, door: _Door) -> None:
        self._loop.remove_reader(door.socket)
        self._guard.forget(door.socket)
        door.socket.close()
        for (through, _, _), (task, _) in self._waiting.items():
            if through is door:
                task.cancel()

    # -- requests ------------------------------------------------------------------------------------------------

    def _receive(self, door: _Door) -> None:
        for _ in range(RECEIVE_BATCH):
            try:
                octets, sender = door.socket.recvfrom(MAX_LENGTH + 1)  # to see that one is too long
            except OSError:  # nothing left, or an ICMP error of something sent earlier
                return
            if self._guard.admits(sender[0]):
                self._heard(door, octets, sender)

    def _heard(self, door: _Door, octets: bytes, sender: _Sender) -> None:
        source = plain_address(sender[0])
        if not isinstance(source, IPv4Address) or not self._admit(source, door.lan.device):
            self._counters.not_on_lan += 1
            return
        asked = self._asked(octets, source)
        if asked is None:
            self._counters.no_request += 1
            return
        self._counters.requests += 1
        if isinstance(asked, bytes):
            self._answer(door, asked, sender)
        else:
            self._take(door, sender, octets, asked, source)

    def _asked(self, octets: bytes, source: IPv4Address) -> Asked | bytes | None:
        """Version 0 is NAT-PMP where that is spoken, and an unknown version of PCP where it is not."""
        speaks_natpmp = self._speaks_natpmp and self._tuples.does_nat
        if speaks_natpmp and (not self._speaks_pcp or octets[:1] == bytes([NATPMP_VERSION])):
            return natpmp_server.receive(octets, self.epoch)
        return server.receive(octets, source, self.epoch) if self._speaks_pcp else None

    def _take(self, door: _Door, sender: _Sender, octets: bytes, asked: Asked, source: IPv4Address) -> None:
        waiting = door, sender, octets
        if waiting in self._waiting:
            self._counters.repeated += 1
            return
        host = self._host_of(source, door.lan.device)
        of_host = sum(whose == host for _, whose in self._waiting.values())
        if of_host >= WAITING_PER_HOST or len(self._waiting) >= WAITING_LIMIT:
            self._counters.over_limit += 1
            return
        task = self._loop.create_task(self._see_to(door, sender, asked, source))
        self._waiting[waiting] = task, host
        task.add_done_callback(lambda _: self._waiting.pop(waiting))

    async def _see_to(self, door: _Door, sender: _Sender, asked: Asked, source: IPv4Address) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                respond = await self._requests.outcome(asked, source)
        except TimeoutError:
            self._counters.late += 1
        except Exception:  # a fault of ours: the host asks again, and others are served
            self._log.write(logging.ERROR, "pcp_request_failed", source, exc_info=True)
        else:
            self._answer(door, respond(self.epoch), sender)

    def _answer(self, door: _Door, octets: bytes, to: _Sender) -> None:
        self._counters.answers += 1
        self._send(door, octets, to)

    # -- telling everybody ---------------------------------------------------------------------------------------

    def _uses(self, address: IPv4Address) -> bool:
        return any(m.visible and m.grant and m.grant.external.address == address for m in self._mappings)

    def _announce(self) -> None:
        """RFC 6887 section 14.1.1, RFC 6886 section 3.2.1; NAT-PMP has nothing to tell while there is no address."""
        messages = []
        if "pcp" in self.languages:
            messages.append(server.announcement(self.epoch))
        if "nat-pmp" in self.languages and self._epoch.address:
            messages.append(natpmp_server.address(self.epoch, self._epoch.address))
        for door in self._doors.values():
            for octets in messages:
                self._counters.announcements += 1
                self._send(door, octets, _EVERYBODY)

    def _send(self, door: _Door, octets: bytes, to: _Sender) -> None:
        try:
            door.socket.sendto(octets, to)
        except OSError as error:
            self._counters.send_errors += 1
            self._log.write(logging.DEBUG, "pcp_send", to[0], reason=error.strerror)
