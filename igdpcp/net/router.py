# SPDX-License-Identifier: Apache-2.0
"""This router as the configuration and the kernel together describe it: its WAN and its LANs."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface

from igdpcp.config import LanConfig
from igdpcp.model import IPAddress
from igdpcp.net.links import IPInterface, LinkSnapshot
from igdpcp.values import dataclass

KNOWN_LIMIT = 256  # addresses of which it is remembered whether they are on a LAN


@dataclass(frozen=True, slots=True)
class Lan:
    """One address of the router on a LAN that is served: the section's name, the device, and the device's index.

    A device that was removed and made again has another index, and nothing of what was opened on it is left.
    """

    name: str
    device: str
    interface: IPInterface
    index: int = 0

    @property
    def address(self) -> IPAddress:
        return self.interface.ip

    @property
    def is_ipv6(self) -> bool:
        return self.interface.version == 6

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 address that has a meaning on its link only."""
        return _is_link_local(self.address)


@dataclass(frozen=True, slots=True)
class Wan:
    """The way to the carrier; address and router are None while there is none."""

    device: str
    address: IPv4Address | None
    default_router: IPv4Address | None


class RouterView:
    """Kept true by ``update``; everything else only looks. ``wan_device`` empty: the default route's device."""

    def __init__(self, lans: tuple[LanConfig, ...], wan_device: str) -> None:
        self._lan_configs = lans
        self._wan_device = wan_device
        self._own: frozenset[tuple[str, IPAddress]] = frozenset()
        self._fading: tuple[Lan, ...] = ()  # their addresses are not to be named any more, but still lead to hosts
        self._known: dict[tuple[IPAddress, str], bool] = {}  # asked for with every connection and every datagram
        self.wan6_devices: frozenset[str] = frozenset()
        self.wan = Wan(wan_device, None, None)
        self.lans: tuple[Lan, ...] = ()

    def update(self, snapshot: LinkSnapshot) -> None:
        """Take in what the kernel has now."""
        self._known.clear()
        lan_devices = {lan.device for lan in self._lan_configs}
        ours = (*snapshot.addresses, *snapshot.unnamed)
        self._own = frozenset((_link(device, interface.ip), interface.ip) for device, interface in ours)
        self.lans = self._lans_of(snapshot.addresses, snapshot.devices)
        self._fading = self._lans_of(snapshot.unnamed, snapshot.devices)
        self.wan6_devices = frozenset(route.device for route in snapshot.default_routes6) - lan_devices
        routes = [
            route
            for route in snapshot.default_routes
            if route.device not in lan_devices and self._wan_device in ("", route.device)
        ]
        device = self._wan_device or (routes[0].device if routes else "")
        gateway = next((route.gateway for route in routes if isinstance(route.gateway, IPv4Address)), None)
        addresses = [
            interface
            for name, interface in snapshot.addresses
            if name == device and isinstance(interface, IPv4Interface)
        ]
        addresses.sort(key=lambda interface: gateway is None or gateway not in interface.network)
        self.wan = Wan(device, addresses[0].ip if addresses else None, gateway)

    def _lans_of(self, addresses: tuple[tuple[str, IPInterface], ...], indexes: Mapping[str, int]) -> tuple[Lan, ...]:
        return tuple(
            Lan(lan.name, lan.device, interface, indexes.get(device, 0))
            for lan in self._lan_configs
            for device, interface in addresses
            if device == lan.device
        )

    @property
    def wan_device(self) -> str:
        return self.wan.device

    @property
    def wan_address(self) -> IPv4Address | None:
        return self.wan.address

    def on_lan(self, address: IPAddress) -> bool:
        """Whether it is the address of a host of a LAN that is served; a link-local one does not say of which."""
        return any(self.in_lan(address, lan.name) for lan in self._lan_configs)

    def in_lan(self, address: IPAddress, name: str) -> bool:
        """As ``on_lan``, of the LAN of this name only."""
        devices = (lan.device for lan in self._lan_configs if lan.name == name)
        return not _is_link_local(address) and any(self.on_lan_device(address, device) for device in devices)

    def is_lan_address(self, address: IPAddress) -> bool:
        """Whether the address lies in a LAN that is served, the router's own there included; link-local ones do not."""
        return any(address in lan.interface.network for lan in self.lans if not lan.is_link_local)

    def on_lan_device(self, address: IPAddress, device: str) -> bool:
        """Whether the address belongs to a host of the LAN behind this device; never the router's own addresses."""
        known = self._known.get((address, device))
        if known is None:
            if len(self._known) >= KNOWN_LIMIT:
                self._known.clear()
            known = self._known[address, device] = self._is_behind(address, device)
        return known

    def _is_behind(self, address: IPAddress, device: str) -> bool:
        if (_link(device, address), address) in self._own:
            return False
        return any(lan.device == device and _is_host(lan, address) for lan in (*self.lans, *self._fading))


def _is_link_local(address: IPAddress) -> bool:
    return address.version == 6 and address.is_link_local


def _link(device: str, address: IPAddress) -> str:
    """The device where an address has its meaning, where that is not everywhere."""
    return device if _is_link_local(address) else ""


def _is_host(lan: Lan, address: IPAddress) -> bool:
    network = lan.interface.network
    if address.version != network.version:
        return False
    if lan.is_link_local:
        return address.is_link_local
    return address in network and address not in (network.network_address, network.broadcast_address)
