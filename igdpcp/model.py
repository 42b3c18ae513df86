# SPDX-License-Identifier: Apache-2.0
"""Frozen value types that every part of the program shares.

Times called ``ends`` or ``until`` are seconds of the event loop's monotonic clock; durations are whole seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from igdpcp.values import dataclass

IPAddress = IPv4Address | IPv6Address

MOVED_PORTS = range(49152, 65536)  # other hosts' packets are moved here from mapped WAN ports; none is handed out
PCP_SERVER_PORT = 5351  # RFC 6887 section 19.1, RFC 6886 section 3.1
PCP_CLIENT_PORT = 5350  # RFC 6887 section 19.1: announcements
LEASE_INFINITE = 0  # IGD:1, PortMappingLeaseDuration 0: until deleted
LEASE_MAX_IGD2 = 604800  # WANIPConnection:2, 2.3.16: one week, also the meaning of 0 there
PINHOLE_LEASES = range(1, 86401)  # WANIPv6FirewallControl:1, A_ARG_TYPE_LeaseTime
REMOTE_HOSTS_MAX = 35  # of one mapping: with every other option a PCP request still has less than 1100 octets
UNIQUE_IDS = range(1, 65536)  # WANIPv6FirewallControl:1, A_ARG_TYPE_UniqueID: a ui2


class Protocol(enum.IntEnum):
    """Transport protocol by its IANA number."""

    TCP = 6
    UDP = 17


class Mode(enum.StrEnum):
    """How a mapping's path is built (RFC 6970 sections 5.4 and 5.5; ``local``: interworking not invoked)."""

    CASCADED = "cascaded"
    ROUTED = "routed"
    LOCAL = "local"


class Owner(enum.StrEnum):
    """Through which door a mapping was asked for.

    QUERY: nobody did, but whether its port can be had (a shadow). STATIC: it stands in the configuration.
    """

    UPNP1 = "upnp1"
    UPNP2 = "upnp2"
    PCP = "pcp"
    NATPMP = "natpmp"
    OPERATOR = "operator"
    QUERY = "query"
    STATIC = "static"

    @property
    def is_operators(self) -> bool:
        """Whether it is the operator's will, by hand or by the configuration, and not a LAN host's."""
        return self in (Owner.OPERATOR, Owner.STATIC)

    @property
    def maps_tuple(self) -> bool:
        """Whether a host asked in PCP or NAT-PMP, where a mapping is known by its internal tuple."""
        return self in (Owner.PCP, Owner.NATPMP)


class MappingState(enum.StrEnum):
    """Where a mapping stands; only ``ACTIVE`` and ``ENDING`` ones are listed to control points.

    PLANNED: asked upstream, no rule yet. ACTIVE: granted and in the ruleset. HIDDEN: a grant that no control point was
    told of, kept for who asks next: it came after a 501, or a query made it. RETRYING: an infinite lease whose grant
    was lost. ENDING: its deletion is on the way upstream.
    """

    PLANNED = "planned"
    ACTIVE = "active"
    HIDDEN = "hidden"
    RETRYING = "retrying"
    ENDING = "ending"


class Activation(enum.StrEnum):
    """What is known of the upstream server (states of the interworking function)."""

    NO_WAN = "no_wan"
    NO_SERVER = "no_server"
    PROBING = "probing"
    ACTIVE = "active"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An IPv4 address and a port."""

    address: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks: the LAN address (None: the operator), the door, and the User-Agent."""

    address: IPAddress | None
    owner: Owner
    agent: str = ""

    def __str__(self) -> str:
        return str(self.address) if self.address else self.owner.value


@dataclass(frozen=True, slots=True)
class MappingRequest:
    """What a control point asks for: AddPortMapping, or AddAnyPortMapping when ``any_port`` is set.

    So does a host in PCP or NAT-PMP for its own address, in PCP with a ``nonce``. ``external_port`` 0 (only with
    ``any_port``) means no preference; ``lease`` is in seconds, 0 = infinite.
    """

    requester: Requester
    protocol: Protocol
    external_port: int
    client: Endpoint
    remote_host: IPv4Address | None = None
    lease: int = LEASE_INFINITE
    description: str = ""
    any_port: bool = False
    nonce: bytes = b""


