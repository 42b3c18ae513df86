# SPDX-License-Identifier: Apache-2.0
"""The mapping table: who holds which external port and which WAN port, claimed in one synchronous step.

Keys are (protocol, external port) as control points see them (RFC 6970 section 5.3), and the internal tuple as the
upstream sees it: (protocol, WAN port) where the router translates, (protocol, client, port) where it does not.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from typing import TypeVar

from igdpcp.errors import Reason, Refusal
from igdpcp.model import MOVED_PORTS, Endpoint, IPAddress, Mapping, MappingRequest, MappingState, Mode, Protocol

WAN_PORTS = range(1024, MOVED_PORTS.start)
HASHED_TRIES = 256
REST_SECONDS = 30.0  # a freed WAN port is not given to another client before the upstream has forgotten the old one
SYSTEM_UPDATE_IDS = 2**32  # SystemUpdateID is a ui4 that wraps (WANIPConnection:2)

PortInUse = Callable[[Protocol, int], bool]
_Internal = int | Endpoint
_AnyPort = tuple[Protocol, Endpoint, IPv4Address | None]
K = TypeVar("K")
_Ids = dict[Protocol, dict[K, str]]  # by what the mapping has already: a key of both would be an object for each


def _no_ids() -> dict[Protocol, dict[K, str]]:
    return {protocol: {} for protocol in Protocol}


def _internal(mapping: Mapping) -> _Internal:
    return mapping.request.client if mapping.mode is Mode.ROUTED else mapping.wan_port


class MappingTable:
    """All mappings, the planned and ending ones included; listing order is the order of age.

    ``changed`` is called after each change of what control points are shown.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._tell_changed = changed
        self._mappings: dict[str, Mapping] = {}
        self._external: _Ids[int] = _no_ids()
        self._contending: _Ids[int] = _no_ids()  # asked upstream for a port that another one holds
        self._internal: _Ids[_Internal] = _no_ids()
        self._any_port: dict[_AnyPort, str] = {}
        self._listed: list[str] = []
        self._held: Counter[IPv4Address] = Counter()
        self._more = 0  # entries, than there are mappings
        self._shadows: dict[str, None] = {}
        self._externals: Counter[IPv4Address] = Counter()
        self._outlets: dict[IPAddress, IPv4Address] | None = None  # of each client; made when somebody asks
        self._resting: dict[tuple[Protocol, int], tuple[float, Endpoint]] = {}
        self._serial = 0
        self.system_update_id = 0

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(list(self._mappings.values()))

    def get(self, id: str) -> Mapping | None:
        return self._mappings.get(id)

    def find(self, protocol: Protocol, external_port: int) -> Mapping | None:
        """The mapping that holds this external port, listed or not."""
        id = self._external[protocol].get(external_port)
        return self._mappings[id] if id else None

    def find_contender(self, protocol: Protocol, external_port: int) -> Mapping | None:
        """The mapping that was planned for this external port while another one held it."""
        id = self._contending[protocol].get(external_port)
        return self._mappings[id] if id else None

    def find_client(self, request: MappingRequest) -> Mapping | None:
        """The entry that AddAnyPortMapping refreshes: an earlier one of its own, or the only one routed mode allows."""
        id = self._any_port.get(_any_port(request))
        id = id or self._internal[request.protocol].get(request.client)
        return self._mappings[id] if id else None

    def leading_to(self, protocol: Protocol, host: IPv4Address, port: int) -> list[Mapping]:
        """What leads to this port of a host (0: to any), oldest first, shadows not; looks at all mappings there are."""
        return [
            each
            for each in self._mappings.values()
            if port in (0, each.request.client.port) and each.request.client.address == host
            and each.request.protocol is protocol and not each.is_shadow
        ]  # fmt: skip

    def expect(self, request: MappingRequest, count: int = 1) -> None:
        """One more entry of a mapping is on its way, or (-1) is not: it counts for its host from now on."""
        self._more += count
        self._hold(request, count)

    def in_ports(self, protocol: Protocol, ports: range) -> list[Mapping]:
        """The mappings that hold external ports of this range, listed or not, by port."""
        held = sorted((port, id) for port, id in self._external[protocol].items() if port in ports)
        return [self._mappings[id] for _, id in held]

    @property
    def counted(self) -> int:
        """How many entries there are of which quotas speak: all but shadows."""
        return len(self._mappings) + self._more - len(self._shadows)

    @property
    def shadows(self) -> list[Mapping]:
        """What only queries asked for, oldest first."""
        return [self._mappings[id] for id in self._shadows]

    @property
    def listed(self) -> int:
        """PortMappingNumberOfEntries."""
        return len(self._listed)

    def at(self, index: int) -> Mapping:
        """The listed entry at this 0-based index; raises Refusal past the end."""
        if not 0 <= index < len(self._listed):
            raise Refusal(Reason.NO_SUCH_INDEX, str(index))
        mapping = self._mappings[self._listed[index]]
        return mapping.entries[self._listed[:index].count(mapping.id)] if mapping.others else mapping

    def listing(self) -> Iterator[Mapping]:
        """The listed entries in the order of their index; to be read before the table changes."""
        begun: dict[str, Iterator[Mapping]] = {}
        for mapping in (self._mappings[id] for id in self._listed):
            if not mapping.others:
                yield mapping
                continue
            if mapping.id not in begun:
                begun[mapping.id] = iter(mapping.entries)
            yield next(begun[mapping.id])

    def external_address_of(self, client: IPAddress, usual: IPv4Address) -> IPv4Address:
        """Where the youngest listed mapping of this client comes out; ``usual`` where it has none."""
        if self._externals.keys() <= {usual}:
            return usual
        if self._outlets is None:
            self._outlets = {
                mapping.request.client.address: external
                for mapping in self.listing()
                if (external := _shown_external(mapping))
            }
        return self._outlets.get(client, usual)

    def clients(self) -> frozenset[IPv4Address]:
        """The hosts that hold any, those not granted yet included, but not the operator's."""
        return frozenset(self._held)

    def held_by(self, client: IPv4Address) -> int:
        """How many entries lead to this client, those not granted yet included, the operator's and shadows not."""
        return self._held[client]

    @property
    def at_carrier(self) -> int:
        """How many of the listed ones a carrier has granted."""
        return self._externals.total()

    def holds_internal(self, mapping: Mapping) -> bool:
        """Whether the internal tuple of this mapping, which need not be in the table, belongs to one that is."""
        return _internal(mapping) in self._internal[mapping.request.protocol]

    def plan(
        self, request: MappingRequest, mode: Mode, now: float, in_use: PortInUse, *, contends: bool = False
    ) -> Mapping:
        """Claim the external port and a WAN port for this request; raises Refusal when either is not to be had.

        An AddAnyPortMapping claims its external port only when the upstream has named it; so does one that ``contends``
        for a port that is held.
        """
        external_port = request.external_port
        if self.find(request.protocol, external_port):
            if request.any_port:
                external_port = 0
            elif not contends or self.find_contender(request.protocol, external_port):
                raise Refusal(Reason.CONFLICT, f"{request.protocol.name} {external_port}")
        wan_port = self._choose_wan_port(request, mode, now, in_use)
        self._serial += 1
        mapping = Mapping(
            id=f"{self._serial:08x}",
            serial=self._serial,
            request=request,
            mode=mode,
            external_port=external_port,
            wan_port=wan_port,
            state=MappingState.PLANNED,
            lease_ends=now + request.lease if request.lease else None,
        )
        self._insert(mapping)
        return mapping

    def restore(self, mapping: Mapping) -> None:
        """Take in a mapping of an earlier process; raises Refusal when its ports are held."""
        if self.find(mapping.request.protocol, mapping.external_port) or self.holds_internal(mapping):
            raise Refusal(Reason.CONFLICT, f"{mapping.request.protocol.name} {mapping.external_port}")
        self.reserve(mapping.serial)
        self._insert(mapping)

    def reserve(self, serial: int) -> None:
        """Never again give this serial, or the id made of it, to a new mapping."""
        self._serial = max(self._serial, serial)

    def update(self, mapping: Mapping) -> None:
        """Put a new version of a mapping in the old one's place; raises Refusal when its new external port is held."""
        old = self._mappings[mapping.id]
        protocol, port = mapping.request.protocol, mapping.external_port
        contends = mapping.grant is None and self._contends(mapping)
        if _claims_external(mapping) and not contends and self._external[protocol].get(port, old.id) != old.id:
            reason = Reason.NO_PORT if mapping.request.any_port else Reason.CONFLICT
            raise Refusal(reason, f"{protocol.name} {port} is another client's")
        if _keys(old) != _keys(mapping) or self._contends(old):
            self._unindex(old)
            self._index(mapping)
        self._count(old, -1)
        self._count(mapping, 1)
        self._mappings[mapping.id] = mapping
        self._relist(old, mapping)
        if _shown(old) != _shown(mapping):
            self._changed()

    def resume(self, update_id: int) -> None:
        """Count on from an earlier process's SystemUpdateID, as after one change: who saw that one shall look again."""
        self.system_update_id = update_id
        self._changed()

    def forget(self, ids: Iterable[str], now: float) -> None:
        """Drop mappings, as one change; their WAN ports rest for a while unless their owner returns."""
        gone = [self._mappings.pop(id) for id in ids]
        for mapping in gone:
            self._unindex(mapping)
            self._count(mapping, -1)
            if mapping.mode is Mode.CASCADED:
                self._rest(mapping, now)
        if shown := [mapping for mapping in gone if mapping.visible]:
            self._unlist(shown)
            self._changed()

    def _choose_wan_port(self, request: MappingRequest, mode: Mode, now: float, in_use: PortInUse) -> int:
        protocol, client = request.protocol, request.client
        if mode is Mode.ROUTED:
            if client in self._internal[protocol]:
                raise Refusal(Reason.CONFLICT, f"{client} is mapped already")
            return client.port
        for port in _wan_port_candidates(request):
            rest = self._resting.get((protocol, port))
            if mode is Mode.CASCADED and rest and rest[0] > now and rest[1] != client:
                continue
            shown_elsewhere = mode is Mode.LOCAL and self.find(protocol, port)
            if port not in self._internal[protocol] and not shown_elsewhere and not in_use(protocol, port):
                return port
            if mode is Mode.LOCAL and not request.any_port:
                raise Refusal(Reason.PORT_IN_USE, f"{protocol.name} {port}")
        raise Refusal(Reason.NO_PORT, f"{protocol.name} for {client}")

    def _rest(self, mapping: Mapping, now: float) -> None:
        key = (mapping.request.protocol, mapping.wan_port)
        self._resting.pop(key, None)
        self._resting[key] = (now + REST_SECONDS, mapping.request.client)
        while (oldest := next(iter(self._resting.items())))[1][0] <= now:
            del self._resting[oldest[0]]

    def _insert(self, mapping: Mapping) -> None:
        self._mappings[mapping.id] = mapping
        self._index(mapping)
        self._count(mapping, 1)
        if mapping.visible:
            self._listed += [mapping.id] * len(mapping.hosts)
            self._changed()

    def _contends(self, mapping: Mapping) -> bool:
        return self._contending[mapping.request.protocol].get(mapping.external_port) == mapping.id

    def _relist(self, old: Mapping, new: Mapping) -> None:
        """An id is listed once for each entry, so that the list is by age: what is new is at its end."""
        if old.visible is new.visible and not (old.others or new.others):
            return
        before = old.hosts if old.visible else ()
        after = new.hosts if new.visible else ()
        if gone := [n for n, host in enumerate(before) if host not in after]:
            places = [at for at, id in enumerate(self._listed) if id == new.id]
            for n in reversed(gone):
                del self._listed[places[n]]
        self._listed += [new.id for host in after if host not in before]

    def _unlist(self, gone: list[Mapping]) -> None:
        if len(gone) == 1:  # the usual case; like this it takes half of the time or less
            for _ in gone[0].hosts:
                self._listed.remove(gone[0].id)
        else:
            ids = {mapping.id for mapping in gone}
            self._listed = [id for id in self._listed if id not in ids]

    def _index(self, mapping: Mapping) -> None:
        protocol, port = mapping.request.protocol, mapping.external_port
        if _claims_external(mapping) and self._external[protocol].setdefault(port, mapping.id) != mapping.id:
            self._contending[protocol][port] = mapping.id
        self._internal[protocol][_internal(mapping)] = mapping.id
        if mapping.request.any_port:
            self._any_port[_any_port(mapping.request)] = mapping.id

    def _unindex(self, mapping: Mapping) -> None:
        protocol, port = mapping.request.protocol, mapping.external_port
        if _claims_external(mapping):
            del (self._contending if self._contends(mapping) else self._external)[protocol][port]
        del self._internal[protocol][_internal(mapping)]
        if self._any_port.get(_any_port(mapping.request)) == mapping.id:
            del self._any_port[_any_port(mapping.request)]

    def _count(self, mapping: Mapping, sign: int) -> None:
        """One more of its kind (1), or one less (-1)."""
        if mapping.is_shadow:
            if sign > 0:
                self._shadows[mapping.id] = None
            else:
                del self._shadows[mapping.id]
        else:
            self._hold(mapping.request, sign)
        for each in mapping.others:
            self.expect(each.request, sign)
        if external := _shown_external(mapping):
            _add(self._externals, external, sign)
            self._outlets = None

    def _hold(self, request: MappingRequest, count: int) -> None:
        if not request.requester.owner.is_operators:
            _add(self._held, request.client.address, count)

    def _changed(self) -> None:
        self.system_update_id = (self.system_update_id + 1) % SYSTEM_UPDATE_IDS
        self._tell_changed()


