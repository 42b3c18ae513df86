# SPDX-License-Identifier: Apache-2.0
"""The requests of one server's mappings: create, renew, delete, and when each packet leaves."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from igdpcp.model import IPAddress
from igdpcp.pcp.conduct import Conduct
from igdpcp.pcp.events import Event, MappingLost, MappingRefused, MappingReleased, WantedMapping
from igdpcp.pcp.message import ResultCode, encode
from igdpcp.pcp.pacing import Timers
from igdpcp.pcp.refusals import Refusal, Refusals
from igdpcp.pcp.slot import Exchange, Held, InternalTuple, Phase, Slot
from igdpcp.pcp.timing import RENEWAL_GAP, Timing, remaining, renewal

RENEWALS_AHEAD = 2.5  # of each mapping in its lifetime; with 2, the last of those made at one moment would be late
DELETE_TRANSMISSIONS = 4  # of a delete for which nothing says when the mapping ends by itself

REPLACING_TRANSMISSIONS = 4  # of a delete or create in a grant's place, before that counts as lost


class Transactions:
    """The slots of one server, by internal tuple and by key, and what happens to them when time passes.

    ``send(slot, urgent)`` and, where it only renews, ``renew(slot)`` queue a slot for its turn; ``packet`` then says
    what it sends. ``nonce_for`` derives. ``leaving`` are the dropped keys whose delete is not over.
    """

    def __init__(
        self,
        *,
        timing: Timing,
        conduct: Conduct,
        rng: random.Random,
        nonce_for: Callable[[InternalTuple], bytes],
        send: Callable[[Slot, bool], None],
        renew: Callable[[Slot], None],
        emit: Callable[[Event], None],
    ) -> None:
        self._timing = timing
        self.conduct = conduct
        self._rng = rng
        self._nonce_for = nonce_for
        self.send = send
        self._renew = renew
        self.emit = emit
        self.slots: dict[InternalTuple, Slot] = {}
        self._timers: Timers[Slot] = Timers(self.slots.values())
        self.by_key: dict[str, Slot] = {}
        self.leaving: set[str] = set()
        self.refusals = Refusals()
        self._ending_per_second = 0.0  # of the grants that are held, were none renewed
        self._outlets: dict[IPAddress, tuple[IPAddress, int]] = {}  # per internal host: external address, grants

    # Beginning and ending

    def create(self, slot: Slot, now: float, *, urgent: bool = True, tell: bool = False) -> None:
        """Begin to create or recreate; wait when the lease is over or a refusal stands (``tell``: say which).

        What has filters that cannot be cleared is deleted first.
        """
        wanted = slot.wanted
        assert wanted is not None
        exactly = self.conduct.insists_on_filters
        if slot.keeps_filters(self.refusals.shed(now), exactly=exactly) and not self.refusals.everything(now):
            self.replace(slot, now, urgent=urgent)
            return
        slot.begin(Phase.CREATING)
        slot.nonce = wanted.nonce or slot.nonce or wanted.new_nonce or self._nonce_for(slot.internal)
        if not self.wait(slot, now, tell=tell):
            self.send(slot, urgent)
        self.arm(slot)

    def wait(self, slot: Slot, now: float, *, tell: bool) -> bool:
        """Whether a create must not be sent now; the slot then waits for the end of the refusal."""
        wanted = slot.wanted
        assert wanted is not None
        if not remaining(wanted.until, now):
            slot.begin(Phase.WAITING)
            return True
        refusal = self.refusals.everything(now)
        if refusal is None and not slot.held:
            refusal = self._refusal_of_create(slot, wanted, now)
        if refusal is None:
            return False
        slot.begin(Phase.WAITING)
        slot.due = refusal.until
        if tell:
            self.emit(MappingRefused(wanted.key, refusal.result, math.ceil(refusal.until - now)))
        self.not_replaced(slot)
        return True

    def _refusal_of_create(self, slot: Slot, wanted: WantedMapping, now: float) -> Refusal | None:
        protocol, host, _ = slot.internal
        refusal = self.refusals.create(host, slot.request_key, is_new=slot.is_new, now=now)
        if refusal or not wanted.exact:
            return refusal
        return self.refusals.of_port((protocol, wanted.external_port), slot.internal, now)

    def extend(self, slot: Slot, now: float, *, urgent: bool = True) -> None:
        """The lease's end moved: ask at once if the server would have given that long, else renewals see to it."""
        held = slot.held
        assert held is not None
        if not self._renewable(slot):
            slot.due, slot.queued = None, False
        elif slot.due is None and not slot.queued:
            if held.capped:
                self.schedule(slot, now)
            elif now >= slot.last_renewal + RENEWAL_GAP:
                self.send(slot, urgent)
            else:
                slot.due = slot.last_renewal + RENEWAL_GAP
        self.arm(slot)

    def delete(self, slot: Slot, now: float, *, urgent: bool = True) -> None:
        """Begin to delete, and go on until it is answered or the mapping has ended by itself."""
        create_pending = slot.phase is Phase.CREATING and slot.sent > 0
        slot.begin(Phase.DELETING)
        give_up = slot.held.ends if slot.held else now + self._timing.patience
        slot.exchange = Exchange(give_up=give_up, create_pending=create_pending)
        self.send(slot, urgent)
        self.arm(slot)

    def replace(self, slot: Slot, now: float, *, urgent: bool = True) -> None:
        """Delete what lets in others than it should; nobody is told unless nothing comes in its place."""
        slot.look_back(untold=True)
        self.delete(slot, now, urgent=urgent)

    def released(self, slot: Slot, result: int, now: float) -> None:
        """The delete is over: tell, and forget the slot or create what is wanted by now."""
        for key in slot.leaving:
            self.leaving.discard(key)
            if key not in self.by_key:
                self.emit(MappingReleased(key, result))
        if slot.leaving and slot.exposed and result == ResultCode.SUCCESS:
            self.refusals.forget_quota()
        slot.leaving = ()
        self.hold(slot, None)
        slot.look_back(assigned=None)
        slot.exposed = slot.unconfirmed = False
        if slot.wanted is not None:
            self.create(slot, now, tell=not slot.past.refusals)
            return
        slot.begin(Phase.WAITING)
        self._timers.set(slot, None)
        del self.slots[slot.internal]

    def hold(self, slot: Slot, held: Held | None) -> None:
        """The server holds this for the slot, in place of what it held; None: nothing that we know of."""
        for grant, sign in ((slot.held, -1), (held, 1)):
            if grant:
                self._ending_per_second += sign / grant.lifetime
                self._count_outlet(slot.internal[1], grant.address, sign)
        slot.held = held

    def address_of(self, host: IPAddress) -> IPAddress | None:
        """The external address that an internal host has already, the latest if several."""
        return self._outlets[host][0] if host in self._outlets else None

    def _count_outlet(self, host: IPAddress, address: IPAddress, sign: int) -> None:
        known, grants = self._outlets.get(host, (address, 0))
        if grants + sign:
            self._outlets[host] = (address if sign > 0 else known, grants + sign)
        else:
            del self._outlets[host]

    def lose(self, slot: Slot) -> None:
        """The grant is no more."""
        assert slot.wanted is not None
        slot.look_back(assigned=slot.assigned)
        slot.unconfirmed = False
        self.hold(slot, None)
        self.emit(MappingLost(slot.wanted.key))

    def not_replaced(self, slot: Slot) -> None:
        """What was to replace its grant is refused or unanswered: if that was given up for it, it is no more."""
        if slot.past.untold and slot.wanted:
            slot.look_back(untold=False)
            self.emit(MappingLost(slot.wanted.key))

    @property
    def renewals_per_second(self) -> float:
        """What keeps every mapping, with room for as many repetitions: they are renewed from half their lifetime on."""
        return RENEWALS_AHEAD * self._ending_per_second

    # Time

    def next_timer(self) -> float | None:
        """When ``fire`` has something to do."""
        return self._timers.next()

    def fire(self, now: float) -> None:
        """Do what has become due."""
        while slot := self._timers.pop(now):
            self._fired(slot, now)

    def _fired(self, slot: Slot, now: float) -> None:
        if slot.give_up is not None and now >= slot.give_up:
            gone = slot.held is not None and slot.held.sane
            self.released(slot, ResultCode.SUCCESS if gone else ResultCode.NETWORK_FAILURE, now)
        elif slot.held and slot.phase is not Phase.DELETING and now >= slot.held.ends:
            self.lose(slot)
            if slot.phase is Phase.HELD:
                self.create(slot, now, urgent=False)
        elif slot.due is not None and now >= slot.due:
            slot.due = None
            if slot.phase is Phase.WAITING:
                self.create(slot, now, urgent=False)
            elif slot.phase is Phase.HELD:
                self._renew(slot)
            else:
                self.send(slot, False)
        self.arm(slot)

    def arm(self, slot: Slot) -> None:
        """Set the slot's timer to what comes first: its next action, or an end."""
        end = slot.held.ends if slot.held and slot.phase is not Phase.DELETING else None
        self._timers.set(slot, min((at for at in (slot.due, slot.give_up, end) if at is not None), default=None))

    def _renewable(self, slot: Slot) -> bool:
        assert slot.wanted is not None
        assert slot.held is not None
        return slot.wanted.until is None or slot.wanted.until > slot.held.ends

    def schedule(self, slot: Slot, earliest: float) -> None:
        """Plan the next renewal, not before ``earliest``."""
        held = slot.held
        assert held is not None
        slot.due = None
        if self._renewable(slot):
            earliest = max(earliest, slot.last_renewal + RENEWAL_GAP)
            planned = renewal(held.ends - held.since, held.attempt, earliest - held.since, self._rng)
            if planned:
                held.attempt, since_grant = planned
                slot.due = held.since + since_grant
        self.arm(slot)

    # Packets

    def packet(self, slot: Slot, own: IPAddress, now: float) -> bytes | None:
        """What a slot sends now that it is its turn; None: nothing after all."""
        if slot.phase is Phase.CREATING:
            return self._create_packet(slot, own, now)
        refusal = self.refusals.everything(now)
        if refusal:
            slot.due = refusal.until
            self.arm(slot)
            return None
        if slot.phase is Phase.DELETING:
            return self._delete_packet(slot, own, now)
        return self._renewal_packet(slot, own, now)

    def _create_packet(self, slot: Slot, own: IPAddress, now: float) -> bytes | None:
        if self.wait(slot, now, tell=True):
            self.arm(slot)
            return None
        exchange = slot.exchange
        assert exchange is not None
        if not exchange.packet:
            exchange.packet = encode(slot.create_request(own, self._lifetime(slot, now), self.refusals.shed(now)))
        exchange.only_copy = not slot.exposed
        slot.exposed = True
        self._transmitted(slot, exchange, now)
        return exchange.packet

    def _delete_packet(self, slot: Slot, own: IPAddress, now: float) -> bytes:
        exchange = slot.exchange
        assert exchange is not None
        exchange.packet = exchange.packet or encode(slot.delete_request(own))
        self._transmitted(slot, exchange, now)
        if not slot.held and exchange.sent >= DELETE_TRANSMISSIONS:
            slot.due = None
            self.arm(slot)
        return exchange.packet

    def _renewal_packet(self, slot: Slot, own: IPAddress, now: float) -> bytes | None:
        lifetime = self._lifetime(slot, now)
        if slot.phase is not Phase.HELD or not lifetime:
            return None
        assert slot.held is not None
        slot.last_renewal = now
        slot.held.attempt += 1
        self.schedule(slot, now)
        return encode(slot.create_request(own, lifetime, self.refusals.shed(now)))

    def _lifetime(self, slot: Slot, now: float) -> int:
        """What is requested for the rest of the lease."""
        assert slot.wanted is not None
        return min(remaining(slot.wanted.until, now), self.conduct.lifetime_cap)

    def _transmitted(self, slot: Slot, exchange: Exchange, now: float) -> None:
        exchange.sent += 1
        exchange.timeout = self._timing.retransmission(exchange.timeout, self._rng)
        slot.due = now + exchange.timeout
        if exchange.sent >= REPLACING_TRANSMISSIONS:
            self.not_replaced(slot)
        self.arm(slot)
