# SPDX-License-Identifier: Apache-2.0
"""The carrier's PCP server as an upstream: what the hall wants of it, and what it says."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.config import MainConfig, UpstreamConfig
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
    UpstreamRequest,
)
from igdpcp.pcp.client import (
    MappingGranted,
    MappingLost,
    MappingRefused,
    MappingReleased,
    ServerState,
    StateLossDetected,
    WantedMapping,
)
from igdpcp.pcp.discovery import Origin, Server
from igdpcp.pcp.message import ResultCode
from igdpcp.pcp.nonce import derive
from igdpcp.pcp.timing import Timing
from igdpcp.upstreams.address_probe import PROBE_ID, probe, takes_its_place
from igdpcp.upstreams.server_line import ServerLine

LOG = logging.getLogger("igdpcp.upstream")

_STATES = {
    ServerState.PROBING: Activation.PROBING,
    ServerState.ACTIVE: Activation.ACTIVE,
    ServerState.LOST: Activation.LOST,
}


class PcpUpstream:
    """The PCP servers of one WAN, of which one is asked (RFC 6887 section 8.1)."""

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
        peer_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``is_local`` tells of an address whether it belongs to a LAN that is served.

        ``peer_changed`` is called when ``peer`` is another one by itself.
        """
        self._main = main
        self._secret = secret
        self._emit = emit
        self._is_local = is_local
        self._loop = asyncio.get_running_loop()
        self._line = ServerLine(
            timing=Timing(irt=config.retransmit_initial), secret=secret, rng=rng, log_wire=main.log_wire,
            event=self._handle, state_changed=self._server_state, engine_made=self._ask_all,
            internal_changed=self._follow_address, asked_anew=self._asked_anew, peer_changed=peer_changed,
        )  # fmt: skip
        self._requests: dict[str, UpstreamRequest] = {}
        self._granted: set[str] = set()
        self._leaving: set[str] = set()
        self._owed: dict[str, UpstreamRequest] = {}  # to be given back as soon as there is a server
        self._state = Activation.NO_WAN
        self.reason = "the WAN has no address yet"
        self.state_since = self._loop.time()
        self.up_since: float | None = None
        self.external_address: IPv4Address | None = None

    @property
    def state(self) -> Activation:
        return self._state

    @property
    def trusted(self) -> bool:
        """Whether the server may be asked on behalf of other hosts."""
        return self._line.trusted

    @property
    def identity(self) -> str:
        """What nonces are derived for."""
        return self._line.server.identity if self._line.server else ""

    @property
    def origin(self) -> str:
        """Who named the server, for people."""
        return self._line.server.origin.value if self._line.server else ""

    @property
    def address(self) -> IPAddress | None:
        """The address at which the server is asked."""
        return self._line.address

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """All addresses of that server."""
        return self._line.server.addresses if self._line.server else ()

    @property
    def peer(self) -> PcpPeer | None:
        """Whose packets the router has to let in, to which port; None while nobody is asked."""
        return self._line.peer

    @property
    def usable(self) -> bool:
        """False: the server is there and refuses what is needed; ``reason`` says what."""
        return self._line.engine is None or self._line.engine.usable

    @property
    def epoch(self) -> int | None:
        return self._line.engine.last_epoch if self._line.engine else None

    @property
    def counters(self) -> Counter[str]:
        """What was sent, received and ignored, and why."""
        return self._line.counters

    def network_changed(self, device: str, address: IPv4Address | None, servers: Iterable[Server]) -> None:
        """The WAN is this device with this address (None: it is down), and these are the servers behind it."""
        if problem := self._line.network_changed(device, address, servers):
            self.up_since = None
            self._set_state(Activation.NO_WAN, problem)
            self._set_external_address(None)

    def __contains__(self, id: str) -> bool:
        return id in self._requests

    def grants(self, id: str) -> bool:
        """Whether the server's grant of ``id`` is running."""
        return id in self._granted

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        self._requests[request.id] = request
        self._leaving.discard(request.id)
        if engine := self._line.engine:
            if takes_its_place(request):
                self._end_probe()
            engine.want(self._wanted(request), self._loop.time(), urgent=urgent)
            self._line.pump()

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        self._granted.discard(id)
        if id in self._leaving:
            return
        request = self._requests.pop(id, None)
        engine = self._line.engine
        if request and engine is None and request.nonce:
            self._owed[id] = request
        elif request is None or engine is None:
            self._emit(Released(id, ResultCode.SUCCESS))
        else:
            self._leaving.add(id)
            engine.drop(id, self._loop.time(), urgent=urgent)
            self._line.pump()

    def give_back(self, request: UpstreamRequest) -> None:
        engine = self._line.engine
        if engine is None:
            self._owed[request.id] = request
            return
        if takes_its_place(request):
            self._end_probe()
        wanted = self._wanted(request)
        nonce = wanted.nonce or derive(
            self._secret, self.identity, wanted.protocol, wanted.internal_address, wanted.internal_port
        )
        now = self._loop.time()
        engine.want(replace(wanted, nonce=nonce), now, urgent=False)
        self._leaving.add(request.id)
        engine.drop(request.id, now, urgent=False)
        self._line.pump()

    def announce(self) -> None:
        if engine := self._line.engine:
            engine.announce(self._loop.time())
            self._line.pump()

    def close(self) -> None:
        """Stop talking; grants stay as they are."""
        self._line.close()

    # -- what the line says --------------------------------------------------------------------------------------

    def _ask_all(self) -> None:
        """Another server knows nothing: everything is asked for, and what is owed is given back."""
        engine = self._line.engine
        assert engine is not None
        self._granted.clear()
        while self._leaving:  # whoever knows of them is not asked any more
            self._emit(Released(self._leaving.pop(), ResultCode.NETWORK_FAILURE))
        self.up_since = None
        for request in self._requests.values():
            engine.want(self._wanted(request), self._loop.time(), urgent=False)
        owed, self._owed = self._owed, {}
        for request in owed.values():
            self.give_back(request)

    def _follow_address(self, before: IPv4Address) -> None:
        """What was asked for our old address is meant for the new one; the engine does the same."""
        internal = self._line.internal
        if internal is None:
            return
        for id, request in self._requests.items():
            if request.internal.address == before:
                self._requests[id] = replace(request, internal=Endpoint(internal, request.internal.port))

    def _asked_anew(self) -> None:
        self._granted.clear()
        self._set_external_address(None)
        if self._state is Activation.ACTIVE:
            self._probe()

    def _server_state(self, state: ServerState, reason: str) -> None:
        self._set_state(_STATES[state], reason)

    def _handle(self, event: object) -> None:
        match event:
            case StateLossDetected():
                LOG.warning(line("carrier_lost_its_state", server=self.address, epoch=event.epoch))
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
        if state is Activation.LOST and self.up_since is None and self._guessed:
            state = Activation.NO_SERVER
            reason = f"{self.origin} {self.address} does not answer PCP"
        if reason != self.reason and not self.usable:
            LOG.warning(line("pcp_server_unusable", server=self.address, reason=reason))
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
        engine, internal = self._line.engine, self._line.internal
        if not self._main.external_ip_probe or self._granted or engine is None or internal is None or not self._line.up:
            return
        if any(takes_its_place(request) for request in self._requests.values()):
            return
        now = self._loop.time()
        engine.want(probe(internal, now), now)

    def _end_probe(self) -> None:
        assert self._line.engine is not None
        self._granted.discard(PROBE_ID)
        self._line.engine.drop(PROBE_ID, self._loop.time())

    @property
    def _guessed(self) -> bool:
        """Whether nobody said that there is a server."""
        return self._line.server is not None and self._line.server.origin in (Origin.ROUTER, Origin.ANYCAST)

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
        if internal.address == UNKNOWN_ADDRESS and self._line.internal:
            return Endpoint(self._line.internal, internal.port)
        return internal