def _add(counter: Counter[IPv4Address], key: IPv4Address, count: int) -> None:
    if left := counter[key] + count:
        counter[key] = left
    else:
        del counter[key]


def _claims_external(mapping: Mapping) -> bool:
    return not mapping.request.any_port or mapping.grant is not None


def _keys(mapping: Mapping) -> tuple[Protocol, int | None, _Internal, _AnyPort | None]:
    """What it is found by."""
    request = mapping.request
    any_port = _any_port(request) if request.any_port else None
    return request.protocol, mapping.external_port if _claims_external(mapping) else None, _internal(mapping), any_port


def _shown_external(mapping: Mapping) -> IPv4Address | None:
    """Where a listed mapping comes out, as a carrier granted it."""
    return mapping.grant.external.address if mapping.grant and mapping.at_carrier else None


def _any_port(request: MappingRequest) -> _AnyPort:
    return request.protocol, request.client, request.remote_host


def _shown(mapping: Mapping) -> tuple[object, ...] | None:
    others = (each.request for each in mapping.others)
    return (mapping.external_port, mapping.request, *others) if mapping.visible else None


def _wan_port_candidates(request: MappingRequest) -> Iterator[int]:
    """The wanted port, the client's own port, then ports that depend on nothing but the request.

    The same request finds the same port after any crash, and with it the nonce that owns it upstream.
    """
    if request.external_port:
        yield request.external_port
    yield request.client.port
    seed = f"{request.client.address} {int(request.protocol)} {request.client.port} {request.external_port}"
    for attempt in range(HASHED_TRIES):
        digest = hashlib.sha256(f"{seed} {attempt}".encode()).digest()
        yield WAN_PORTS[int.from_bytes(digest[:4], "big") % len(WAN_PORTS)]
