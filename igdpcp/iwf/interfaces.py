# SPDX-License-Identifier: Apache-2.0
"""What the interworking function is handed: its upstream, its ruleset and what it must know of the router.

An upstream answers by events, the first answer as any later one; ``lifecycle.py`` is their only consumer.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Protocol as Interface

from igdpcp.model import Activation, Grant, IPAddress, Mode, UpstreamRequest
from igdpcp.openings import AnyOpening, Discrepancy, Flows, Surroundings
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class Granted:
    """The mapping ``id`` has a grant: its first, a renewed one, or one with another external endpoint.

    ``remote_hosts``: for whom it was asked, empty: for everybody.
    """

    id: str
    grant: Grant
    remote_hosts: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The upstream refused ``id`` with PCP result ``result``; the same request would fail for ``lifetime`` seconds.

    A grant made earlier lives on until a Lost event.
    """

    id: str
    result: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The grant of ``id`` has ended and was not renewed; the upstream keeps trying while it is wanted."""

    id: str


@dataclass(frozen=True, slots=True)
class Released:
    """The upstream answered the deletion of ``id``: PCP result ``result`` (0: gone; NETWORK_FAILURE: untold so far)."""

    id: str
    result: int


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The upstream's activation state is now ``state``."""

    state: Activation


@dataclass(frozen=True, slots=True)
class AddressChanged:
    """The upstream's external address is now ``address`` (None: not known)."""

    address: IPv4Address | None


@dataclass(frozen=True, slots=True)
class PortSeen:
    """The upstream was given this external port for something that is not a mapping of the hall."""

    port: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The server has lost its state (RFC 6887 section 8.5): what it granted says nothing of what it grants now."""


UpstreamEvent = Granted | Refused | Lost | Released | StateChanged | AddressChanged | PortSeen | Reset


Emit = Callable[[UpstreamEvent], None]


class Upstream(Interface):
    """Grants external ports. Calls return at once; results are emitted as events in the order they happen."""

    @property
    def name(self) -> str:
        """What grants are labelled with."""

    @property
    def state(self) -> Activation:
        """What is known of the server."""

    @property
    def external_address(self) -> IPv4Address | None:
        """The external address that the upstream gives, None while it is not known."""

    @property
    def up_since(self) -> float | None:
        """Loop time of the first contact in this WAN session, None before it."""

    @property
    def spare(self) -> int:
        """How many slots at its server it holds for itself, and gives up where a mapping needs them."""

    def map(self, request: UpstreamRequest, *, urgent: bool = True) -> None:
        """Want this mapping until ``unmap``; the same id again changes what is wanted.

        ``urgent``: somebody waits; else it takes its turn, at a pace that the server can bear.
        """

    def unmap(self, id: str, *, urgent: bool = True) -> None:
        """No longer want it: give it back. Answered by Released, also when nothing was granted."""

    def give_back(self, request: UpstreamRequest) -> None:
        """Delete, in its turn, what an earlier process may have been granted. Answered by Released."""

    def announce(self) -> None:
        """Ask now whether the server is there."""


class Fallback(Upstream, Interface):
    """An upstream that can answer from the router alone when the carrier does not (RFC 6970 section 5.1)."""

    @property
    def mode(self) -> Mode:
        """How mappings made now are built."""

    @property
    def may_fall_back(self) -> bool:
        """Whether the router alone answers while the carrier does not."""

    async def learn_address(self) -> None:
        """Ask for the external address if it is not known; returns when it is, or when that cannot be told."""

    def stands(self, id: str, grant: Grant) -> bool:
        """Whether this grant of ``id`` is the answer to what is asked now.

        False: the router has another address since, or none, another server is asked, or the server may have lost it.
        A server that is only silent changes nothing: what it granted is open until that ends.
        """

    def overdue(self, id: str) -> bool:
        """The request ``id`` was not answered in time; True: it is granted locally now, False: it stays unanswered."""


class Ruleset(Interface):
    """The router's netfilter rules for mappings and pinholes. Each call returns when the kernel has the change.

    Raises RulesetError: nothing of that change is in force.
    """

    async def put(self, opening: AnyOpening) -> None:
        """Make the kernel hold the rules of this mapping or pinhole, in place of earlier ones of the same id."""

    async def remove(self, id: str) -> None:
        """Take the rules of this id away; nothing happens when there are none."""

    async def pinhole_packets(self, id: str) -> int:
        """How many packets this pinhole has let in, first ones of a connection only; 0 when there is none."""

    async def sync(self, openings: list[AnyOpening]) -> None:
        """Make the kernel hold exactly these, whatever an earlier process left."""

    async def intact(self) -> bool:
        """Whether the kernel still has what was put there, as far as a cheap look can tell."""

    async def audit(self) -> Discrepancy:
        """How all that the kernel has differs from all that was put there; changes wait for it."""

    async def surroundings(self, surroundings: Surroundings) -> None:
        """Apply to these devices and PCP servers from now on."""


class FlowTable(Interface):
    """The kernel's connection tracking."""

    async def cut(self, flows: Flows) -> None:
        """Returns when they are forgotten, or when they cannot be: never raises."""


class Router(Interface):
    """What the interworking function must know of the router it runs on."""

    @property
    def wan_device(self) -> str:
        """Name of the WAN device, empty while there is none."""

    @property
    def wan_address(self) -> IPv4Address | None:
        """IPv4 address of the WAN device."""

    def on_lan(self, address: IPAddress) -> bool:
        """Whether the address belongs to a host of a LAN that is served (not the router itself)."""

    def in_lan(self, address: IPAddress, name: str) -> bool:
        """As ``on_lan``, of the LAN of this name only."""
