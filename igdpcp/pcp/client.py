# SPDX-License-Identifier: Apache-2.0
"""A PCP client towards one server: datagrams and time in, datagrams and events out (RFC 6887).

Five verbs: ``receive_datagram``, ``datagrams_to_send``, ``next_timer``, ``handle_timer``, ``next_event``. Five inputs:
``want``, ``drop``, ``announce``, ``address_changed``, ``server_moved``. After any of them the caller takes the events,
sends what ``datagrams_to_send`` gives, takes the events again, and calls ``handle_timer`` at ``next_timer``. ``now`` is
a monotonic clock in seconds and never goes back.

What is wanted is asked for until it is dropped. What the server says once is not the last word: a first grant, a
renewal, a Mapping Update and a recreated mapping are the same event.
"""

from __future__ import annotations

import random
from collections import Counter, deque

from igdpcp.errors import MalformedPcp
from igdpcp.model import IPAddress, Protocol
from igdpcp.pcp.answers import Answers
from igdpcp.pcp.conduct import STANDARD_CONDUCT, Conduct
from igdpcp.pcp.discovery import plain
from igdpcp.pcp.epoch import EpochRecord
from igdpcp.pcp.events import (
    Event,
    MappingGranted,
    MappingLost,
    MappingRefused,
    MappingReleased,
    ServerState,
    ServerStateChanged,
    StateLossDetected,
    WantedMapping,
)
from igdpcp.pcp.liveness import Liveness, Probe, pause
from igdpcp.pcp.mappings import Mappings
from igdpcp.pcp.message import (
    HEADER_LENGTH,
    MAX_LENGTH,
    AnnounceRequest,
    AnnounceResponse,
    MapResponse,
    OtherResponse,
    ResultCode,
    decode_response,
    encode,
    result_name,
)
from igdpcp.pcp.natpmp import is_natpmp_refusal
from igdpcp.pcp.nonce import derive
from igdpcp.pcp.pacing import PACKET_RATE, Pacer
from igdpcp.pcp.slot import InternalTuple, Slot
from igdpcp.pcp.timing import RECOVERY_DELAY, Timing
from igdpcp.pcp.transactions import Transactions

NATPMP_RETRY = 300  # seconds; RFC 6886 section 9 lets a client try PCP again at any time

UNUSABLE = {ResultCode.UNSUPP_VERSION, ResultCode.UNSUPP_OPCODE, ResultCode.ADDRESS_MISMATCH}

_DEFAULT_TIMING = Timing()


