# SPDX-License-Identifier: Apache-2.0
"""Which ports of the WAN address others on this router have: its programs, and the redirects of its administrator.

Programs are asked for when a port is claimed. Redirects are read now and then, and when the firewall has changed: their
rules stand still for long, and reading them takes longer than a request may.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import Mapping, Mode, Protocol
from igdpcp.net import listeners, sockets
from igdpcp.net.router import RouterView
from igdpcp.netfilter.redirects import redirects_by_rules
from igdpcp.netfilter.taken_ports import PortIndex, TakenPorts
from igdpcp.netfilter.uci_redirects import UciRedirects

LOG = logging.getLogger("igdpcp.daemon")
LOGGED = 16  # conflicts that one look tells each in a line of its own
SHOWN = 32  # in the status
LASTING_SECONDS = 10.0  # a UDP socket that asks one question, as a resolver does, is gone by then
PROGRAM = "a program of this router"
Port = tuple[Protocol, int]


class PortsInUse:
    """Methods are called on the event loop. ``conflicts`` are open mappings whose WAN port somebody has taken since.

    ``pcp_port`` is the UDP port of our own PCP client, to which its server may send unasked.
    """

    def __init__(self, router: RouterView, mappings: Iterable[Mapping], pcp_port: Callable[[], int | None]) -> None:
        self._router = router
        self._mappings = mappings
        self._pcp_port = pcp_port
        self._uci = UciRedirects()
        self._redirects = PortIndex()
        self._by_source: dict[str, list[TakenPorts]] = {}
        self._faults: dict[str, str] = {}
        self._asks_kernel = True
        self._held_since: dict[Port, float] = {}
        self._conflicts: dict[Port, tuple[str, str]] = {}  # the mapping's id, and who has its port
        self._looking = False
        self._again = False

    def holds(self, protocol: Protocol, port: int) -> bool:
        """Whether somebody else has the port; raises OurFault when that cannot be told."""
        address = self._router.wan_address
        if address is None:
            return False
        if (protocol, port) in self._redirects or (protocol is Protocol.UDP and port == self._pcp_port()):
            return True
        if not self._asks_kernel:
            return sockets.port_in_use(protocol, address, port)
        with listeners.Listeners(self._router.wan_device) as kernel:
            return kernel.hold(protocol, address, port)

    @property
    def conflicts(self) -> list[str]:
        """In words, for people; SHOWN at most."""
        open_now = {mapping.id: mapping for mapping in self._mappings if mapping.visible} if self._conflicts else {}
        found = [
            f"{protocol.name.lower()} {port}, mapped to {open_now[id].request.client}, is also used by {by}"
            for (protocol, port), (id, by) in self._conflicts.items()
            if id in open_now
        ]
        return found[:SHOWN]

    async def look(self) -> None:
        """Read the redirects anew, and see which mappings have lost their port; never raises.

        One look at a time: who asks meanwhile makes it begin once more, and is not waited for.
        """
        self._again = True
        if self._looking:
            return
        self._looking = True
        try:
            while self._again:
                self._again = False
                await self._look()
        finally:
            self._looking = False

    async def _look(self) -> None:
        mappings = list(self._mappings)
        device, address, pcp_port = self._router.wan_device, self._router.wan_address, self._pcp_port()
        found = await asyncio.to_thread(self._read, mappings, device, address, pcp_port)
        new = [port for port, conflict in found.items() if self._conflicts.get(port) != conflict]
        self._conflicts = found
        clients = {mapping.id: mapping.request.client for mapping in mappings} if new else {}
        for port in new[:LOGGED]:
            id, by = found[port]
            LOG.warning(line("wan_port_taken", protocol=port[0].name, wan_port=port[1], client=clients[id], by=by))
        if len(new) > LOGGED:
            LOG.warning(line("wan_ports_taken", more=len(new) - LOGGED))

    # What follows runs in a thread.

    def _read(
        self, mappings: list[Mapping], device: str, address: IPv4Address | None, pcp_port: int | None
    ) -> dict[Port, tuple[str, str]]:
        """Reads everything anew; returns the conflicts."""
        self._tried("redirects of uci", lambda: self._keep("uci", self._uci.taken(device, address)))
        self._tried("redirects of the firewall", lambda: self._keep("rules", redirects_by_rules(device, address)))
        self._redirects = PortIndex([taken for source in self._by_source.values() for taken in source])
        mapped = [mapping for mapping in mappings if mapping.visible and mapping.mode is not Mode.ROUTED]
        held: set[Port] = set()
        self._asks_kernel = self._tried("listening programs", lambda: self._ask(device, address, mapped, held))
        now = time.monotonic()
        self._held_since = {port: self._held_since.get(port, now) for port in held}
        found: dict[Port, tuple[str, str]] = {}
        for mapping in mapped:
            port = _wan_port(mapping)
            if port in self._redirects:
                found[port] = mapping.id, self._redirects.by(*port)
            elif port in held and (port[0] is Protocol.TCP or now - self._held_since[port] >= LASTING_SECONDS):
                found[port] = mapping.id, PROGRAM
            elif port == (Protocol.UDP, pcp_port):
                found[port] = mapping.id, "the PCP client of igdpcp itself"
        return found

    def _keep(self, source: str, taken: list[TakenPorts]) -> None:
        self._by_source[source] = taken

    def _ask(self, device: str, address: IPv4Address | None, mapped: Iterable[Mapping], held: set[Port]) -> None:
        listeners.check()
        if address is not None:
            with listeners.Listeners(device) as kernel:
                held |= {port for port in map(_wan_port, mapped) if kernel.hold(port[0], address, port[1])}

    def _tried(self, what: str, read: Callable[[], None]) -> bool:
        """Whether it succeeded; a failure is told when it begins, and what was known before stays."""
        try:
            read()
        except Exception as error:  # also a rule of a shape that nobody foresaw: the next look is to come
            if self._faults.get(what) != str(error):
                unforeseen = None if isinstance(error, OurFault) else error
                LOG.warning(line("ports_in_use_unknown", what=what, reason=error), exc_info=unforeseen)
            self._faults[what] = str(error)
            return False
        self._faults.pop(what, None)
        return True


def _wan_port(mapping: Mapping) -> Port:
    return mapping.request.protocol, mapping.wan_port
