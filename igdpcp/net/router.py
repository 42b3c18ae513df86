# SPDX-License-Identifier: Apache-2.0
"""This router as the configuration and the kernel together describe it: its WAN, its LANs, its own ports."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from igdpcp.config import LanConfig
from igdpcp.model import Protocol
from igdpcp.net.links import LinkSnapshot
from igdpcp.net.sockets import port_in_use


@dataclass(frozen=True, slots=True)
class Lan:
    """A LAN that is served: its section's name, its device, and the router's address there."""

    name: str
    device: str
    interface: IPv4Interface

    @property
    def address(self) -> IPv4Address:
        return self.interface.ip


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
        self.wan = Wan(wan_device, None, None)
        self.lans: tuple[Lan, ...] = ()

    def update(self, snapshot: LinkSnapshot) -> None:
        """Take in what the kernel has now."""
        lan_devices = {lan.device for lan in self._lan_configs}
        self.lans = tuple(
            Lan(lan.name, lan.device, interface)
            for lan in self._lan_configs
            for device, interface in snapshot.addresses
            if device == lan.device
        )
        routes = [
            route
            for route in snapshot.default_routes
            if route.device not in lan_devices and self._wan_device in ("", route.device)
        ]
        device = self._wan_device or (routes[0].device if routes else "")
        gateway = routes[0].gateway if routes else None
        addresses = [interface for name, interface in snapshot.addresses if name == device]
        addresses.sort(key=lambda interface: gateway is None or gateway not in interface.network)
        self.wan = Wan(device, addresses[0].ip if addresses else None, gateway)

    @property
    def wan_device(self) -> str:
        return self.wan.device

    @property
    def wan_address(self) -> IPv4Address | None:
        return self.wan.address

    def on_lan(self, address: IPv4Address) -> bool:
        return any(self._is_host(lan, address) for lan in self.lans)

    def is_lan_address(self, address: IPv4Address) -> bool:
        """Whether the address lies in a LAN that is served, the router's own there included."""
        return any(address in lan.interface.network for lan in self.lans)

    def on_lan_device(self, address: IPv4Address, device: str) -> bool:
        """Whether the address belongs to a host of the LAN behind this device."""
        return any(lan.device == device and self._is_host(lan, address) for lan in self.lans)

    def port_in_use(self, protocol: Protocol, port: int) -> bool:
        return self.wan.address is not None and port_in_use(protocol, self.wan.address, port)

    @staticmethod
    def _is_host(lan: Lan, address: IPv4Address) -> bool:
        network = lan.interface.network
        return (
            address in network
            and address != lan.interface.ip
            and address not in (network.network_address, network.broadcast_address)
        )
