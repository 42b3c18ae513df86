# SPDX-License-Identifier: Apache-2.0
"""What a MAP response does to the mapping it is for (RFC 6887 sections 8.3, 11.4, 13.2 and 15)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.model import IPAddress
from igdpcp.pcp.events import MappingGranted, MappingRefused
from igdpcp.pcp.message import MapResponse, ResultCode
from igdpcp.pcp.options import OptionCode
from igdpcp.pcp.slot import Held, Phase, Slot, let_in_by
from igdpcp.pcp.timing import ERROR_LIFETIME_CAP, RENEWAL_GAP, SCHEDULED_LIFETIME_MAX, error_lifetime
from igdpcp.pcp.transactions import Transactions
from igdpcp.values import shared

_SHEDDABLE = {OptionCode.DESCRIPTION, OptionCode.FILTER, OptionCode.PREFER_FAILURE}
_ABOUT_FILTERS = {ResultCode.UNSUPP_OPTION, ResultCode.MALFORMED_OPTION, ResultCode.EXCESSIVE_REMOTE_PEERS}


class Answers:
    """Reads responses; ``counters`` says which were ignored, and why."""

    def __init__(self, transactions: Transactions, counters: Counter[str]) -> None:
        self._transactions = transactions
        self._emit = transactions.emit
        self._counters = counters

    def find(self, response: MapResponse, own: IPAddress | None) -> Slot | None:
        """The slot that a response is for (RFC 6887 section 11.4), None when it must be ignored."""
        internal = response.third_party or own
        slot = self._transactions.slots.get((response.protocol, internal, response.internal_port)) if internal else None
        if slot is None or not slot.exposed:
            self._counters["no_match"] += 1
            return None
        if slot.nonce != response.nonce:
            self._counters["wrong_nonce"] += 1
            return None
        return slot

    def take(self, slot: Slot, response: MapResponse, own: IPAddress | None, now: float) -> None:
        """Take a response that ``find`` gave this slot for."""
        if own and response.result == ResultCode.UNSUPP_OPTION and slot.sent_options.codes == {OptionCode.THIRD_PARTY}:
            self._transactions.refusals.refuse_others(own, response.result, now + error_lifetime(response.lifetime))
        if slot.phase is Phase.DELETING:
            self._delete_answered(slot, response, now)
        elif response.result != ResultCode.SUCCESS:
            self._refused(slot, response, now)
        elif response.lifetime == 0:
            self._gone(slot, now)
        elif not slot.usable(response):
            self._counters["unusable_grant"] += 1
        elif slot.phase is Phase.CREATING and slot.repeats_too_few(response):
            self._granted_in_part(slot, response, now)
        elif slot.is_for_hosts_before(response):
            self._counters["late"] += 1
        elif slot.fits(response):
            self._granted(slot, response, now)
        elif slot.is_outdated(response):
            self._counters["outdated"] += 1
        else:
            self._give_back(slot, response, now)

    def _delete_answered(self, slot: Slot, response: MapResponse, now: float) -> None:
        """Only a create's answer has a port and means that the mapping lives, or never did: keep on deleting.

        A success with a lifetime is the end of the mapping here; its port stays taken there (section 15).
        """
        alive = response.lifetime > 0 or response.result != ResultCode.SUCCESS
        exchange = slot.exchange
        if exchange and exchange.create_pending and response.external_port and alive:
            exchange.create_pending = False
            self._counters["late"] += 1
            if response.result == ResultCode.SUCCESS:
                held = _held(slot, response, now)
                self._transactions.hold(slot, held)
                exchange.give_up = held.ends
                self._transactions.arm(slot)
            return
        if response.result == ResultCode.SUCCESS and (last := slot.last_port):
            port, refusals = (slot.internal[0], last), self._transactions.refusals
            if response.lifetime:
                refusals.keep_busy(port, slot.internal, now + min(response.lifetime, ERROR_LIFETIME_CAP))
            else:
                refusals.free(port)
        self._transactions.released(slot, response.result, now)

    def _gone(self, slot: Slot, now: float) -> None:
        """Lifetime 0 without a delete on its way: gone, or a delete's second answer; a renewal settles it."""
        self._counters["late"] += 1
        if slot.phase is Phase.HELD:
            slot.due = max(now, slot.last_renewal + RENEWAL_GAP)
            self._transactions.arm(slot)

    def _granted(self, slot: Slot, response: MapResponse, now: float) -> None:
        assert slot.wanted is not None
        held = _held(slot, response, now)
        self._transactions.hold(slot, held)
        slot.unconfirmed = False
        slot.forget_past()
        self._transactions.refusals.forget_request(slot.request_key)
        slot.begin(Phase.HELD)
        self._transactions.schedule(slot, now)
        self._emit(granted_event(slot.wanted.key, slot, held))

    def _give_back(self, slot: Slot, response: MapResponse, now: float) -> None:
        """Another endpoint than the exact one: useless to the control point, so it must not stay open."""
        self._remember_refusal(slot, ResultCode.CANNOT_PROVIDE_EXTERNAL, 0, now)
        if slot.held:
            self._transactions.lose(slot)
        self._transactions.hold(slot, _held(slot, response, now))
        slot.look_back(outdated_port=0)
        self._transactions.delete(slot, now)

    def _refused(self, slot: Slot, response: MapResponse, now: float) -> None:
        if self._is_late(slot, response):
            self._counters["late"] += 1
            return
        if slot.exchange and slot.exchange.only_copy:
            slot.exposed = slot.exchange.only_copy = False
        self._turned_down(slot, response, now)

    def _granted_in_part(self, slot: Slot, response: MapResponse, now: float) -> None:
        """All filters or none are to be taken (section 13.3): what the server means is that these are too many."""
        if slot.held and slot.wanted:
            let_in = let_in_by(response)
            slot.held.hosts = tuple(host for host in slot.wanted.remote_hosts if host in let_in)
        self._turned_down(slot, replace(response, result=ResultCode.EXCESSIVE_REMOTE_PEERS), now)
        if not slot.held:
            self._transactions.delete(slot, now)

    def _turned_down(self, slot: Slot, response: MapResponse, now: float) -> None:
        if not self._asks_for_less(slot, response, now):
            self._refused_for_good(slot, response, now)
        elif slot.phase is Phase.CREATING:
            self._transactions.create(slot, now)
        else:
            slot.due = max(now, slot.last_renewal + RENEWAL_GAP)
            self._transactions.arm(slot)

    def _is_late(self, slot: Slot, response: MapResponse) -> bool:
        """Whether an error is about an earlier request; errors carry their request's options and suggestion."""
        if slot.phase is Phase.WAITING or (slot.phase is Phase.CREATING and not slot.sent):
            return True
        if {option.code for option in response.options} & _SHEDDABLE - slot.sent_options.codes:
            return True
        if slot.repeats_other_filters(response):
            return True
        return not slot.past.suggest_address and slot.assigned == _suggested(response)

    def _asks_for_less(self, slot: Slot, response: MapResponse, now: float) -> bool:
        """Whether a smaller request may succeed: without an option, or without the address assigned before."""
        until = now + error_lifetime(response.lifetime)
        sent, kept = slot.sent_options, self._transactions.conduct.insists_on
        if not sent.add_filters:
            kept |= {OptionCode.FILTER}  # they are shed by now, and the ones before are still to be cleared
        if self._transactions.refusals.shed_for(response.result, sent.codes - kept, sent.clear_filters, now, until):
            return True
        if response.result != ResultCode.CANNOT_PROVIDE_EXTERNAL or not slot.assigned:
            return False
        suggested = slot.past.suggest_address
        slot.look_back(suggest_address=False)
        return suggested

    def _refused_for_good(self, slot: Slot, response: MapResponse, now: float) -> None:
        until = self._remember_refusal(slot, response.result, response.lifetime, now)
        if response.result == ResultCode.NO_RESOURCES:
            self._transactions.refusals.refuse_new(response.result, until)
        if slot.held and slot.unconfirmed and not slot.asks_for_more:
            self._transactions.lose(slot)
        if response.result in _ABOUT_FILTERS and self._transactions.conduct.insists_on_filters and slot.lets_in_others:
            self._transactions.replace(slot, now)
        elif slot.held:
            slot.begin(Phase.HELD)
            self._transactions.schedule(slot, until)
        else:
            self._transactions.not_replaced(slot)
            slot.begin(Phase.WAITING)
            slot.due = until
            self._transactions.arm(slot)

    def _remember_refusal(self, slot: Slot, result: int, lifetime: int, now: float) -> float:
        assert slot.wanted is not None
        slot.look_back(refusals=slot.past.refusals + 1)
        hold = error_lifetime(lifetime, slot.past.refusals)
        self._transactions.refusals.refuse_request(slot.request_key, result, now + hold)
        self._emit(MappingRefused(slot.wanted.key, result, math.ceil(hold)))
        return now + hold


def granted_event(key: str, slot: Slot, held: Held) -> MappingGranted:
    """The event that tells of a grant."""
    return MappingGranted(key, held.address, held.port, held.lifetime, held.ends, slot.nonce, held.hosts)


def _held(slot: Slot, response: MapResponse, now: float) -> Held:
    lifetime = shared(min(response.lifetime, SCHEDULED_LIFETIME_MAX))
    return Held(
        response.external_address,
        shared(response.external_port),
        lifetime,
        ends=now + lifetime,
        capped=response.lifetime < slot.requested,
        hosts=_let_in(slot),
        sane=lifetime == response.lifetime,
    )


def _let_in(slot: Slot) -> tuple[IPv4Address, ...]:
    """For whom a success is: a request without FILTER leaves those as they are that the mapping has."""
    sent = slot.sent_options
    if slot.wanted and sent.add_filters:
        return slot.wanted.remote_hosts
    return slot.held.hosts if slot.held and not sent.clear_filters else ()


def _suggested(response: MapResponse) -> tuple[IPAddress, int]:
    return response.external_address, response.external_port
