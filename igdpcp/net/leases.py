# SPDX-License-Identifier: Apache-2.0
"""Which LAN hosts' DHCP leases have ended: dnsmasq's lease file, and the marks that its hotplug events leave.

A line of the file is EXPIRY MAC ADDRESS NAME CLIENT-ID; a mark is a file ``ended.ADDRESS`` in the run-time directory,
which the hook takes away when the same host gets the address again. Absence says nothing: the file is empty after a
reboot, and the hosts keep their leases. Expiries are of the wall clock, which jumps when a router learns the time; so a
lease ends as long after it was seen as it had left then, and one that was never seen running is not believed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import stat
import time
from collections.abc import Callable, Collection
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from igdpcp.log import line
from igdpcp.values import dataclass

LOG = logging.getLogger("igdpcp.net")
LOOK_SECONDS = 2.0
GRACE_SECONDS = 5.0  # a host that gives its lease up and asks anew is the same one, with the same mappings
CONFIRM_SECONDS = 1.0  # the file may be read while it is being written
FILE_LIMIT = 1024 * 1024  # octets; 1000 leases, dnsmasq's own limit, are some hundred thousand
MARK = "ended."
NO_CLIENT_ID = b"*"

Clients = Collection[IPv4Address]


@dataclass(frozen=True, slots=True)
class _Lease:
    """One line of the file; ``expires`` 0: never."""

    expires: int
    mac: bytes
    client_id: bytes

    def is_same_host(self, other: _Lease) -> bool:
        return self.mac == other.mac or (self.client_id == other.client_id != NO_CLIENT_ID)


class DhcpLeases:
    """Knows what was seen of the hosts that it is asked about; ``clock`` is the loop's, ``wall`` the DHCP server's."""

    def __init__(
        self, file: Path, run_dir: Path, clock: Callable[[], float], wall: Callable[[], float] = time.time
    ) -> None:
        self._file = file
        self._run_dir = run_dir
        self._clock = clock
        self._wall = wall
        self._read_as: tuple[int, int, int] | None = None  # what the file looked like when it was read
        self._read_for: frozenset[IPv4Address] = frozenset()
        self._lines: dict[IPv4Address, _Lease] = {}  # of these, what the file says
        self._running: dict[IPv4Address, tuple[_Lease, float]] = {}  # seen to run, and when they end by our clock
        self._doubtful: dict[IPv4Address, float] = {}  # since when

    async def follow(self, clients: Callable[[], Clients], over: Callable[[Clients], None]) -> None:
        """Look now and then until cancelled; ``over`` gets those of the clients whose leases have ended."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if ended := self.ended(clients()):
                    over(ended)
                    self.settled(ended)
            except Exception:  # this may not end: no lease would end any more
                LOG.exception(line("leases_look_failed"))

    def ended(self, clients: Clients) -> frozenset[IPv4Address]:
        """Those of the clients whose leases have ended; they are told until they are ``settled``."""
        now = self._clock()
        marks = self._marks()
        for address in marks.difference(clients):
            self._unmark(address)
        self._learn(frozenset(clients), now)
        doubts = {address: self._doubt(address, address in marks, now) for address in clients}
        self._doubtful = {
            address: self._doubtful.get(address, now) for address, seconds in doubts.items() if seconds < math.inf
        }
        return frozenset(address for address, since in self._doubtful.items() if now - since >= doubts[address])

    def settled(self, clients: Clients) -> None:
        """What these leases had to end has ended."""
        for address in clients:
            self._running.pop(address, None)
            self._doubtful.pop(address, None)
            self._unmark(address)

    def _doubt(self, address: IPv4Address, marked: bool, now: float) -> float:
        """For how long it has to look as it does now until the lease has ended; infinity: it looks good."""
        running, ends = self._running.get(address, (None, math.inf))
        listed = self._lines.get(address)
        if running and listed and not running.is_same_host(listed):
            return CONFIRM_SECONDS
        if marked and running and 0 < running.expires <= self._wall() and now < ends:
            return math.inf  # the clock has jumped over its end, of which the host knows nothing
        return GRACE_SECONDS if marked or ends <= now else math.inf

    # -- the lease file ------------------------------------------------------------------------------------------

    def _learn(self, clients: frozenset[IPv4Address], now: float) -> None:
        self._read(clients)
        self._running = {address: seen for address, seen in self._running.items() if address in clients}
        for address, lease in self._lines.items():
            known, _ = self._running.get(address, (None, 0.0))
            if known == lease or (known and not known.is_same_host(lease)):
                continue
            left = lease.expires - self._wall() if lease.expires else math.inf
            if left > 0:
                self._running[address] = lease, now + left

    def _read(self, clients: frozenset[IPv4Address]) -> None:
        """Read the file again when it is another one, when it is asked about others, or to be sure of a doubt."""
        try:
            status = self._file.stat()
            looks = status.st_mtime_ns, status.st_size, status.st_ino
            if looks == self._read_as and clients <= self._read_for and not self._doubtful:
                return
            octets = b""
            if clients and stat.S_ISREG(status.st_mode):
                with self._file.open("rb") as file:
                    octets = file.read(FILE_LIMIT)
        except OSError:
            looks, octets = None, b""  # no DHCP server here, or none yet
        self._read_as, self._read_for = looks, clients
        self._lines = _parse(octets, {str(address).encode(): address for address in clients})

    # -- the hook's marks ----------------------------------------------------------------------------------------

    def _marks(self) -> set[IPv4Address]:
        marks = set[IPv4Address]()
        try:
            names = [path.name for path in self._run_dir.iterdir()]
        except OSError:
            return marks
        for name in names:
            if name.startswith(MARK):
                try:
                    marks.add(IPv4Address(name.removeprefix(MARK)))
                except AddressValueError:
                    continue
        return marks

    def _unmark(self, address: IPv4Address) -> None:
        try:
            (self._run_dir / f"{MARK}{address}").unlink(missing_ok=True)
        except OSError as error:
            LOG.warning(line("mark_stays", client=address, error=error.strerror))


def _parse(octets: bytes, wanted: dict[bytes, IPv4Address]) -> dict[IPv4Address, _Lease]:
    """The leases of these addresses; DHCPv6's lines and what is no lease are passed over."""
    leases: dict[IPv4Address, _Lease] = {}
    for text in octets.split(b"\n"):
        match text.split():
            case [expires, mac, address, _, *rest] if address in wanted and expires.isdigit() and len(expires) < 20:
                leases[wanted[address]] = _Lease(int(expires), mac, rest[0] if rest else NO_CLIENT_ID)
    return leases