@dataclass(frozen=True, slots=True)
class Grant:
    """An upstream's answer: the external endpoint, for ``lifetime`` seconds, until loop time ``ends``.

    ``nonce`` is what owns it at ``server`` (what is stored of one), for the mapping's ``wan_port`` at ``internal``.
    """

    upstream: str
    internal: IPv4Address
    external: Endpoint
    lifetime: int
    ends: float
    nonce: bytes = b""
    server: str = ""

    def leads_as(self, other: Grant) -> bool:
        """Whether the other one is the same in everything but its time."""
        return replace(other, lifetime=self.lifetime, ends=self.ends) == self


@dataclass(frozen=True, slots=True)
class Entry:
    """What else a mapping was asked for: the same path, with a lease of its own."""

    request: MappingRequest
    lease_ends: float | None


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping of the table: what was asked for, and what it got.

    ``external_port`` is the port that control points are shown; with ``port_policy alias`` that of ``grant`` may be
    another one, which is where the internet comes in. ``wan_port`` is the port on the router's WAN address
    (cascaded and local) or the client's own port (routed): the internal port that the upstream is asked for.
    ``lease_ends`` None: infinite. ``serial`` orders mappings by age. ``request`` is the oldest of those that are to be
    met; ``others`` lead to the same client port, each for another remote host, and come behind it by age. ``sharer`` is
    what the client itself asked for in PCP or NAT-PMP while control points are shown another entry for every remote
    host.
    """

    id: str
    serial: int
    request: MappingRequest
    mode: Mode
    external_port: int
    wan_port: int
    state: MappingState
    lease_ends: float | None
    grant: Grant | None = None
    others: tuple[Entry, ...] = ()
    sharer: Entry | None = None

    @property
    def entries(self) -> tuple[Mapping, ...]:
        """What control points see of it, one for each remote host: the mapping as it were for that alone."""
        if not self.others:
            return (self,)
        first = replace(self, others=())
        return first, *(self._alone(each) for each in self.others)

    def entry(self, remote_host: IPv4Address | None) -> Mapping | None:
        """The one for this remote host."""
        return next((each for each in self.entries if each.request.remote_host == remote_host), None)

    def with_entry(self, new: Entry) -> Mapping:
        """With this in the place of its entry for the same remote host, or behind all.

        A host's own request in PCP or NAT-PMP and a control point's are met by one entry, which is the latter's.
        """
        shown, sharer = self.entry(new.request.remote_host), self.sharer
        if shown and shown.request.requester.owner.maps_tuple is not new.request.requester.owner.maps_tuple:
            if new.request.requester.owner.maps_tuple:
                return replace(self, sharer=new)
            sharer = Entry(shown.request, shown.lease_ends)
        if self.request.remote_host == new.request.remote_host:
            return replace(self, request=new.request, lease_ends=new.lease_ends, sharer=sharer)
        hosts = [each.request.remote_host for each in self.others]
        if new.request.remote_host not in hosts:
            return replace(self, others=(*self.others, new))
        at = hosts.index(new.request.remote_host)
        return replace(self, others=(*self.others[:at], new, *self.others[at + 1 :]), sharer=sharer)

    def keeping(self, wanted: Callable[[Mapping], bool]) -> Mapping | None:
        """With those of its entries only, the mapping itself when that is all; None: none is left.

        Who shares the entry for every remote host has it alone when the other one goes.
        """
        entries = self.entries
        kept = [Entry(each.request, each.lease_ends) for each in entries if wanted(each)]
        sharer = self.sharer if self.sharer and wanted(self._alone(self.sharer)) else None
        if len(kept) == len(entries) and sharer is self.sharer:
            return self
        if sharer and all(each.request.remote_host for each in kept):
            kept, sharer = [*kept, sharer], None
        if not kept:
            return None
        first, *others = kept
        return replace(self, request=first.request, lease_ends=first.lease_ends, others=tuple(others), sharer=sharer)

    def without(self, unwanted: Callable[[Mapping], bool]) -> Mapping | None:
        """As ``keeping``, for a control point: it deletes what it is shown, and who shares that does not go with it."""
        shares = self.sharer and self.sharer.request
        return self.keeping(lambda entry: entry.request is shares or not unwanted(entry))

    def is_of_another_nonce(self, nonce: bytes) -> bool:
        """Whether what was asked for in PCP is not for this nonce to change (RFC 6887 section 11.3).

        NAT-PMP has none: what was asked for in that is whose address it is, and what has a nonce is not for NAT-PMP.
        """
        return self.tuple_owner is not None and self.tuple_owner.request.nonce not in (b"", nonce)

    @property
    def tuple_owner(self) -> Entry | None:
        """What the client itself asked for in PCP or NAT-PMP, shared or not."""
        if self.sharer:
            return self.sharer
        entries = Entry(self.request, self.lease_ends), *self.others
        return next((each for each in entries if each.request.requester.owner.maps_tuple), None)

    @property
    def hosts(self) -> tuple[IPv4Address | None, ...]:
        """The remote host of each of its entries."""
        return self.request.remote_host, *(each.request.remote_host for each in self.others)

    @property
    def remote_hosts(self) -> tuple[IPv4Address, ...]:
        """Who may come in, empty: everybody."""
        return tuple(host for host in self.hosts if host) if None not in self.hosts else ()

    @property
    def needed_until(self) -> float | None:
        """When the last lease ends, None: never."""
        ends = self._lease_ends
        return None if None in ends else max(end for end in ends if end is not None)

    @property
    def first_end(self) -> float | None:
        """When the first lease ends, None: none does."""
        return min((end for end in self._lease_ends if end is not None), default=None)

    @property
    def exact(self) -> bool:
        """Whether somebody has asked for this very external port."""
        return not (self.request.any_port and all(each.request.any_port for each in self.others))

    @property
    def visible(self) -> bool:
        return self.state in (MappingState.ACTIVE, MappingState.ENDING)

    @property
    def at_carrier(self) -> bool:
        """Whether it is shown as a carrier has granted it."""
        return self.visible and self.grant is not None and self.grant.upstream != Mode.LOCAL

    @property
    def is_shadow(self) -> bool:
        """Whether only a query asked for it: it is PLANNED or HIDDEN, belongs to nobody and counts for nobody."""
        return self.request.requester.owner is Owner.QUERY

    @property
    def _lease_ends(self) -> tuple[float | None, ...]:
        ends = self.lease_ends, *(each.lease_ends for each in self.others)
        return (*ends, self.sharer.lease_ends) if self.sharer else ends

    def _alone(self, entry: Entry) -> Mapping:
        return replace(self, request=entry.request, lease_ends=entry.lease_ends, others=(), sharer=None)


@dataclass(frozen=True, slots=True)
class PinholeRequest:
    """What AddPinhole asks for (WANIPv6FirewallControl:1): let packets for ``client`` and its port in.

    They may come from ``remote_host`` (None: any) and from its ``remote_port`` (0: any). ``lease`` is in seconds.
    """

    requester: Requester
    protocol: Protocol
    client: IPv6Address
    client_port: int
    remote_host: IPv6Address | None
    remote_port: int
    lease: int


@dataclass(frozen=True, slots=True)
class Pinhole:
    """One opening of the router's own IPv6 firewall; ``id`` is the UniqueID that control points are told."""

    id: int
    request: PinholeRequest
    lease_ends: float

    @property
    def name(self) -> str:
        """Its id in ruleset and journal, where mappings are as well."""
        return f"pinhole-{self.id}"


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What an upstream is asked to grant; ``id`` is the mapping's.

    ``internal``: a port of the router's own address, or another host's endpoint. ``external_port`` 0: no preference.
    ``exact``: refuse rather than grant another port (PREFER_FAILURE, RFC 6887 section 13.2). ``aliased``: a carrier may
    grant another one all the same, since the exact one is only what control points are shown. ``until`` None: as long
    as possible. ``remote_hosts``: who may come in, empty: everybody. ``grant``: the last one; its nonce owns that.
    ``nonce``: what else to ask with, where a PCP host of the LAN has chosen one.
    """

    id: str
    protocol: Protocol
    internal: int | Endpoint
    external_port: int
    exact: bool
    until: float | None
    remote_hosts: tuple[IPv4Address, ...] = ()
    description: str = ""
    grant: Grant | None = None
    aliased: bool = False
    nonce: bytes = b""

    @property
    def internal_port(self) -> int:
        return self.internal if isinstance(self.internal, int) else self.internal.port
