# SPDX-License-Identifier: Apache-2.0
"""What goes into and comes out of a PCP client besides datagrams: wanted mappings and events."""

from __future__ import annotations

import enum
from ipaddress import IPv4Address

from igdpcp.model import IPAddress, Protocol
from igdpcp.values import dataclass


class ServerState(enum.StrEnum):
    """What is known of the server. PROBING: no answer yet, at this address; LOST: it stopped, or cannot be used."""

    PROBING = "probing"
    ACTIVE = "active"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class WantedMapping:
    """A mapping that the client creates, renews and recreates until it is dropped.

    ``external_port`` 0 and ``external_address`` None: no preference. ``exact``: that port or none (PREFER_FAILURE,
    RFC 6887 section 13.2). ``until``: when the lease ends, None for as long as possible. ``remote_hosts``: who may
    come in (FILTER, section 13.3), empty for everybody. ``nonce`` empty: derived; one given here was used with the
    server before, so a drop tells the server even when nothing was sent since. ``new_nonce``: used instead of a derived
    one where the server holds nothing.
    """

    key: str
    protocol: Protocol
    internal_address: IPAddress
    internal_port: int
    external_port: int
    exact: bool
    until: float | None
    external_address: IPAddress | None = None
    remote_hosts: tuple[IPv4Address, ...] = ()
    description: str = ""
    nonce: bytes = b""
    new_nonce: bytes = b""


@dataclass(frozen=True, slots=True)
class MappingGranted:
    """The server granted ``key``: first, renewed, changed, or by a Mapping Update (RFC 6887 section 14.2).

    ``lifetime`` in seconds, at most a day: a longer one is renewed as if it were a day (section 15). ``remote_hosts``:
    for whom it was asked, of which the server need not know.
    """

    key: str
    external_address: IPAddress
    external_port: int
    lifetime: int
    ends: float
    nonce: bytes
    remote_hosts: tuple[IPv4Address, ...] = ()


@dataclass(frozen=True, slots=True)
class MappingRefused:
    """The server refused ``key`` with ``result``; the same request is repeated after ``lifetime`` seconds.

    An earlier grant lives on until MappingLost. Also sent without asking the server while it is known to refuse.
    """

    key: str
    result: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class MappingLost:
    """The grant of ``key`` is no more; it is created anew as long as it is wanted."""

    key: str


@dataclass(frozen=True, slots=True)
class MappingReleased:
    """The end of a drop. ``result`` 0: gone; NETWORK_FAILURE: the server stayed silent; else its refusal.

    Not sent for a key that was wanted again in the meantime.
    """

    key: str
    result: int


@dataclass(frozen=True, slots=True)
class ServerStateChanged:
    """The server's state, or the reason for it, changed; ``reason`` is for people."""

    state: ServerState
    reason: str


@dataclass(frozen=True, slots=True)
class StateLossDetected:
    """The server's epoch says that it lost its mappings; all are recreated (RFC 6887 section 14)."""

    epoch: int


Event = MappingGranted | MappingRefused | MappingLost | MappingReleased | ServerStateChanged | StateLossDetected
