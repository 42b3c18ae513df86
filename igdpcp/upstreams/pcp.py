# SPDX-License-Identifier: Apache-2.0
"""The carrier's PCP server as an upstream: drives the engine with a socket and the event loop's clock."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

from igdpcp.config import MainConfig, UpstreamConfig
from igdpcp.errors import OurFault
from igdpcp.iwf.interfaces import (
    AddressChanged,
    Emit,
    Granted,
    Lost,
    Refused,
    Released,
    StateChanged,
)
from igdpcp.log import line
from igdpcp.model import (
    UNKNOWN_ADDRESS,
    Activation,
    Endpoint,
    Grant,
    IPAddress,
    PcpPeer,
    Protocol,
    UpstreamRequest,
)
from igdpcp.pcp.client import (
    MappingGranted,
    MappingLost,
    MappingRefused,
    MappingReleased,
    PcpClient,
    ServerState,
    ServerStateChanged,
    StateLossDetected,
    WantedMapping,
)
from igdpcp.pcp.message import SERVER_PORT, ResultCode
from igdpcp.pcp.nonce import derive
from igdpcp.pcp.timing import Timing
from igdpcp.upstreams.pcp_sockets import PcpSockets, Source

LOG = logging.getLogger("igdpcp.upstream")
PROBE_ID = "probe"
PROBE_PORT = 9  # discard, UDP (RFC 6970 section 5.7: a mapping made only to learn the external address)
PROBE_LEASE = 120  # seconds; servers raise anything less to this (RFC 6887 section 15)

_STATES = {
    ServerState.PROBING: Activation.PROBING,
    ServerState.ACTIVE: Activation.ACTIVE,
    ServerState.LOST: Activation.LOST,
}


class PcpUpstream:
    """One PCP server: a configured one, or the WAN's default router (RFC 6887 section 8.1)."""

    name = "pcp"

    def __init__(
        self,
        main: MainConfig,
        config: UpstreamConfig,
        *,
        secret: bytes,
        rng: random.Random,
        emit: Emit,
        is_local: Callable[[IPv4Address], bool],
    ) -> None:
        """``is_local`` tells of an address whether it belongs to a LAN that is served."""
        self._main = main
        self._config = config
        self._secret = secret
        self._rng = rng
        self._emit = emit
        self._is_local = is_local
        if more := config.server[1:]:
            LOG.warning(line("one_server_address_only", used=config.server[0], not_tried=", ".join(more)))
        self._loop = asyncio.get_running_loop()
        self._engine: PcpClient | None = None
        self._sockets = PcpSockets(self._received, self._pump, main.log_wire)
        self._timer: asyncio.TimerHandle | None = None
        self._requests: dict[str, UpstreamRequest] = {}
        self._granted: set[str] = set()
        self._leaving: set[str] = set()
        self._owed: dict[str, UpstreamRequest] = {}  # to be given back as soon as there is a server
        self._pumping = False
        self._device = config.device
        self._source: IPAddress | None = None
        self._state = Activation.NO_WAN
        self.server: IPAddress | None = None
        self.reason = "the WAN has no address yet"
        self.state_since = self._loop.time()
        self.up_since: float | None = None
        self.external_address: IPv4Address | None = None

    @property
    def state(self) -> Activation:
        return self._state

    @property
    def trusted(self) -> bool:
        """Whether it may be asked on behalf of other hosts (RFC 6970 section 6: THIRD_PARTY)."""
        return bool(self._config.server)

    @property
    def identity(self) -> str:
        """What nonces are derived for: not an address, since all addresses of a server share them (RFC 7488)."""
        if self._config.server:
            return self._config.name
        return f"{self._device}/{self.server}"

    @property
    def peer(self) -> PcpPeer | None:
        """Whose packets the router has to let in, to which port; None while nobody is asked."""
        port = self._sockets.port
        return PcpPeer(self.server, port) if port and self.server else None

    @property
    def epoch(self) -> int | None:
        return self._engine.last_epoch if self._engine else None

    @property
    def counters(self) -> Counter[str]:
        """What was sent, received and ignored, and why."""
        engine = self._engine.counters if self._engine else Counter()
        return engine + Counter(refused=self._sockets.refused)

    def network_changed(self, device: str, address: IPv4Address | None, router: IPv4Address | None) -> None:
        """The WAN is now this device with this address and default router; None: it is down."""
        server = self._choose_server(router)
        self._device = device
        self._sockets.close()
        if address is None or server is None:
            self._pause("the WAN has no IPv4 address" if address is None else "there is no default router to ask")
            return
        self._connect(device, server)

    def __contains__(self, id: str) -> bool:
        return id in self._requests

    def grants(self, id: str) -> bool:
        """Whether the server's grant of ``id`` is running."""
        return id in self._granted

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        self._requests[request.id] = request
        self._leaving.discard(request.id)
        if self._engine:
            if _needs_probe_port(request):
                self._end_probe()
            self._engine.want(self._wanted(request), self._loop.time(), urgent=urgent)
            self._pump()

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        self._granted.discard(id)
        if id in self._leaving:
            return
        request = self._requests.pop(id, None)
        if request and self._engine is None and request.nonce:
            self._owed[id] = request
        elif request is None or self._engine is None:
            self._emit(Released(id, ResultCode.SUCCESS))
        else:
            self._leaving.add(id)
            self._engine.drop(id, self._loop.time(), urgent=urgent)
            self._pump()

    def give_back(self, request: UpstreamRequest) -> None:
        if self._engine is None:
            self._owed[request.id] = request
            return
        if _needs_probe_port(request):
            self._end_probe()
        wanted = self._wanted(request)
        nonce = wanted.nonce or derive(
            self._secret, self.identity, wanted.protocol, wanted.internal_address, wanted.internal_port
        )
        now = self._loop.time()
        self._engine.want(replace(wanted, nonce=nonce), now, urgent=False)
        self._leaving.add(request.id)
        self._engine.drop(request.id, now, urgent=False)
        self._pump()

    def announce(self) -> None:
        if self._engine:
            self._engine.announce(self._loop.time())
            self._pump()

    def close(self) -> None:
        """Stop talking; grants stay as they are."""
        self._sockets.close()
        if self._timer:
            self._timer.cancel()

    def _choose_server(self, router: IPv4Address | None) -> IPAddress | None:
        return ip_address(self._config.server[0]) if self._config.server else router

    def _start_engine(self, server: IPAddress) -> None:
        self.server = server
        self._engine = PcpClient(
            server=(server, SERVER_PORT),
            server_identity=self.identity,
            secret=self._secret,
            rng=self._rng,
            timing=Timing(irt=self._config.retransmit_initial),
        )
        self._granted.clear()
        while self._leaving:  # whoever knows of them is not asked any more
            self._emit(Released(self._leaving.pop(), ResultCode.NETWORK_FAILURE))
        self.up_since = None
        for request in self._requests.values():
            self._engine.want(self._wanted(request), self._loop.time(), urgent=False)
        owed, self._owed = self._owed, {}
        for request in owed.values():
            self.give_back(request)

    def _connect(self, device: str, server: IPAddress) -> None:
        try:
            source = self._sockets.open(device, server)
        except OurFault as fault:
            self._pause(str(fault))
            return
        moved = (source, server) != (self._source, self.server)
        self._follow_address(source)
        if server != self.server or self._engine is None:
            self._start_engine(server)
        assert self._engine is not None
        now = self._loop.time()
        asking = self._engine.state is ServerState.PROBING
        self._set_state(_STATES[self._engine.state], f"asking {server}" if asking else self._engine.reason)
        self._engine.address_changed(source, now)
        if moved:
            self._granted.clear()
            self._set_external_address(None)
            if self._state is Activation.ACTIVE:
                self._probe()
        self._engine.announce(now)
        self._pump()

    def _follow_address(self, source: IPAddress) -> None:
        """What was asked for our old address is meant for the new one; the engine does the same."""
        if self._source not in (None, source) and isinstance(source, IPv4Address):
            for id, request in self._requests.items():
                if request.internal.address == self._source:
                    self._requests[id] = replace(request, internal=Endpoint(source, request.internal.port))
        self._source = source

    def _pause(self, reason: str) -> None:
        if self._engine:
            self._engine.address_changed(None, self._loop.time())
            self._pump()
        self.up_since = None
        self._set_state(Activation.NO_WAN, reason)
        self._set_external_address(None)

    def _received(self, data: bytes, source: Source) -> None:
        if self._engine:
            self._engine.receive_datagram(data, source, self._loop.time())

    def _timer_fired(self) -> None:
        assert self._engine is not None
        self._engine.handle_timer(self._loop.time())
        self._pump()

    def _pump(self) -> None:
        """Send what the engine has to send, pass on what happened, and wake up when it next wants to."""
        if self._pumping or self._engine is None:
            return
        self._pumping = True
        try:
            while True:
                for data in self._engine.datagrams_to_send(self._loop.time()):
                    self._sockets.send(data)
                if (event := self._engine.next_event()) is None:
                    break
                self._handle(event)
        finally:
            self._pumping = False
        if self._timer:
            self._timer.cancel()
        due = self._engine.next_timer()
        self._timer = self._loop.call_at(due, self._timer_fired) if due is not None else None

    def _handle(self, event: object) -> None:
        match event:
            case ServerStateChanged():
                self._set_state(_STATES[event.state], event.reason)
            case StateLossDetected():
                LOG.warning(line("carrier_lost_its_state", server=self.server, epoch=event.epoch))
            case MappingGranted():
                self._mapping_granted(event)
            case MappingRefused(key=key) | MappingLost(key=key) if key == PROBE_ID:
                self._end_probe()
            case MappingRefused():
                self._emit(Refused(event.key, event.result, event.lifetime))
            case MappingLost():
                self._granted.discard(event.key)
                self._emit(Lost(event.key))
            case MappingReleased() if event.key != PROBE_ID:
                self._leaving.discard(event.key)
                self._emit(Released(event.key, event.result))

    def _mapping_granted(self, event: MappingGranted) -> None:
        if not self._believable(event.external_address):
            LOG.error(line("grant_is_no_way_in", mapping=event.key, external=event.external_address))
            if event.key != PROBE_ID:
                self._emit(Refused(event.key, ResultCode.NETWORK_FAILURE, event.lifetime))
            return
        assert isinstance(event.external_address, IPv4Address)
        self._granted.add(event.key)
        self._set_external_address(event.external_address)
        if event.key == PROBE_ID:
            return
        external = Endpoint(event.external_address, event.external_port)
        internal = self._settled(self._requests[event.key].internal)
        grant = Grant(self.name, internal, external, event.lifetime, event.ends, event.nonce, self.identity)
        self._emit(Granted(event.key, grant))
        if PROBE_ID in self._granted:
            self._end_probe()

    def _set_state(self, state: Activation, reason: str) -> None:
        if state is Activation.LOST and self.up_since is None and not self._config.server:
            state = Activation.NO_SERVER
            reason = f"the default router {self.server} does not answer PCP"
        self.reason = reason
        if state is self._state:
            return
        self._state = state
        self.state_since = self._loop.time()
        if state is Activation.ACTIVE:
            self.up_since = self.up_since or self._loop.time()
            self._probe()
        self._emit(StateChanged(state))

    def _set_external_address(self, address: IPv4Address | None) -> None:
        if address != self.external_address:
            self.external_address = address
            self._emit(AddressChanged(address))

    def _probe(self) -> None:
        """Learn the external address before the first mapping; control points ask for it before they map."""
        if not self._main.external_ip_probe or self._granted or self._engine is None or self._sockets.port is None:
            return
        if any(_needs_probe_port(request) for request in self._requests.values()):
            return
        assert self._source is not None
        now = self._loop.time()
        wanted = WantedMapping(
            key=PROBE_ID,
            protocol=Protocol.UDP,
            internal_address=self._source,
            internal_port=PROBE_PORT,
            external_port=0,
            exact=False,
            until=now + PROBE_LEASE,
        )
        self._engine.want(wanted, now)

    def _end_probe(self) -> None:
        assert self._engine is not None
        self._granted.discard(PROBE_ID)
        self._engine.drop(PROBE_ID, self._loop.time())

    def _believable(self, address: IPAddress) -> bool:
        """Whether connections can come in at this address: the rules of a grant must not catch other traffic."""
        if not isinstance(address, IPv4Address) or self._is_local(address):
            return False
        return not (address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified)

    def _wanted(self, request: UpstreamRequest) -> WantedMapping:
        internal = self._settled(request.internal)
        return WantedMapping(
            key=request.id,
            protocol=request.protocol,
            internal_address=internal.address,
            internal_port=internal.port,
            external_port=request.external_port,
            exact=request.exact,
            until=request.until,
            external_address=request.external_address,
            remote_hosts=(request.remote_host,) if request.remote_host else (),
            description=request.description,
            nonce=request.nonce if request.server == self.identity else b"",
        )

    def _settled(self, internal: Endpoint) -> Endpoint:
        """With the router's own address in the place of one that was not known."""
        if internal.address == UNKNOWN_ADDRESS and isinstance(self._source, IPv4Address):
            return Endpoint(self._source, internal.port)
        return internal


def _needs_probe_port(request: UpstreamRequest) -> bool:
    return request.protocol is Protocol.UDP and request.internal.port == PROBE_PORT
