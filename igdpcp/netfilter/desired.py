# SPDX-License-Identifier: Apache-2.0
"""What the ruleset must hold, computed once from the openings, without knowing any back-end.

An opening contributes *facts*: pairs of a key (what a packet is matched on) and a value (what happens to it). Openings
may contribute the same key; then the oldest decides the value, and the fact lives as long as the longest of those that
want this value. What leads to a port that is only shown gives way to all of that.
Back-ends get changes of facts and say how they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from igdpcp import option_values
from igdpcp.errors import RulesetError
from igdpcp.model import Endpoint, Mode, Protocol
from igdpcp.openings import AnyOpening, Opening, PinholeOpening
from igdpcp.openings import Discrepancy as Discrepancy
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class Redirect:
    """Packets for a WAN port, from ``remote_host`` or from anybody, go to the client. Value: its Endpoint."""

    device: str
    protocol: Protocol
    wan_port: int
    remote_host: IPv4Address | None


@dataclass(frozen=True, slots=True)
class SourcePort:
    """The client's own packets leave with its WAN port as source port. Value: that port."""

    device: str
    protocol: Protocol
    client: Endpoint


@dataclass(frozen=True, slots=True)
class OwnPort:
    """A mapped WAN port: nobody else's packets may leave from it. Value: None."""

    device: str
    protocol: Protocol
    wan_port: int


@dataclass(frozen=True, slots=True)
class Hairpin:
    """Packets of LAN hosts for an external address and port go to the client. Value: HairpinTarget."""

    address: IPv4Address
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class HairpinTarget:
    """Where a hairpin goes. ``via``: the WAN device whose redirect of the same port leads there, else empty."""

    client: Endpoint
    via: str


@dataclass(frozen=True, slots=True)
class HairpinSender:
    """The client's packets to other mapped hosts come from its external endpoint. Value: that Endpoint."""

    protocol: Protocol
    client: Endpoint


@dataclass(frozen=True, slots=True)
class Pass:
    """Packets that were redirected from ``port`` to the client are forwarded. Value: None."""

    protocol: Protocol
    port: int
    client: Endpoint


@dataclass(frozen=True, slots=True)
class Admit:
    """Packets for the client itself that arrive on the WAN device are forwarded (routed). Value: None."""

    device: str
    protocol: Protocol
    client: Endpoint
    remote_host: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Pinhole:
    """First packets for a LAN host's own IPv6 address are forwarded. Value: None.

    They may come from ``remote_host`` or from anybody, and from its ``remote_port`` or from any (0).
    """

    protocol: Protocol
    client: IPv6Address
    client_port: int
    remote_host: IPv6Address | None
    remote_port: int


def device_name(name: str) -> str:
    """The name, if it can be a device's and nothing else; raises RulesetError."""
    try:
        return option_values.interface(name)
    except ValueError as error:
        raise RulesetError(f"{name!r} {error}") from error


Key = Redirect | SourcePort | OwnPort | Hairpin | HairpinSender | Pass | Admit | Pinhole
Value = Endpoint | HairpinTarget | int | None


@dataclass(frozen=True, slots=True)
class Fact:
    """What a key must lead to, until ``ends`` (same clock as the caller's)."""

    value: Value
    ends: float


@dataclass(frozen=True, slots=True)
class Change:
    """One fact's change; ``before`` is what the kernel was last told, None: nothing. ``after`` None: take it away."""

    key: Key
    before: Fact | None
    after: Fact | None


def contributions(opening: AnyOpening) -> Iterator[tuple[Key, Value]]:
    """The facts that one opening asks for."""
    if isinstance(opening, PinholeOpening):
        yield pinhole(opening), None
        return
    protocol, client, external = opening.protocol, opening.client, opening.external
    if opening.mode is Mode.ROUTED:
        for host in opening.remote_hosts or (None,):
            yield Admit(opening.wan_device, protocol, client, host), None
    else:
        for host in opening.remote_hosts or (None,):
            yield Redirect(opening.wan_device, protocol, opening.wan_port, host), client
        yield SourcePort(opening.wan_device, protocol, client), opening.wan_port
        yield OwnPort(opening.wan_device, protocol, opening.wan_port), None
        yield Pass(protocol, opening.wan_port, client), None
    yield HairpinSender(protocol, client), external
    if _is_for_all(opening):  # a hairpin would let LAN hosts in that the restriction keeps out
        yield from _hairpins(opening)


def shown_contributions(opening: AnyOpening) -> Iterator[tuple[Key, Value]]:
    """The facts that one opening asks for where no opening contributes to the same key by ``contributions``."""
    if isinstance(opening, Opening) and opening.shown_port and _is_for_all(opening):
        via = opening.mode is not Mode.ROUTED and opening.shown_port == opening.wan_port
        target = HairpinTarget(opening.client, opening.wan_device if via else "")
        yield Hairpin(opening.external.address, opening.protocol, opening.shown_port), target
        yield Pass(opening.protocol, opening.shown_port, opening.client), None


def _is_for_all(opening: Opening) -> bool:
    return opening.hairpins and not opening.remote_hosts


def pinhole(opening: PinholeOpening) -> Pinhole:
    """The only key that a pinhole contributes to."""
    return Pinhole(opening.protocol, opening.client, opening.client_port, opening.remote_host, opening.remote_port)