class PcpClient:
    """The client of one server.

    ``server_identity`` and ``secret`` make the nonces. ``counters`` says what was sent, received and ignored, and why.
    """

    def __init__(
        self,
        *,
        server: tuple[IPAddress, int],
        server_identity: str,
        secret: bytes,
        rng: random.Random,
        timing: Timing = _DEFAULT_TIMING,
        conduct: Conduct = STANDARD_CONDUCT,
    ) -> None:
        self.server = (plain(server[0]), server[1])
        self.counters: Counter[str] = Counter()
        self._identity = server_identity
        self._secret = secret
        self._rng = rng
        self._timing = timing
        self._own: IPAddress | None = None
        self._last_own: IPAddress | None = None
        self._internal: IPAddress | None = None
        self._last_internal: IPAddress | None = None
        self._map_unsupported = False
        self._usable = True
        self._unusable_times = 0
        self._recovery_ends = float("-inf")
        self._events: deque[Event] = deque()
        self._epoch = EpochRecord()
        self._liveness = Liveness(timing)
        self._probe = Probe(timing, rng)
        self._pacer: Pacer[Slot | Probe] = Pacer()
        self._transactions = Transactions(
            timing=timing,
            conduct=conduct,
            rng=rng,
            nonce_for=self._nonce_for,
            send=lambda slot, urgent: self._pacer.push(slot, urgent=urgent),
            renew=self._pacer.push_renewal,
            emit=self._events.append,
        )
        self._mappings = Mappings(self._transactions)
        self._answers = Answers(self._transactions, self.counters)

    @property
    def state(self) -> ServerState:
        """What is known of the server."""
        return self._liveness.state

    @property
    def reason(self) -> str:
        """Why the state is what it is, for people."""
        return self._liveness.reason

    @property
    def usable(self) -> bool:
        """False: the server answered, and refuses what is needed; ``reason`` says what."""
        return self._usable

    @property
    def since(self) -> float | None:
        """When the state was entered, None for the first one."""
        return self._liveness.since

    @property
    def last_epoch(self) -> int | None:
        """The epoch that the server sent last."""
        return self._epoch.server_time

    @property
    def address(self) -> IPAddress | None:
        """Our source address."""
        return self._own

    def grant(self, key: str) -> MappingGranted | None:
        """The grant that ``key`` has now."""
        return self._mappings.grant(key)

    def doubts(self, key: str) -> bool:
        """Whether the server may have lost what it granted ``key``, and has not answered since."""
        return self._mappings.doubts(key)

    def wants(self, key: str) -> bool:
        """Whether ``key`` is wanted, and not dropped."""
        return key in self._mappings

    # Inputs

    def want(self, wanted: WantedMapping, now: float, *, urgent: bool = True) -> None:
        """Create this mapping and keep it until it is dropped; the same key again changes what is wanted.

        ``urgent``: somebody waits for it; else it takes its turn at the packet rate. Raises ValueError when another key
        that is still wanted has the same protocol, internal address and port.
        """
        self._mappings.want(wanted, now, urgent)

    def drop(self, key: str, now: float, *, urgent: bool = True) -> None:
        """Give the mapping back. MappingReleased follows, at once if the server never heard of it."""
        self._mappings.drop(key, now, urgent)

    def announce(self, now: float) -> None:
        """Ask whether the server is there; silence makes it LOST."""
        self._start_probe(now)

    def address_changed(self, address: IPAddress | None, now: float, internal: IPAddress | None = None) -> None:
        """Our source address is this; None: no network, nothing is sent and no silence counts.

        ``internal`` is the address that our own mappings are for, where it is another (IPv4 mappings asked for over
        IPv6). Mappings for the one before become mappings for this one, and all are created anew from here. At another
        address than the last the server is PROBING until it answers.
        """
        if address is not None:
            address = plain(address)
            internal = address if internal is None else plain(internal)
        if (address, internal) == (self._own, self._internal):
            return
        self._own, self._internal = address, internal
        self._liveness.begin_anew()
        if address is None or internal is None:
            return
        self._epoch = EpochRecord()
        self._map_unsupported, self._unusable_times = False, 0
        unasked_from_here = self._last_own not in (None, address)
        if unasked_from_here:
            self._enter(ServerState.PROBING, f"asking {self.server[0]}", now)
        self._mappings.move(self._last_internal if self._last_internal != internal else None, internal, now)
        self._last_own, self._last_internal = address, internal
        if unasked_from_here or self.state is ServerState.LOST:
            self._start_probe(now)

    def server_moved(self, address: IPAddress, now: float) -> None:
        """Ask the server at another of its addresses from now on (RFC 7488 section 3), first what is unanswered.

        Answers from the address before are ignored.
        """
        self.server = (plain(address), self.server[1])
        self._liveness.begin_anew()
        self._enter(ServerState.PROBING, f"asking {self.server[0]}", now)
        self._mappings.retry(now)
        self._start_probe(now)

    # Verbs

    def next_event(self) -> Event | None:
        """The oldest event that was not taken yet."""
        return self._events.popleft() if self._events else None

    def next_timer(self) -> float | None:
        """When ``handle_timer`` and ``datagrams_to_send`` are to be called next."""
        turn = self._pacer.next_time(self._gap) if self._own is not None else None
        times = (self._transactions.next_timer(), self._probe.timer, self._liveness.deadline(), turn)
        return min((at for at in times if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what has become due; calling it early does nothing."""
        self._transactions.fire(now)
        if self._probe.timer is not None and now >= self._probe.timer:
            self._probe.timer = None
            self._pacer.push(self._probe, urgent=True)
        deadline = self._liveness.deadline()
        if deadline is not None and now >= deadline:
            self._silent(now)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """The datagrams that may leave for the server now."""
        datagrams: list[bytes] = []
        self._pacer.renewal_rate = max(PACKET_RATE, self._transactions.renewals_per_second)
        while self._own is not None and (item := self._pacer.take(now, self._gap)) is not None:
            datagram = (
                self._announcement(now, self._own)
                if isinstance(item, Probe)
                else self._transactions.packet(item, self._own, now)
            )
            if datagram is not None:
                self._pacer.sent(now)
                self._liveness.transmitted(now)
                self.counters["sent"] += 1
                datagrams.append(datagram)
        return datagrams

    def receive_datagram(self, data: bytes, source: tuple[str | IPAddress, int], now: float) -> None:
        """Take what came to our socket, or to the announcement port. No bytes make it raise."""
        self.counters["received"] += 1
        if not self._is_server(source):
            self.counters["wrong_source"] += 1
        elif is_natpmp_refusal(data):
            self._natpmp_answered(now)
        elif len(data) < HEADER_LENGTH:
            self.counters["short"] += 1
        elif len(data) > MAX_LENGTH:
            self.counters["long"] += 1
        else:
            try:
                response = decode_response(data)
            except MalformedPcp:
                self.counters["malformed"] += 1
                return
            self._dispatch(response, now)

    # Answers

    def _dispatch(self, response: MapResponse | AnnounceResponse | OtherResponse, now: float) -> None:
        match response:
            case MapResponse():
                self._map_answered(response, now)
            case AnnounceResponse():
                self._announced(response, now)
            case OtherResponse(version, _, result, lifetime, _):
                if result in UNUSABLE and self._liveness.unanswered:
                    version_text = f", offers version {version}" if result == ResultCode.UNSUPP_VERSION else ""
                    self._unusable(result, result_name(result) + version_text, lifetime, now)
                else:
                    self.counters["no_match"] += 1

    def _map_answered(self, response: MapResponse, now: float) -> None:
        slot = self._answers.find(response, self._own)
        if slot is None:
            return
        self._check_epoch(response.epoch, now)
        self._map_unsupported = response.result == ResultCode.UNSUPP_OPCODE
        if response.result in UNUSABLE:
            self._answers.take(slot, response, self._own, now)
            self._unusable(response.result, result_name(response.result), response.lifetime, now)
            return
        self._unusable_times = 0
        came_back = self._alive(now)
        self._answers.take(slot, response, self._own, now)
        if came_back:
            self._mappings.retry(now)
        if self._transactions.refusals.of_others(now):
            self._enter(self.state, "does not take THIRD_PARTY", now, usable=False)
        elif not self._usable:
            self._enter(self.state, "answers", now)

    def _announced(self, response: AnnounceResponse, now: float) -> None:
        """An ANNOUNCE response, asked for or not (RFC 6887 section 14.1); it has nothing to match but its source."""
        if response.result != ResultCode.SUCCESS and not self._liveness.unanswered:
            self.counters["no_match"] += 1
            return
        if self._transactions.conduct.heeds_announcements or self._liveness.unanswered:
            self._check_epoch(response.epoch, now)
        self._probe.stop()
        if response.result in UNUSABLE - {ResultCode.UNSUPP_OPCODE}:
            self._unusable(response.result, result_name(response.result), response.lifetime, now)
        elif self._map_unsupported and len(self._mappings):
            self._liveness.begin_anew()
        elif self._alive(now):
            self._mappings.retry(now)

    def _natpmp_answered(self, now: float) -> None:
        if self._liveness.unanswered:
            self._unusable(ResultCode.UNSUPP_VERSION, "answers with NAT-PMP only", NATPMP_RETRY, now)
        else:
            self.counters["no_match"] += 1

    def _check_epoch(self, epoch: int, now: float) -> None:
        if self._epoch.check(epoch, now):
            return
        self.counters["epoch_anomaly"] += 1
        begun = self._recovery_ends - now
        if begun > RECOVERY_DELAY:
            return  # announcements can be forged: at most two recoveries are under way
        self._recovery_ends = now + RECOVERY_DELAY + max(0.0, begun)
        self._events.append(StateLossDetected(epoch))
        self._mappings.recover(now + max(0.0, begun) + self._rng.uniform(0, RECOVERY_DELAY))

    def _silent(self, now: float) -> None:
        if self._liveness.is_proved:
            self._enter(ServerState.LOST, f"{self._liveness.unanswered} transmissions unanswered", now)
        else:
            self._liveness.begin_anew()
        if not self._probe.running:
            self._start_probe(now)

    def _alive(self, now: float) -> bool:
        """The server works; whether it was LOST until now."""
        self._liveness.begin_anew()
        if self.state is ServerState.ACTIVE:
            return False
        was_lost = self.state is ServerState.LOST
        self._probe.stop()
        self._transactions.refusals.accept()
        self._enter(ServerState.ACTIVE, "answers", now)
        return was_lost

    def _unusable(self, result: int, reason: str, lifetime: int, now: float) -> None:
        """The server is there, but not for us: nothing is asked until the refusal ends, then at the slowest pace."""
        if self._transactions.refusals.everything(now) is None:
            self._unusable_times += 1
        until = now + pause(lifetime, self._unusable_times)
        self._transactions.refusals.refuse_everything(result, until)
        self._liveness.begin_anew()
        self._enter(ServerState.LOST, reason, now, usable=False)
        self._mappings.hold(now)
        self._probe.postpone()
        self._probe.timer = until

    # Odds and ends

    @property
    def _gap(self) -> float:
        """The least time between two packets: a server that is lost is not flooded."""
        return self._timing.irt if self.state is ServerState.LOST else 0.0

    def _announcement(self, now: float, own: IPAddress) -> bytes:
        self._probe.timer = self._probe.transmitted(now, endless=self.state is ServerState.LOST)
        return encode(AnnounceRequest(own))

    def _start_probe(self, now: float) -> None:
        at = self._probe.start(now)
        self._probe.queued = False
        self._probe.timer = at if at > now else None
        if at <= now:
            self._pacer.push(self._probe, urgent=True)

    def _enter(self, state: ServerState, reason: str, now: float, *, usable: bool = True) -> None:
        self._usable = usable
        if self._liveness.enter(state, reason, now):
            self._events.append(ServerStateChanged(state, reason))

    def _nonce_for(self, internal: InternalTuple) -> bytes:
        protocol, address, port = internal
        return derive(self._secret, self._identity, Protocol(protocol), address, port)

    def _is_server(self, source: tuple[str | IPAddress, int]) -> bool:
        try:
            return (plain(source[0]), source[1]) == self.server
        except ValueError:
            return False


__all__ = [
    "Event", "MappingGranted", "MappingLost", "MappingRefused", "MappingReleased", "PcpClient", "ServerState",
    "ServerStateChanged", "StateLossDetected", "Timing", "WantedMapping",
]  # fmt: skip
