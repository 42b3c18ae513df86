# SPDX-License-Identifier: Apache-2.0
"""The line to the server that is asked: which server at which address, its engine, and the sockets.

Servers and their addresses are tried one after the other (RFC 7488), and one is asked at a time. The same server at
another of its addresses, or named in another way, keeps its engine; another server gets another one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import PCP_SERVER_PORT, IPAddress
from igdpcp.openings import PcpPeer
from igdpcp.pcp.client import Event, PcpClient, ServerState, ServerStateChanged
from igdpcp.pcp.conduct import Conduct
from igdpcp.pcp.discovery import ROUND_INTERVAL, Choice, Origin, Server, known_as
from igdpcp.pcp.timing import Timing
from igdpcp.upstreams.pcp_sockets import PcpSockets, Source

LOG = logging.getLogger("igdpcp.upstream")


class ServerLine:
    """Drives the engine with sockets and the loop's clock; what it says comes out by the callbacks.

    ``event``: what the engine reports but for its state. ``state_changed``: what is known of the servers, with a reason
    for people; LOST only when none is left to try. ``server_left``: another server will be asked than ``server``.
    ``engine_made``: ``engine`` is another one, which knows no mapping yet. ``from_elsewhere``: what was granted was
    granted to another address of ours. ``peer_changed``: ``peer`` is another one by itself.
    """

    def __init__(
        self,
        *,
        timing: Timing,
        conduct: Conduct,
        secret: bytes,
        rng: random.Random,
        log_wire: bool,
        event: Callable[[Event], None],
        state_changed: Callable[[ServerState, str], None],
        server_left: Callable[[], None],
        engine_made: Callable[[], None],
        from_elsewhere: Callable[[], None],
        peer_changed: Callable[[], None],
    ) -> None:
        self._timing = timing
        self._conduct = conduct
        self._secret = secret
        self._rng = rng
        self._event = event
        self._state_changed = state_changed
        self._server_left = server_left
        self._engine_made = engine_made
        self._from_elsewhere = from_elsewhere
        self._peer_changed = peer_changed
        self._loop = asyncio.get_running_loop()
        self._sockets = PcpSockets(self._received, self.pump, self._unreachable, log_wire)
        self._named: tuple[Server, ...] = ()  # as we were told; those in use may have kept another identity
        self._servers: tuple[Server, ...] = ()
        self._choice = Choice(())
        self._device = ""
        self._wan_address: IPv4Address | None = None
        self._asked: tuple[IPAddress, IPAddress] | None = None  # from which address of ours, at which of the server's
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.TimerHandle | None = None
        self._pumping = False
        self._shown: ServerState | None = None  # what was said last of the servers behind this WAN
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
    def guessed(self) -> bool:
        """Whether nobody said that there is a server."""
        return self.server is not None and self.server.origin in (Origin.ROUTER, Origin.ANYCAST)

    @property
    def up(self) -> bool:
        """Whether there is a way to the server."""
        return self._sockets.port is not None

    @property
    def wan_is_up(self) -> bool:
        """Whether the WAN has an address at all."""
        return self._wan_address is not None

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

        Returns why none can be asked; None: one is. May be called at any time: the socket is kept while it is what
        would be opened now.
        """
        same_device = device == self._device
        self._device, self._wan_address = device, address
        if not self._conduct.third_party:
            servers = [replace(server, third_party=False) for server in servers]
        news = self._choose(tuple(servers))
        if address is None or not self._choice:
            self._end_round()
            return self._disconnect("the WAN has no IPv4 address" if address is None else "no PCP server is known")
        begins_anew = news and self._is_lost()
        if same_device and not begins_anew and self._stays_connected():
            return None
        self._sockets.close()
        self._end_round()
        self._choice.go_round()
        self._shown = None
        problem = self._connect()
        return self._disconnect(problem) if problem else None

    def close(self) -> None:
        """Stop talking; grants stay as they are. What is asked for behind this goes nowhere, and leaves no timer."""
        self._sockets.close()
        self.engine = None
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
        due = self.engine.next_timer()
        if self._timer and self._timer.when() == due:
            return
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._timer_fired) if due is not None else None

    def _take(self, event: Event) -> None:
        if isinstance(event, ServerStateChanged):
            self._engine_state(event.state, event.reason)
        else:
            self._event(event)

    def _choose(self, servers: tuple[Server, ...]) -> bool:
        """What is asked stays so while it is one of the servers and not lost; whether the list is another one."""
        if servers == self._named:
            return False
        asked = self._choice.address if self._choice else None
        self._named = servers
        self._servers = known_as(servers, [*([self.server] if self.server else []), *self._servers])
        self._choice = Choice(self._servers)
        if asked and self.server and not self._is_lost():
            self._choice.prefer(self.server.identity, asked)
        return True

    def _is_lost(self) -> bool:
        return self.engine is not None and self.engine.state is ServerState.LOST

    def _stays_connected(self) -> bool:
        """Whether the socket leads to the server that is to be asked, from the address that the kernel takes now."""
        server, address = self._choice.server, self._choice.address
        if not self.up or not self._asked or not self.server or self.server.identity != server.identity:
            return False
        try:
            source = self._sockets.source(self._device, address)
        except OurFault:
            return False
        if (source, address) != self._asked or self._internal(source) != self.internal:
            return False
        self.server = server
        return True

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
        self.internal = self._internal(source)
        engine = self._engine_for(before)
        engine.address_changed(source, now, self.internal)
        self._show(engine.state, f"asking {address}" if engine.state is ServerState.PROBING else engine.reason)
        if before is None or before[0] != source:
            self._from_elsewhere()
        engine.announce(now)
        self.pump()
        return None

    def _internal(self, source: IPAddress) -> IPv4Address | None:
        """The address that our own mappings are for, when we ask from this one."""
        return source if isinstance(source, IPv4Address) else self._wan_address

    def _engine_for(self, before: tuple[IPAddress, IPAddress] | None) -> PcpClient:
        """The engine of the server that is chosen; after any break it is PROBING until something answers."""
        assert self._asked is not None
        (source, address), server, engine = self._asked, self._choice.server, self.engine
        another = self.server is None or self.server.identity != server.identity
        if server.origin is Origin.ANYCAST and before and before[0] != source:
            another = True  # RFC 7723: from elsewhere the address may be another server's, or nobody's
        if engine is None or another:
            return self._make_engine(server, address)
        self.server = server
        if engine.address is None or engine.state is ServerState.LOST or (before and before[1] != address):
            engine.server_moved(address, self._loop.time())
        return engine

    def _disconnect(self, problem: str) -> str:
        """Nobody can be asked, and silence means nothing; returns why."""
        self._sockets.close()
        if self.engine:
            self.engine.address_changed(None, self._loop.time())
            self.pump()
        return problem

    def _make_engine(self, server: Server, address: IPAddress) -> PcpClient:
        if self.engine:
            self._server_left()
        self.server = server
        self.engine = PcpClient(
            server=(address, PCP_SERVER_PORT),
            server_identity=server.identity,
            secret=self._secret,
            rng=self._rng,
            timing=self._timing,
            conduct=self._conduct,
        )
        self._engine_made()
        return self.engine

    def _engine_state(self, state: ServerState, reason: str) -> None:
        """A server that refuses what is needed has failed like one that is silent."""
        assert self.engine is not None
        if state is ServerState.ACTIVE and self.engine.usable:
            self._choice.answered()
            self._end_round()
        elif state is not ServerState.PROBING and len(self._choice) > 1:
            if state is ServerState.ACTIVE:
                self._choice.refused()
            if self._try_next(self.engine.reason) or not self.up:
                return
            self._next_round()
        self._show(state, reason)

    def _show(self, state: ServerState, reason: str) -> None:
        """After a round in which all have failed nothing is said before something answers."""
        if self._shown is not ServerState.LOST or state is not ServerState.PROBING:
            self._shown = state
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
        """Ask at the address that is chosen by now; False: there is no way to any, and a later round tries again."""
        self._sockets.close()
        problem = self._connect()
        if problem:
            self._disconnect(problem)
            self._next_round()
            self._show(ServerState.LOST, problem)
        self._peer_changed()
        return not problem

    def _next_round(self) -> None:
        self._end_round()
        self._round = self._loop.call_later(ROUND_INTERVAL, self._begin_round)

    def _end_round(self) -> None:
        if self._round:
            self._round.cancel()
            self._round = None

    def _unreachable(self, nobody_there: bool) -> None:
        """Looked at later: it may come in the middle of sending."""
        if self._choice:
            self._loop.call_soon(self._refused_at, self._choice.address, nobody_there)

    def _refused_at(self, address: IPAddress, nobody_there: bool) -> None:
        """RFC 7488 section 3: a hard error means the next address at once.

        But errors can be forged, and one is soon over: a server that answered is asked whether it is there.
        """
        if not self.up or self.engine is None or not self._choice or address != self._choice.address:
            return
        if self.engine.state is ServerState.ACTIVE:
            self.engine.announce(self._loop.time())
            self.pump()
        elif nobody_there and len(self._choice) > 1:
            self._try_next("nobody listens there")

    def _received(self, data: bytes, source: Source) -> None:
        if self.engine:
            self.engine.receive_datagram(data, source, self._loop.time())

    def _timer_fired(self) -> None:
        assert self.engine is not None
        self._timer = None
        self.engine.handle_timer(self._loop.time())
        self.pump()