def _hairpins(opening: Opening) -> Iterator[tuple[Key, Value]]:
    protocol, client, external = opening.protocol, opening.client, opening.external
    redirected = opening.mode is not Mode.ROUTED
    same_port = redirected and external.port == opening.wan_port
    if redirected:
        target = HairpinTarget(client, opening.wan_device)
        yield Hairpin(opening.wan_address, protocol, opening.wan_port), target
    if not (same_port and external.address == opening.wan_address):
        target = HairpinTarget(client, opening.wan_device if same_port else "")
        yield Hairpin(external.address, protocol, external.port), target
    if not same_port:
        yield Pass(protocol, external.port, client), None


_Anchor = tuple[Protocol, int | Endpoint | tuple[IPv6Address, int]]


def _anchors(opening: AnyOpening) -> set[_Anchor]:
    """The client and the ports of an opening: two that contribute the same key have one of them in common.

    They stand in for an index by key, which would cost 8 entries a mapping instead of 2.
    """
    protocol = opening.protocol
    if isinstance(opening, PinholeOpening):
        return {(protocol, (opening.client, opening.client_port))}
    anchors: set[_Anchor] = {(protocol, opening.client), (protocol, opening.external.port)}
    if opening.mode is not Mode.ROUTED:
        anchors.add((protocol, opening.wan_port))
    if opening.shown_port:
        anchors.add((protocol, opening.shown_port))
    return anchors


class Desired:
    """The openings that must be in force, and the facts that follow from them. Not thread-safe."""

    def __init__(self) -> None:
        self._held: dict[str, AnyOpening] = {}
        self._anchored: dict[Protocol, dict[object, AnyOpening | tuple[AnyOpening, ...]]] = {  # seldom more than one
            protocol: {} for protocol in Protocol
        }

    def __len__(self) -> int:
        return len(self._held)

    def get(self, id: str) -> AnyOpening | None:
        """The opening of this id."""
        return self._held.get(id)

    def set(self, id: str, opening: AnyOpening | None) -> None:
        """Hold this opening in place of the one of the same id; None: hold none."""
        old = self._held.pop(id, None)
        before, after = _anchors(old) if old else set(), _anchors(opening) if opening else set()
        for protocol, anchor in before | after:
            here = tuple(held for held in self._at(protocol, anchor) if held is not old)
            if opening and (protocol, anchor) in after:
                here = (*here, opening)
            if here:
                self._anchored[protocol][anchor] = here if len(here) > 1 else here[0]
            else:
                del self._anchored[protocol][anchor]
        if opening:
            self._held[id] = opening

    def facts(self, openings: Iterable[AnyOpening]) -> dict[Key, Fact]:
        """For each key that these openings contribute to: what all openings held make of it, if anything."""
        openings = list(openings)
        neighbours = {
            id(held): held for opening in openings for anchor in _anchors(opening) for held in self._at(*anchor)
        }
        facts = _merge(neighbours.values())
        if all(any(held is opening for opening in openings) for held in neighbours.values()):
            return facts  # the usual case: nobody else contributes, so there is no key of others to leave out
        keys = {key for each in openings for key, _ in (*contributions(each), *shown_contributions(each))}
        return {key: fact for key, fact in facts.items() if key in keys}

    def _at(self, protocol: Protocol, anchor: object) -> tuple[AnyOpening, ...]:
        held = self._anchored[protocol].get(anchor, ())
        return held if isinstance(held, tuple) else (held,)

    def all_facts(self, now: float) -> dict[Key, Fact]:
        """Every fact of the openings that have not ended."""
        return _merge(opening for opening in self._held.values() if opening.ends > now)

    def sample(self, after: float) -> dict[Key, Fact]:
        """The facts that last beyond ``after`` of one opening of each shape: of every kind of key, if there is any."""
        shapes = {_shape(opening): opening for opening in self._held.values() if opening.ends > after}
        return {key: fact for key, fact in self.facts(shapes.values()).items() if fact.ends > after}


def _shape(opening: AnyOpening) -> tuple[object, ...]:
    """Openings of the same shape contribute to the same kinds of keys."""
    if isinstance(opening, PinholeOpening):
        return PinholeOpening, opening.remote_host is None, opening.remote_port == 0
    return opening.mode, not opening.remote_hosts, opening.shown_port == 0, opening.hairpins


def _merge(openings: Iterable[AnyOpening]) -> dict[Key, Fact]:
    """The oldest contributor of a key decides its value; it ends with the last one that agrees."""
    facts: dict[Key, Fact] = {}
    in_order = sorted(openings, key=lambda opening: opening.serial)
    for contribution in (contributions, shown_contributions):
        for one in in_order:
            for key, value in contribution(one):
                fact = Fact(value, one.ends)
                known = facts.setdefault(key, fact)
                if known.value == value and known.ends < one.ends:
                    facts[key] = fact
    return facts


def difference(before: dict[Key, Fact], after: dict[Key, Fact]) -> list[Change]:
    """The changes that lead from one set of facts to the other."""
    if not before:
        return [Change(key, None, fact) for key, fact in after.items()]
    changes = [Change(key, fact, then) for key, fact in before.items() if (then := after.get(key)) != fact]
    return changes + [Change(key, None, fact) for key, fact in after.items() if key not in before]
