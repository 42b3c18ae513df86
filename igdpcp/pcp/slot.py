# SPDX-License-Identifier: Apache-2.0
"""One internal tuple at the server: what is wanted for it, what it got, and the request on its way.

A server knows one mapping per protocol, internal address and internal port (RFC 6887 section 11.1), so a slot has at
most one transaction at a time: what is wanted while a delete is on its way is created after the delete's answer.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Any

from igdpcp.model import REMOTE_HOSTS_MAX, IPAddress, Protocol
from igdpcp.pcp.events import WantedMapping
from igdpcp.pcp.message import MapRequest, MapResponse
from igdpcp.pcp.options import (
    ANY_IPV4,
    ANY_IPV6,
    CLEAR_PREFIX,
    Filter,
    Option,
    PreferFailure,
    ThirdParty,
    describe,
    filters_for,
)
from igdpcp.pcp.refusals import Shed
from igdpcp.values import dataclass

UPDATE_COPIES = 3  # RFC 6887 section 14.2: a Mapping Update is sent three times

InternalTuple = tuple[int, IPAddress, int]


class Phase(enum.Enum):
    """WAITING: not asked for now. CREATING, DELETING: a request is repeated until answered. HELD: granted, renewed."""

    WAITING = enum.auto()
    CREATING = enum.auto()
    HELD = enum.auto()
    DELETING = enum.auto()


@dataclass(frozen=True, slots=True)
class SentOptions:
    """What is remembered of the options in the request on its way: their codes, and what FILTERs did."""

    codes: frozenset[int]
    clear_filters: bool
    add_filters: bool


NO_OPTIONS = SentOptions(frozenset(), False, False)


@dataclass(slots=True)
class Held:
    """What the server granted; ``hosts``: whom it was asked to let in, empty: everybody.

    ``capped``: less than was asked for, ``sane``: its lifetime is no more than a day. ``attempt``: the number of its
    next renewal.
    """

    address: IPAddress
    port: int
    lifetime: int
    ends: float
    capped: bool
    hosts: tuple[IPv4Address, ...]
    sane: bool
    attempt: int = 1

    @property
    def since(self) -> float:
        """When it was granted."""
        return self.ends - self.lifetime


@dataclass(slots=True, eq=False)
class Exchange:
    """A create or delete that is repeated until it is answered; ``give_up``: when a delete is over all the same.

    ``only_copy``: for no other reason than the one packet on its way may the server hold a mapping, so a refusal proves
    that there is none. ``create_pending``: the delete overtook a create that is unanswered.
    """

    packet: bytes = b""
    sent: int = 0
    timeout: float | None = None
    give_up: float | None = None
    only_copy: bool = False
    create_pending: bool = False


@dataclass(frozen=True, slots=True)
class Past:
    """What went before a grant: how often it was refused, and what may be suggested.

    ``assigned``: what it held last, or what its host's other mappings let expect. ``outdated_port``: of the mapping
    that is being replaced, about which a few late answers may come. ``untold``: its grant was given up for another one
    in the same place, and nobody told; when that is refused, or there is silence, it is lost.
    """

    refusals: int = 0
    assigned: tuple[IPAddress, int] | None = None
    suggest_address: bool = True
    outdated_port: int = 0
    outdated_answers: int = 0
    untold: bool = False


NO_PAST = Past()  # of what is held, as a rule


@dataclass(slots=True, eq=False)
class Slot:
    """State of one internal tuple.

    ``exposed``: the server may hold a mapping. ``unconfirmed``: the server may have lost what it granted. ``leaving``:
    keys to be told when the delete is over. ``exchange``: while creating and deleting. What is held for long has few
    fields, for there are thousands of them.
    """

    internal: InternalTuple
    nonce: bytes = b""
    wanted: WantedMapping | None = None
    phase: Phase = Phase.WAITING
    held: Held | None = None
    exchange: Exchange | None = None
    past: Past = NO_PAST
    exposed: bool = False
    unconfirmed: bool = False
    leaving: tuple[str, ...] = ()

    requested: int = 0
    sent_options: SentOptions = NO_OPTIONS
    due: float | None = None
    last_renewal: float = float("-inf")

    timer: float | None = None
    queued: bool = False

    def __lt__(self, other: Slot) -> bool:
        """Any order, but always the same."""
        return self.internal[2] < other.internal[2]

    @property
    def request_key(self) -> Hashable:
        """What makes two requests for a new mapping the same one (RFC 6887 section 8.3)."""
        assert self.wanted is not None
        hosts = frozenset(self.wanted.remote_hosts)
        return self.internal, self.wanted.external_port, self.wanted.exact, hosts

    @property
    def is_new(self) -> bool:
        """Whether its request is for a new mapping, not for one that was granted, be it to an earlier process."""
        assert self.wanted is not None
        return self.held is None and not (self.exposed and self.wanted.nonce)

    def begin(self, phase: Phase) -> None:
        """Enter a phase; nothing of it was sent yet."""
        self.phase = phase
        self.exchange = Exchange() if phase in (Phase.CREATING, Phase.DELETING) else None
        self.due, self.queued = None, False

    def look_back(self, **changes: Any) -> None:
        """Remember this of what went before a grant."""
        self.past = replace(self.past, **changes)

    def forget_past(self) -> None:
        """It is granted: only late answers about what it replaced may yet come."""
        port, answers = self.past.outdated_port, self.past.outdated_answers
        self.past = Past(outdated_port=port, outdated_answers=answers) if port else NO_PAST

    @property
    def sent(self) -> int:
        """How often the request on its way was sent."""
        return self.exchange.sent if self.exchange else 0

    @property
    def give_up(self) -> float | None:
        """When a delete is over without an answer."""
        return self.exchange.give_up if self.exchange else None

    def must_be_replaced(self, wanted: WantedMapping) -> bool:
        """Whether the server holds, or may hold, what stands in the way of ``wanted``: another port or nonce."""
        if not self.exposed:
            return False
        if wanted.nonce and wanted.nonce != self.nonce:
            return True
        return wanted.exact and wanted.external_port not in (0, self.current_port)

    def keeps_filters(self, shed: Shed, *, exactly: bool) -> bool:
        """Whether what is wanted needs filters gone that only the mapping's end takes away: the server clears none.

        ``exactly``: also where they let in more than is wanted.
        """
        if not (shed.clearing_filter and self.held and self.held.hosts and self.wanted and self.exposed):
            return False
        held, hosts = set(self.held.hosts), set(self.wanted.remote_hosts)
        added = set() if shed.filters or len(hosts) > REMOTE_HOSTS_MAX else hosts
        return not hosts or not hosts <= held | added or (exactly and not held <= hosts)

    @property
    def asks_for_more(self) -> bool:
        """Whether it is to let in others besides those that it was granted for: a refusal is not about that grant."""
        if not (self.held and self.held.hosts and self.wanted):
            return False
        return not self.wanted.remote_hosts or set(self.held.hosts) < set(self.wanted.remote_hosts)

    @property
    def lets_in_others(self) -> bool:
        """Whether it was granted for others than those that are wanted."""
        if not (self.held and self.wanted and self.wanted.remote_hosts):
            return False
        return not self.held.hosts or not set(self.held.hosts) <= set(self.wanted.remote_hosts)

    @property
    def current_port(self) -> int:
        """The external port that the server holds or was told to hold; 0: any."""
        if self.held:
            return self.held.port
        return self.wanted.external_port if self.wanted and self.wanted.exact else 0

    @property
    def assigned(self) -> tuple[IPAddress, int] | None:
        """The external endpoint that it holds or held last."""
        return (self.held.address, self.held.port) if self.held else self.past.assigned

    @property
    def last_port(self) -> int:
        """The external port that the server holds or held last; 0: not known."""
        return self.assigned[1] if self.assigned else 0

    def create_request(self, own: IPAddress, lifetime: int, shed: Shed) -> MapRequest:
        """The request that creates, renews or recreates the mapping."""
        wanted = self.wanted
        assert wanted is not None
        port, address = wanted.external_port, wanted.external_address
        if self.assigned:
            port = (wanted.exact and port) or self.assigned[1]
            address = self.assigned[0] if self.past.suggest_address else None
        if address is None:
            address = ANY_IPV4 if self.internal[1].version == 4 else ANY_IPV6
        self.requested = lifetime
        options = self._third_party(own) + self._wishes(wanted, shed)
        self.sent_options = _sent(options)
        protocol, _, internal_port = self.internal
        return MapRequest(own, self.nonce, protocol, internal_port, lifetime, port, address, options)

    def delete_request(self, own: IPAddress) -> MapRequest:
        """The request that deletes it: no suggestion, no option but THIRD_PARTY (RFC 6887 section 15.1)."""
        options = self._third_party(own)
        self.sent_options = _sent(options)
        protocol, _, internal_port = self.internal
        return MapRequest(own, self.nonce, protocol, internal_port, 0, 0, ANY_IPV6, options)

    def _third_party(self, own: IPAddress) -> tuple[Option, ...]:
        return () if self.internal[1] == own else (ThirdParty(self.internal[1]),)

    def _wishes(self, wanted: WantedMapping, shed: Shed) -> tuple[Option, ...]:
        options: list[Option] = []
        if wanted.exact and wanted.external_port and not shed.prefer_failure:
            options.append(PreferFailure())
        options += self._filters(wanted.remote_hosts, shed)
        if wanted.description and not shed.description:
            options.append(describe(wanted.description))
        return tuple(options)

    def _filters(self, hosts: tuple[IPv4Address, ...], shed: Shed) -> tuple[Option, ...]:
        """None where there are none to set or to replace; only the clearing one where the server takes no other."""
        held = self.held.hosts if self.held else ()
        if shed.filters or len(hosts) > REMOTE_HOSTS_MAX:
            somebody_new = not hosts or not set(hosts) <= set(held)
            held, hosts = held if somebody_new else (), ()
        return filters_for(hosts)[1 if shed.clearing_filter else 0 :] if hosts or held else ()

    def usable(self, response: MapResponse) -> bool:
        """Whether a success names an endpoint that mappings of this tuple can have."""
        address = response.external_address
        same_family = address.version == self.internal[1].version
        return same_family and not address.is_unspecified and response.external_port != 0

    def fits(self, response: MapResponse) -> bool:
        """Whether a success is what was asked for (RFC 6887 section 13.2: checked by the client).

        A mapping that is held, or was by an earlier process, may change its address: only its port was promised.
        """
        wanted = self.wanted
        assert wanted is not None
        if not wanted.exact or not wanted.external_port:
            return True
        known = self.held or self.assigned
        address_fits = known is not None or wanted.external_address in (None, response.external_address)
        return response.external_port == wanted.external_port and address_fits

    def is_for_hosts_before(self, response: MapResponse) -> bool:
        """Whether a success may be the answer to an earlier request, that had other filters."""
        if not (self.wanted and self.phase is Phase.CREATING):
            return False
        unsent = self.held and not self.sent and set(self.held.hosts) != set(self.wanted.remote_hosts)
        return bool(unsent) or self.repeats_other_filters(response) or self._may_be_for_everybody(response)

    def _may_be_for_everybody(self, response: MapResponse) -> bool:
        """Whether it repeats no filters where there were none before: a server that never does says so twice."""
        was_for_everybody = self.held is not None and not self.held.hosts
        return was_for_everybody and self.sent_options.add_filters and self.sent == 1 and not let_in_by(response)

    def repeats_other_filters(self, response: MapResponse) -> bool:
        """Whether a response has filters, and lets others in than those that are wanted now."""
        return bool(hosts := let_in_by(response)) and (self.wanted is None or hosts != set(self.wanted.remote_hosts))

    def repeats_too_few(self, response: MapResponse) -> bool:
        """Whether a success repeats some of the filters that were sent twice: none that late is for those before."""
        hosts = let_in_by(response)
        return self.sent > 1 and bool(hosts) and self.wanted is not None and hosts < set(self.wanted.remote_hosts)

    def is_outdated(self, response: MapResponse) -> bool:
        """Whether a success that does not fit is a late word about the mapping that this one replaces."""
        if response.external_port != self.past.outdated_port or self.past.outdated_answers >= UPDATE_COPIES:
            return False
        self.look_back(outdated_answers=self.past.outdated_answers + 1)
        return True


def let_in_by(response: MapResponse) -> set[IPAddress]:
    """The remote hosts of the FILTERs in a response; none: nothing is said of them."""
    filters = (option for option in response.options if isinstance(option, Filter))
    return {option.address for option in filters if option.prefix_length != CLEAR_PREFIX}


def _sent(options: tuple[Option, ...]) -> SentOptions:
    prefixes = [option.prefix_length for option in options if isinstance(option, Filter)]
    clear, add = CLEAR_PREFIX in prefixes, any(prefix != CLEAR_PREFIX for prefix in prefixes)
    return _shared(SentOptions(frozenset(option.code for option in options), clear, add))


@lru_cache(maxsize=32)  # there are few kinds, and every mapping keeps one
def _shared(options: SentOptions) -> SentOptions:
    return options


def internal_tuple(protocol: Protocol, address: IPAddress, port: int) -> InternalTuple:
    """The tuple as a dictionary key."""
    return int(protocol), address, port
