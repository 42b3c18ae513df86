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
from igdpcp.iwf.interfaces import AddressChanged, Emit, Granted, Lost, PortSeen, Refused, Released, Reset, StateChanged
from igdpcp.log import SparingLog, line
from igdpcp.model import Activation, Endpoint, Grant, IPAddress, UpstreamRequest
from igdpcp.openings import PcpPeer
from igdpcp.pcp.client import ServerState
from igdpcp.pcp.discovery import Server
from igdpcp.pcp.events import MappingGranted, MappingLost, MappingRefused, MappingReleased, StateLossDetected
from igdpcp.pcp.message import ResultCode
from igdpcp.pcp.nonce import derive
from igdpcp.pcp.timing import Timing
from igdpcp.upstreams.address_probe import PROBE_ID, AddressProbe, takes_its_place
from igdpcp.upstreams.debts import Debts
from igdpcp.upstreams.server_line import ServerLine
from igdpcp.upstreams.wishes import Wishes, conduct_of, is_way_in

LOG = logging.getLogger("igdpcp.upstream")


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
        self._secret = secret
        self._emit = emit
        self._is_local = is_local
        self._loop = asyncio.get_running_loop()
        self._log = SparingLog(LOG, self._loop.time)
        self._line = ServerLine(
            timing=Timing(irt=config.retransmit_initial), conduct=conduct_of(main), secret=secret, rng=rng,
            log_wire=main.log_wire,
            event=self._handle, state_changed=self._server_state, server_left=self._server_left,
            engine_made=self._begin_anew, from_elsewhere=self._from_elsewhere, peer_changed=peer_changed,
        )  # fmt: skip
        self._wishes = Wishes(self._line)
        self._requests: dict[str, UpstreamRequest] = {}  # what is wanted, with the last grant of each
        self._leaving: dict[str, UpstreamRequest] = {}  # those that the engine gives back
        self._debts = Debts()
        self._probe = AddressProbe(self._line, main.external_ip_probe)
        self._heard = False  # whether the server has said anything, be it a refusal
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
    def spare(self) -> int:
        """How many slots at its server it holds for itself: that of the probe for the external address."""
        return int(self._probe.under_way)

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
        return self._line.counters + Counter(debts_dropped=self._debts.dropped)

    def network_changed(self, device: str, address: IPv4Address | None, servers: Iterable[Server]) -> None:
        """The WAN is this device with this address (None: it is down), and these are the servers behind it.

        May be called whenever something may have changed; when nothing has, nothing happens.
        """
        self._apply(device, address, servers)
        self._ask_all()  # the server may be trusted by now

    def _apply(self, device: str, address: IPv4Address | None, servers: Iterable[Server]) -> None:
        if problem := self._line.network_changed(device, address, servers):
            self.up_since = None
            self._set_state(Activation.NO_WAN, problem)
            self._set_external_address(None)

    def __contains__(self, id: str) -> bool:
        return id in self._requests

    def request(self, id: str) -> UpstreamRequest | None:
        """What is wanted of the server by this id."""
        return self._requests.get(id)

    def grants(self, id: str) -> bool:
        """Whether the server's grant of ``id`` is running."""
        request, engine = self._requests.get(id), self._line.engine
        held = engine.grant(id) if engine else None
        known = request.grant if request else None
        return bool(held and known and is_way_in(held.external_address, self._is_local) and self.stands(id, known))

    def stands(self, id: str, grant: Grant) -> bool:
        """As ``Fallback.stands``; what an earlier process was granted does so, too."""
        request, engine = self._requests.get(id), self._line.engine
        return bool(engine and request and self._wishes.are_met(request, grant) and not engine.doubts(id))

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        known = self._requests.get(request.id)
        if known and known.grant:  # the latest; the hall may know only of the one before
            request = replace(request, grant=known.grant)
        if owed := self._debts.forget(request.id):
            request = self._wanted_again(request, owed)
        self._requests[request.id] = request
        self._leaving.pop(request.id, None)
        self._want(request, urgent)
        self._line.pump()

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        if id in self._leaving:
            return
        request, engine = self._requests.pop(id, None), self._line.engine
        if request and engine and engine.wants(id):
            self._leaving[id] = request
            engine.drop(id, self._loop.time(), urgent=urgent)
            self._line.pump()
        elif request and request.grant:
            self._owe(request)
        else:
            self._emit(Released(id, ResultCode.SUCCESS))

    def give_back(self, request: UpstreamRequest) -> None:
        if self._line.engine and self._wishes.is_of_another_server(request):
            self._owe(request)
            self._emit(Released(request.id, ResultCode.NETWORK_FAILURE))
        elif self._wishes.may_be_told(request):
            self._tell(request)
            self._line.pump()
        else:
            self._owe(request)

    def announce(self) -> None:
        if engine := self._line.engine:
            engine.announce(self._loop.time())
            self._line.pump()

    async def learn_address(self) -> None:
        """As ``Fallback.learn_address``."""
        if self._probe.on_demand and self.external_address is None and self._state is Activation.ACTIVE:
            self._begin_probe()
            self._line.pump()
            await self._probe.answer()

    def close(self) -> None:
        """Stop talking; grants stay as they are."""
        self._line.close()

    # -- what the line says --------------------------------------------------------------------------------------

    def _server_left(self) -> None:
        """A deletion on its way is owed to the server until it is asked again, or the grant has ended by itself."""
        leaving, self._leaving = self._leaving, {}
        for request in leaving.values():
            if request.grant:
                self._owe(request)
            self._emit(Released(request.id, ResultCode.NETWORK_FAILURE))

    def _begin_anew(self) -> None:
        """Another server knows nothing: everything is asked for, and what is owed to it is given back."""
        self._probe.forget()
        self._heard = False
        self._from_elsewhere()
        self._ask_all()

    def _ask_all(self) -> None:
        """Ask for what the engine does not know yet, as far as it may, and give back what is owed."""
        now = self._loop.time()
        for request in self._debts.take(lambda owed: owed.grant is not None and owed.grant.ends <= now):
            self._emit(Released(request.id, ResultCode.SUCCESS))
        wishes = self._wishes
        due = self._debts.take(lambda owed: wishes.may_be_told(owed) and not wishes.is_of_another_server(owed))
        held = {wishes.tuple(owed): owed.grant for owed in due if owed.grant}
        engine = self._line.engine
        for request in [each for each in self._requests.values() if not (engine and engine.wants(each.id))]:
            self._want(self._with_grant(request, held.get(wishes.tuple(request))), urgent=False)
        in_use = {wishes.tuple(request) for request in self._requests.values()} if due else set()
        for request in due:
            if wishes.tuple(request) in in_use:
                self._emit(Released(request.id, ResultCode.SUCCESS))
            else:
                self._tell(request)
        self._line.pump()

    def _want(self, request: UpstreamRequest, urgent: bool) -> None:
        engine = self._line.engine
        if engine is None or not (engine.wants(request.id) or self._wishes.may_be_told(request)):
            return
        if self._wishes.is_of_another_server(request):  # which keeps its grant: nobody tells it to let go
            self._leave(request)
        if takes_its_place(request):
            self._probe.end()
        engine.want(self._wishes.wanted(request), self._loop.time(), urgent=urgent)

    def _tell(self, request: UpstreamRequest) -> None:
        """Delete what the engine knows nothing of, unless it was granted to an address that we no longer have."""
        wanted, engine = self._wishes.wanted(request), self._line.engine
        assert engine is not None
        if request.grant and request.grant.internal != self._wishes.internal_address(request):
            self._emit(Released(request.id, ResultCode.SUCCESS))
            return
        if takes_its_place(request):
            self._probe.end()
        nonce = (
            wanted.nonce
            or wanted.new_nonce
            or derive(self._secret, self.identity, wanted.protocol, wanted.internal_address, wanted.internal_port)
        )
        now = self._loop.time()
        engine.want(replace(wanted, nonce=nonce), now, urgent=False)
        self._leaving[request.id] = request
        engine.drop(request.id, now, urgent=False)

    def _wanted_again(self, request: UpstreamRequest, owed: UpstreamRequest) -> UpstreamRequest:
        """The nonce that owns what is owed goes on with it, or the server that holds it is still to be told."""
        if request.grant is None and self._wishes.tuple(request) == self._wishes.tuple(owed):
            return replace(request, grant=owed.grant)
        if owed.grant and (request.grant is None or request.grant.nonce != owed.grant.nonce):
            self._leave(owed)
        return request

    def _with_grant(self, request: UpstreamRequest, held: Grant | None) -> UpstreamRequest:
        """With what this server holds for its tuple, unless it knows that: only the nonce of that is taken there."""
        if held is None or (request.grant and not self._wishes.is_of_another_server(request)):
            return request
        if request.grant:
            self._leave(request)
        self._requests[request.id] = known = replace(request, grant=held)
        return known

    def _leave(self, request: UpstreamRequest) -> None:
        """Owe it to the server that granted it, while the mapping itself goes on elsewhere under its own id."""
        assert request.grant is not None
        self._owe(replace(request, id=f"{request.id} at {request.grant.server}"))

    def _owe(self, request: UpstreamRequest) -> None:
        if dropped := self._debts.add(request):
            self._emit(Released(dropped.id, ResultCode.NETWORK_FAILURE))

    def _from_elsewhere(self) -> None:
        """What was granted was granted to another address of ours, or by another server."""
        self.up_since = None
        self._set_external_address(None)

    def _server_state(self, state: ServerState, reason: str) -> None:
        self._set_state(Activation(state.value), reason)

    def _handle(self, event: object) -> None:
        match event:
            case StateLossDetected():
                LOG.warning(line("carrier_lost_its_state", server=self.address, epoch=event.epoch))
                self._emit(Reset())
            case MappingGranted():
                self._mapping_granted(event)
            case MappingRefused(key=key) | MappingLost(key=key) if key == PROBE_ID:
                self._probe.end()
            case MappingRefused(result=ResultCode.USER_EX_QUOTA) if self._probe.under_way:
                self._probe.end()  # what was only asked for its address has the slot
                self._want(self._requests[event.key], urgent=True)
                self._line.pump()
            case MappingRefused():
                self._emit(Refused(event.key, event.result, event.lifetime))
            case MappingLost():
                self._emit(Lost(event.key))
            case MappingReleased() if event.key != PROBE_ID:
                leaving = self._leaving.pop(event.key, None)
                self._emit(Released(event.key, event.result))
                if leaving and event.result == ResultCode.NETWORK_FAILURE:  # silence: told when somebody answers
                    self._owe(leaving)

    def _mapping_granted(self, event: MappingGranted) -> None:
        if not is_way_in(event.external_address, self._is_local):
            self._log.write(
                logging.ERROR, "grant_is_no_way_in", None, mapping=event.key, external=event.external_address
            )
            if event.key == PROBE_ID:
                self._probe.answered()
            else:
                self._emit(Refused(event.key, ResultCode.NETWORK_FAILURE, event.lifetime))
            return
        self._set_external_address(event.external_address)
        if event.key == PROBE_ID:
            self._probe.answered()
            self._emit(PortSeen(event.external_port))
            return
        assert self._line.server is not None
        request = self._requests[event.key]
        grant = Grant(
            upstream=self.name,
            internal=self._wishes.internal_address(request),
            external=Endpoint(event.external_address, event.external_port),
            lifetime=event.lifetime,
            ends=event.ends,
            nonce=event.nonce,
            server=self._line.server.mark,
        )
        self._requests[event.key] = replace(request, grant=grant)
        self._emit(Granted(event.key, grant, event.remote_hosts))
        self._probe.end()

    def _set_state(self, state: Activation, reason: str) -> None:
        self._heard |= state is Activation.ACTIVE or not self.usable
        if state is Activation.LOST and not self._heard and self._line.guessed:
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
            self._ask_all()
            if self._probe.at_start:
                self._begin_probe()
        self._emit(StateChanged(state))

    def _set_external_address(self, address: IPv4Address | None) -> None:
        if address != self.external_address:
            self.external_address = address
            self._emit(AddressChanged(address))

    def _begin_probe(self) -> None:
        """Learn the external address before the first mapping; control points ask for it before they map."""
        engine = self._line.engine
        if engine is None or any(takes_its_place(request) for request in self._requests.values()):
            return
        if self.external_address and (engine.grant(PROBE_ID) or any(map(self.grants, self._requests))):
            return
        self._probe.begin(urgent=not self._requests)
