# SPDX-License-Identifier: Apache-2.0
"""What the ruleset must hold and where it applies, said without any back-end."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from igdpcp.model import Endpoint, IPAddress, Mode, Protocol
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class Opening:
    """What the ruleset must hold for one mapping, said without any back-end.

    Cascaded and local: packets for ``wan_port`` on ``wan_device`` are translated to ``client``, the client's own
    packets leave with ``wan_port`` as source port, and LAN hosts reach ``wan_address``:``wan_port`` and ``external``
    by a short-cut. Routed: packets for ``client`` that arrive on ``wan_device`` are forwarded unchanged; ``external``
    is short-cut. ``shown_port``, where it is not 0, is the port that control points take for the external one: LAN
    hosts reach that by a short-cut, too, unless it is really another's. ``remote_hosts`` empty: packets of everybody;
    ``hairpins`` False: not those of LAN hosts, for they are short-cut past whoever checks. It vanishes by itself at
    ``ends`` where the back-end can do that.
    """

    id: str
    serial: int
    mode: Mode
    protocol: Protocol
    wan_device: str
    wan_address: IPv4Address
    wan_port: int
    client: Endpoint
    external: Endpoint
    remote_hosts: tuple[IPv4Address, ...]
    ends: float
    shown_port: int = 0
    hairpins: bool = True


@dataclass(frozen=True, slots=True)
class PinholeOpening:
    """What the ruleset must hold for one pinhole, until it ``ends``."""

    id: str
    serial: int
    protocol: Protocol
    client: IPv6Address
    client_port: int
    remote_host: IPv6Address | None
    remote_port: int
    ends: float


AnyOpening = Opening | PinholeOpening


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """How the kernel's rules differ from what they should be.

    ``missing``: those that it lacks, or that lead elsewhere or end too soon. ``surplus``: those that nobody asked for.
    """

    missing: int = 0
    surplus: int = 0


@dataclass(frozen=True, slots=True)
class Flows:
    """Established flows that lead to a port of a LAN host: those sent to one of ``destinations``.

    A destination that is the host itself stands for untranslated packets, which then came from outside of the LANs.
    They may be from ``remote_host`` and ``remote_port`` only (None, 0: any), and not from ``spared``. ``outgoing``:
    also those that the host began from that port, and that left from a destination.
    """

    protocol: Protocol
    host: IPAddress
    port: int
    destinations: frozenset[tuple[IPAddress, int]]
    remote_host: IPAddress | None = None
    remote_port: int = 0
    outgoing: bool = False
    spared: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class PcpPeer:
    """A PCP server that may send to our socket unasked: its address, and our UDP port."""

    server: IPAddress
    port: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where the ruleset applies: device names, and the PCP packets that the router must accept on the WAN devices."""

    wan_devices: frozenset[str]
    lan_devices: frozenset[str]
    pcp_peers: frozenset[PcpPeer]
    wan6_devices: frozenset[str] = frozenset()  # through which IPv6 packets of the internet come
    blocks_lan_pcp: bool = False  # hosts behind the router may not speak to PCP servers on the WAN

    @property
    def shut_devices(self) -> frozenset[str]:
        """The devices by which nothing that is forwarded may go to a PCP server."""
        return self.wan_devices | self.wan6_devices if self.blocks_lan_pcp else frozenset()
