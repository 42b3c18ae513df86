# SPDX-License-Identifier: Apache-2.0
"""The line to the server that is asked: which server at which address, its engine, and the sockets.

Servers and their addresses are tried one after the other (RFC 7488), and one is asked at a time. The same server at
another of its addresses keeps its engine; another server gets another one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import IPAddress, PcpPeer
from igdpcp.pcp.client import Event, PcpClient, ServerState, ServerStateChanged
from igdpcp.pcp.discovery import ROUND_INTERVAL, Choice, Server
from igdpcp.pcp.message import SERVER_PORT
from igdpcp.pcp.timing import Timing
from igdpcp.upstreams.pcp_sockets import PcpSockets, Source

LOG = logging.getLogger("igdpcp.upstream")


class ServerLine:
    """Drives the engine with sockets and the loop's clock; what it says comes out by the callbacks.

    ``event``: what the engine reports but for its state. ``state_changed``: what is known of the servers, with a reason
    for people; LOST only when none is left to try. ``engine_made``: ``engine`` is another one, which knows no mapping
    yet. ``internal_changed``: our own mappings are for ``internal``, no longer for its argument. ``asked_anew``: what
    was granted was granted from or at another address. ``peer_changed``: ``peer`` is another one by itself.
    """

    def __init__(
        self,
        *,
        timing: Timing,
        secret: bytes,
        rng: random.Random,
        log_wire: bool,
        event: Callable[[Event], None],
        state_changed: Callable[[ServerState, str], None],
        engine_made: Callable[[], None],
        internal_changed: Callable[[IPv4Address], None],
        asked_anew: Callable[[], None],
        peer_changed: Callable[[], None],
    ) -> None:
        self._timing = timing
        self._secret = secret
        self._rng = rng
        self._event = event
        self._state_changed = state_changed
        self._engine_made = engine_made
        self._internal_changed = internal_changed
        self._asked_anew = asked_anew
        self._peer_changed = peer_changed
        self._loop = asyncio.get_running_loop()
        self._sockets = PcpSockets(self._received, self.pump, self._unreachable, log_wire)
        self._servers: tuple[Server, ...] = ()
        self._choice = Choice(())
        self._device = ""
        self._wan_address: IPv4Address | None = None
        self._asked: tuple[IPAddress, IPAddress] | None = None  # from which address of ours, at which of the server's
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.TimerHandle | None = None
        self._pumping = False
        self.engine: PcpClient | None = None
        self.server: Server | None = None
        self.internal: IPv4Address | None = None

    @property
    def address(self) -> IPAddress | None:
        """The address at which the server is asked, or would be."""
        return self._choice.address if self._choice else None

    @property
    def trusted(self) -> bool:
        """Whether the server may be asked on behalf of other hosts."""
        return bool(self._choice) and self._choice.server.trusted

    @property
    def up(self) -> bool:
        """Whether there is a way to the server."""
        return self._sockets.port is not None

    @property
    def peer(self) -> PcpPeer | None:
        """Whose packets the router has to let in, to which port; None while nobody is asked."""
        port = self._sockets.port
        return PcpPeer(self._choice.address, port) if port and self._choice else None

    @property
    def counters(self) -> Counter[str]:
        """What was sent, received and ignored, and why."""
        return (self.engine.counters if self.engine else Counter()) + Counter(refused=self._sockets.refused)

    def network_changed(self, device: str, address: IPv4Address | None, servers: Iterable[Server]) -> str | None:
        """The WAN is this device with this address (None: it is down), and these are the servers behind it.

        Returns why none can be asked; None: one is.
        """
        self._device, self._wan_address = device, address
        self._choose(tuple(servers))
        self._sockets.close()
        problem = "the WAN has no IPv4 address" if address is None else "no PCP server is known"
        if address is not None and self._choice:
            problem = self._connect() or ""
        if problem and self.engine:
            self.engine.address_changed(None, self._loop.time())
            self.pump()
        return problem or None

    def close(self) -> None:
        """Stop talking; grants stay as they are."""
        self._sockets.close()
        for timer in (self._timer, self._round):
            if timer:
                timer.cancel()

    def pump(self) -> None:
        """Send what the engine has to send, pass on what happened, and wake up when it next wants to."""
        if self._pumping or self.engine is None:
            return
        self._pumping = True
        try:
            busy = True
            while busy:
                busy = False
                while event := self.engine.next_event():  # first: it may mean that another address is asked
                    self._take(event)
                    busy = True
                for data in self.engine.datagrams_to_send(self._loop.time()):
                    self._sockets.send(data)
                    busy = True
        finally:
            self._pumping = False
        if self._timer:
            self._timer.cancel()
        due = self.engine.next_timer()
        self._timer = self._loop.call_at(due, self._timer_fired) if due is not None else None

    def _take(self, event: Event) -> None:
        if isinstance(event, ServerStateChanged):
            self._engine_state(event.state, event.reason)
        else:
            self._event(event)

    def _choose(self, servers: tuple[Server, ...]) -> None:
        """What is asked stays so while it is one of the servers."""
        if servers == self._servers:
            return
        current = (self._choice.server, self._choice.address) if self._choice else None
        self._servers, self._choice = servers, Choice(servers)
        if current:
            self._choice.prefer(*current)
        self._end_round()

    def _connect(self) -> str | None:
        """Ask at the address that is chosen, or at the first one after it that there is a way to; why at none."""
        while True:
            address = self._choice.address
            try:
                source = self._sockets.open(self._device, address)
                break
            except OurFault as fault:
                if not self._choice.failed():
                    return str(fault)
        now = self._loop.time()
        before, self._asked = self._asked, (source, address)
        self._follow(source if isinstance(source, IPv4Address) else self._wan_address)
        if self.engine is None or self.server != self._choice.server:
            self._make_engine(self._choice.server, address)
        elif before and before[1] != address:
            self.engine.server_moved(address, now)
        engine = self.engine
        assert engine is not None
        self._show(engine.state, f"asking {address}" if engine.state is ServerState.PROBING else engine.reason)
        engine.address_changed(source, now, self.internal)
        if self._asked != before:
            self._asked_anew()
        engine.announce(now)
        self.pump()
        return None

    def _make_engine(self, server: Server, address: IPAddress) -> None:
        self.server = server
        self.engine = PcpClient(
            server=(address, SERVER_PORT),
            server_identity=server.identity,
            secret=self._secret,
            rng=self._rng,
            timing=self._timing,
        )
        self._engine_made()

    def _follow(self, internal: IPv4Address | None) -> None:
        before, self.internal = self.internal, internal
        if before is not None and before != internal:
            self._internal_changed(before)

    def _engine_state(self, state: ServerState, reason: str) -> None:
        if state is ServerState.ACTIVE:
            self._choice.answered()
            self._end_round()
        elif state is ServerState.LOST and len(self._choice) > 1:
            if self._try_next(reason):
                return
            self._end_round()
            self._round = self._loop.call_later(ROUND_INTERVAL, self._begin_round)
        self._show(state, reason)

    def _show(self, state: ServerState, reason: str) -> None:
        """In a later round nothing is said before something answers."""
        if self._round is None or state is not ServerState.PROBING:
            self._state_changed(state, reason)

    def _try_next(self, why: str) -> bool:
        """Ask at the next address; False: all have failed."""
        failed = self._choice.address
        if not self._choice.failed():
            return False
        LOG.warning(line("pcp_server_not_there", address=failed, reason=why, trying=self._choice.address))
        return self._reconnect()

    def _begin_round(self) -> None:
        self._choice.begin_anew()
        self._reconnect()

    def _reconnect(self) -> bool:
        self._sockets.close()
        if self._connect():
            return False
        self._peer_changed()
        return True

    def _end_round(self) -> None:
        if self._round:
            self._round.cancel()
            self._round = None

    def _unreachable(self) -> None:
        """RFC 7488 section 3: a hard error means the next address at once; but not in the middle of sending."""
        if len(self._choice) > 1:
            self._loop.call_soon(self._refused_at, self._choice.address)

    def _refused_at(self, address: IPAddress) -> None:
        if self.up and self._choice and address == self._choice.address:
            self._try_next("nobody listens there")

    def _received(self, data: bytes, source: Source) -> None:
        if self.engine:
            self.engine.receive_datagram(data, source, self._loop.time())

    def _timer_fired(self) -> None:
        assert self.engine is not None
        self.engine.handle_timer(self._loop.time())
        self.pump()
