# SPDX-License-Identifier: Apache-2.0
"""What the user wants of one server, and recovery when the server or our address is no longer the same."""

from __future__ import annotations

import math

from igdpcp.model import IPAddress
from igdpcp.pcp.answers import granted_event
from igdpcp.pcp.events import MappingGranted, MappingLost, MappingRefused, MappingReleased, WantedMapping
from igdpcp.pcp.message import ResultCode
from igdpcp.pcp.refusals import Refusals
from igdpcp.pcp.slot import Held, InternalTuple, Phase, Slot, internal_tuple
from igdpcp.pcp.transactions import Transactions


class Mappings:
    """Turns wishes into transactions; creating, renewing and recreating are one path, there."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._emit = transactions.emit

    def __len__(self) -> int:
        return len(self._transactions.by_key)

    def grant(self, key: str) -> MappingGranted | None:
        """The grant that ``key`` has now."""
        slot = self._transactions.by_key.get(key)
        if slot is None or slot.held is None or slot.phase is Phase.DELETING:
            return None
        return granted_event(key, slot, slot.held)

    def doubts(self, key: str) -> bool:
        """Whether the server may have lost the grant that ``key`` has, be it by our deleting it."""
        slot = self._transactions.by_key.get(key)
        return slot is not None and (slot.unconfirmed or slot.past.untold)

    def __contains__(self, key: str) -> bool:
        return key in self._transactions.by_key

    def want(self, wanted: WantedMapping, now: float, urgent: bool) -> None:
        """Hold this mapping from now on. Raises ValueError when another key has its internal tuple."""
        internal = internal_tuple(wanted.protocol, wanted.internal_address, wanted.internal_port)
        slot = self._transactions.slots.get(internal)
        if slot and slot.wanted and slot.wanted.key != wanted.key:
            raise ValueError(f"{slot.wanted.key} has the internal tuple of {wanted.key}")
        previous = self._transactions.by_key.get(wanted.key)
        if previous is not None and previous is not slot:
            self._replaced(previous)
            self._withdraw(previous, now)
        if slot is None:
            slot = self._transactions.slots[internal] = Slot(internal)
        self._transactions.by_key[wanted.key] = slot
        if slot.wanted is None:
            self._adopt(slot, wanted, now, urgent)
        else:
            self._change(slot, slot.wanted, wanted, now, urgent)

    def drop(self, key: str, now: float, urgent: bool) -> None:
        """No longer hold it; MappingReleased follows, once."""
        slot = self._transactions.by_key.pop(key, None)
        if slot is not None:
            slot.leaving += (key,)
            self._transactions.leaving.add(key)
            self._withdraw(slot, now, urgent)
        elif key not in self._transactions.leaving:
            self._emit(MappingReleased(key, ResultCode.SUCCESS))

    def _adopt(self, slot: Slot, wanted: WantedMapping, now: float, urgent: bool) -> None:
        slot.wanted = wanted
        slot.look_back(refusals=0)
        if slot.phase is not Phase.DELETING:
            slot.exposed = bool(wanted.nonce)
            if address := self._address_to_suggest(wanted):
                slot.look_back(assigned=(address, wanted.external_port))
            self._transactions.create(slot, now, urgent=urgent, tell=True)

    def _address_to_suggest(self, wanted: WantedMapping) -> IPAddress | None:
        """Where it was, or where its host's other mappings are; not instead of an address that is asked for."""
        if wanted.nonce or wanted.external_address:
            return wanted.external_address if wanted.nonce else None
        return self._transactions.address_of(wanted.internal_address)

    def _change(self, slot: Slot, before: WantedMapping, wanted: WantedMapping, now: float, urgent: bool) -> None:
        replace, current_port = slot.must_be_replaced(wanted), slot.current_port
        other_hosts = set(before.remote_hosts) != set(wanted.remote_hosts)
        slot.wanted = wanted
        if slot.phase is Phase.DELETING:
            return
        if not slot.held and _suggestion(before) != _suggestion(wanted):
            slot.look_back(assigned=None)
        if replace:
            self._replaced(slot)
            slot.look_back(outdated_port=current_port, outdated_answers=0, refusals=0)
            self._transactions.delete(slot, now, urgent=urgent)
        elif slot.held and slot.phase is Phase.HELD and other_hosts:
            self._change_hosts(slot, slot.held, wanted, now, urgent)
        elif slot.phase is Phase.WAITING or other_hosts:
            self._transactions.create(slot, now, urgent=urgent, tell=True)
        elif slot.phase is Phase.HELD:
            self._transactions.extend(slot, now, urgent=urgent)
        elif not slot.held and _suggestion(before) != _suggestion(wanted):
            self._transactions.create(slot, now, urgent=urgent)
        elif urgent and not slot.sent:  # recovery has time, whoever waits for it has not
            slot.due = None
            self._transactions.send(slot, True)
            self._transactions.arm(slot)

    def _change_hosts(self, slot: Slot, held: Held, wanted: WantedMapping, now: float, urgent: bool) -> None:
        """Tell the server who may come in, unless it has granted that already, or refuses it until later."""
        refusal = self._transactions.refusals.of_request(slot.request_key, now)
        if slot.unconfirmed:
            self._transactions.create(slot, now, urgent=urgent, tell=True)
        elif set(held.hosts) == set(wanted.remote_hosts):
            self._emit(granted_event(wanted.key, slot, held))
            held.attempt = 1  # perhaps a refusal of others has put its renewals off
            self._transactions.schedule(slot, refusal.until if refusal else now)
        elif refusal:
            self._emit(MappingRefused(wanted.key, refusal.result, math.ceil(refusal.until - now)))
            self._transactions.schedule(slot, refusal.until)
        else:
            self._transactions.create(slot, now, urgent=urgent, tell=True)

    def _replaced(self, slot: Slot) -> None:
        if slot.held and slot.wanted and slot.phase is not Phase.DELETING:
            self._emit(MappingLost(slot.wanted.key))

    def _withdraw(self, slot: Slot, now: float, urgent: bool = True) -> None:
        slot.wanted = None
        if not slot.exposed:
            self._transactions.released(slot, ResultCode.SUCCESS, now)
        elif slot.phase is not Phase.DELETING:
            self._transactions.refusals.forget_quota()  # what is asked for now leaves behind this deletion
            self._transactions.delete(slot, now, urgent=urgent)

    def recover(self, at: float) -> None:
        """The server may have lost everything: create anew from ``at`` on, with what was assigned as suggestion."""
        for slot in self._transactions.slots.values():
            slot.unconfirmed = slot.held is not None
            if slot.phase is Phase.HELD:
                slot.begin(Phase.CREATING)
                slot.due = at
                self._transactions.arm(slot)

    def hold(self, now: float) -> None:
        """The server refuses everything: what waits for an answer is told, and waits for the end of that."""
        for slot in self._transactions.slots.values():
            if slot.phase is Phase.CREATING and slot.wanted:
                slot.exposed = slot.held is not None or bool(slot.wanted.nonce)
                self._transactions.wait(slot, now, tell=True)
                self._transactions.arm(slot)

    def retry(self, now: float) -> None:
        """The server is back: send at once, at the common pace, all that waits for an answer."""
        for slot in list(self._transactions.slots.values()):
            if slot.phase is Phase.DELETING and slot.exchange:
                slot.exchange.timeout, slot.due = None, now
                self._transactions.arm(slot)
            elif slot.phase is not Phase.HELD:
                self._transactions.create(slot, now, urgent=False)

    def move(self, old: IPAddress | None, new: IPAddress, now: float) -> None:
        """Our address is another: what had the old one gets the new one, and all is created from there."""
        self._transactions.refusals = Refusals()
        for slot in list(self._transactions.slots.values()):
            target = (slot.internal[0], new, slot.internal[2])
            if old is not None and slot.internal[1] == old and target not in self._transactions.slots:
                self._rename(slot, target, now)
        for slot in list(self._transactions.slots.values()):
            if slot.phase is Phase.DELETING and slot.exchange:
                slot.exchange.packet = b""
                self._transactions.send(slot, False)
            elif slot.sent or slot.phase is not Phase.CREATING:
                slot.unconfirmed = slot.held is not None
                self._transactions.create(slot, now, urgent=False)

    def _rename(self, slot: Slot, target: InternalTuple, now: float) -> None:
        """What the server holds for the old address cannot be named any more."""
        if slot.phase is Phase.DELETING:
            self._transactions.released(slot, ResultCode.NETWORK_FAILURE, now)
        slot.exposed = False
        if slot.wanted is not None:
            del self._transactions.slots[slot.internal]
            held = slot.held
            self._transactions.hold(slot, None)
            slot.internal, slot.nonce = target, slot.wanted.nonce
            self._transactions.hold(slot, held)
            self._transactions.slots[target] = slot
            slot.begin(Phase.WAITING)


def _suggestion(wanted: WantedMapping) -> tuple[int, bool, IPAddress | None]:
    return wanted.external_port, wanted.exact, wanted.external_address
