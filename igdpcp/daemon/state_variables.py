# SPDX-License-Identifier: Apache-2.0
"""The state variables of all services as they are at this moment: one source for actions, queries and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from igdpcp.errors import UpnpFault
from igdpcp.iwf import translate
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.pinholes import Pinholes
from igdpcp.model import IPAddress
from igdpcp.net import counters
from igdpcp.upnp.actions import DEVICE_TYPES, UI4_MAX, Level, Service, Value
from igdpcp.upnp.description import DeviceIdentity
from igdpcp.upnp.services import WAN_IP_CONNECTION
from igdpcp.upnp.soap import INVALID_VAR

_TOTALS = {
    "TotalBytesSent": "tx_bytes",
    "TotalBytesReceived": "rx_bytes",
    "TotalPacketsSent": "tx_packets",
    "TotalPacketsReceived": "rx_packets",
}
_MAXIMUM_ACTIVE_CONNECTIONS = 1  # there is one WANConnectionDevice


class StateVariables:
    """Looks at every part and changes none; no name means two things in two services."""

    def __init__(
        self,
        *,
        identity: DeviceIdentity,
        interworking: Interworking,
        upstream: Fallback,
        router: Router,
        pinholes: Pinholes,
    ) -> None:
        self._identity = identity
        self._interworking = interworking
        self._upstream = upstream
        self._router = router
        self._now = asyncio.get_running_loop().time
        self._readers: dict[str, Callable[[int], Value]] = {
            # WANIPConnection
            "ConnectionType": lambda _: translate.CONNECTION_TYPE,
            "PossibleConnectionTypes": lambda _: translate.CONNECTION_TYPE,
            "ConnectionStatus": lambda _: "Connected" if interworking.outside.connected() else "Disconnected",
            "LastConnectionError": lambda _: "ERROR_NONE" if interworking.outside.connected() else "ERROR_UNKNOWN",
            "Uptime": self._uptime,
            "RSIPAvailable": lambda _: translate.RSIP_AVAILABLE,
            "NATEnabled": lambda _: translate.NAT_ENABLED,
            "ExternalIPAddress": lambda _: self._external_address(None),
            "PortMappingNumberOfEntries": lambda _: interworking.number_of_entries,
            "PortMappingEnabled": lambda _: translate.PORT_MAPPING_ENABLED,
            "SystemUpdateID": lambda _: interworking.system_update_id,
            # WANCommonInterfaceConfig
            "WANAccessType": lambda _: "Ethernet",
            "WANAccessProvider": lambda _: "",
            "Layer1UpstreamMaxBitRate": self._link_rate,
            "Layer1DownstreamMaxBitRate": self._link_rate,
            "PhysicalLinkStatus": lambda _: "Up" if router.wan_address else "Down",
            **{name: self._total(counter) for name, counter in _TOTALS.items()},
            "EnabledForInternet": lambda _: True,
            "MaximumActiveConnections": lambda _: _MAXIMUM_ACTIVE_CONNECTIONS,
            "NumberOfActiveConnections": lambda _: int(interworking.outside.connected()),
            "ActiveConnectionDeviceContainer": self._connection_device,
            "ActiveConnectionServiceID": lambda _: WAN_IP_CONNECTION.id,
            # Layer3Forwarding
            "DefaultConnectionService": lambda tree: f"{self._connection_device(tree)},{WAN_IP_CONNECTION.id}",
            # WANIPv6FirewallControl
            "FirewallEnabled": lambda _: pinholes.firewall_enabled,
            "InboundPinholeAllowed": lambda _: pinholes.inbound_allowed,
        }

    def read(self, name: str, tree: int, asker: IPAddress | None = None) -> Value:
        """The value of a variable that has one, as the device tree of that version shows it; raises KeyError.

        Each ``asker`` has an ExternalIPAddress of its own.
        """
        return self._external_address(asker) if name == "ExternalIPAddress" else self._readers[name](tree)

    def query(self, service: Service, name: str, tree: int, asker: IPAddress | None = None) -> Value:
        """The answer to QueryStateVariable; a variable without a value of its own shows its default.

        Raises UpnpFault 404 for a name that is no state variable of the service in that tree.
        """
        try:
            variable = service.variable(name, service.version_in(tree))
        except KeyError:
            raise UpnpFault(INVALID_VAR, "no such state variable") from None
        if variable.is_argument_type:
            raise UpnpFault(INVALID_VAR, "the type of an argument has no value")
        return self.read(name, tree, asker) if name in self._readers else variable.idle_value

    def evented(self, service: Service, tree: int, asker: IPAddress) -> dict[str, Value]:
        """The evented variables of a service, as ``asker`` is shown them."""
        names = [variable.name for variable in service.evented(service.version_in(tree))]
        return {name: self.read(name, tree, asker) for name in names}

    def _external_address(self, asker: IPAddress | None) -> str:
        return str(self._interworking.outside.address(asker)[0] or "")

    def _uptime(self, _: int) -> int:
        since = self._upstream.up_since
        return 0 if since is None else int(self._now() - since)

    def _link_rate(self, _: int) -> int:
        return min(counters.bits_per_second(self._router.wan_device), UI4_MAX)

    def _total(self, counter: str) -> Callable[[int], int]:
        return lambda _: counters.total(self._router.wan_device, counter) % (UI4_MAX + 1)

    def _connection_device(self, tree: int) -> str:
        level = Level.CONNECTION_DEVICE
        return f"{self._identity.udn(level, tree)}:{DEVICE_TYPES[level]}:{tree}"
