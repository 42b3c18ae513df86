# SPDX-License-Identifier: Apache-2.0
"""The UPnP services of the gateway, declared once: SCPD documents, dispatch and argument checking read this."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from igdpcp.model import LEASE_MAX_IGD2

UI2_MAX = 0xFFFF  # UPnP Device Architecture 1.1, table 2-2
UI4_MAX = 0xFFFFFFFF

BOTH = (1, 2)
V1 = (1,)
V2 = (2,)

TREE_PREFIX = {1: "", 2: "/v2"}  # first part of every path of a version's device tree


class DataType(enum.StrEnum):
    """Data types of state variables, spelled as in an SCPD."""

    STRING = "string"
    UI2 = "ui2"
    UI4 = "ui4"
    BOOLEAN = "boolean"


class Level(enum.IntEnum):
    """Which device of the tree offers a service; also the index of that device's UDN."""

    ROOT = 0
    WAN_DEVICE = 1
    CONNECTION_DEVICE = 2


@dataclass(frozen=True, slots=True)
class StateVariable:
    """A row of a service's state table.

    ``allowed`` is checked on input; ``minimum`` and ``maximum`` are only published, as each has a fault code of its own
    that depends on policy (732, a lease cut to a week). ``wildcards`` are spellings that control points use for the
    empty value. ``free_text`` values come from people: they are kept as they are but for control characters.
    """

    name: str
    type: DataType
    allowed: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    default: str | None = None
    evented: bool = False
    versions: tuple[int, ...] = BOTH
    wildcards: tuple[str, ...] = ()
    free_text: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument and its related state variable; ``default`` None: a request without it is refused."""

    name: str
    variable: str
    default: str | int | bool | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """An action with its arguments in the standard's order, and the service versions that have it."""

    name: str
    inputs: tuple[Argument, ...] = ()
    outputs: tuple[Argument, ...] = ()
    versions: tuple[int, ...] = BOTH


@dataclass(frozen=True, slots=True)
class Service:
    """A service: ``type`` without URN and version; the paths are those of the version 1 tree."""

    type: str
    id: str
    versions: tuple[int, ...]
    level: Level
    scpd_path: str
    control_path: str
    event_path: str
    actions: tuple[Action, ...]
    variables: tuple[StateVariable, ...]

    def urn(self, version: int) -> str:
        """The service type as control points write it."""
        return f"{SERVICE_URN}{self.type}:{version}"

    def version_in(self, tree: int) -> int:
        """The version of this service in the device tree of version ``tree``."""
        return min(tree, max(self.versions))

    def action(self, name: str, version: int) -> Action | None:
        """The action of that name, None when that version of the service has none."""
        return next((a for a in self.actions if a.name == name and version in a.versions), None)

    def variable(self, name: str, version: int) -> StateVariable:
        """The state variable as that version of the service declares it; raises KeyError."""
        for variable in self.variables:
            if variable.name == name and version in variable.versions:
                return variable
        raise KeyError(name)


SERVICE_URN = "urn:schemas-upnp-org:service:"
DEVICE_URN = "urn:schemas-upnp-org:device:"
DEVICE_TYPES = {
    Level.ROOT: "InternetGatewayDevice",
    Level.WAN_DEVICE: "WANDevice",
    Level.CONNECTION_DEVICE: "WANConnectionDevice",
}

_CONNECTION_TYPES = ("Unconfigured", "IP_Routed", "IP_Bridged")

_REMOTE_HOST = Argument("NewRemoteHost", "RemoteHost", default="")
_EXTERNAL_PORT = Argument("NewExternalPort", "ExternalPort")
_PROTOCOL = Argument("NewProtocol", "PortMappingProtocol")
_KEY = (_REMOTE_HOST, _EXTERNAL_PORT, _PROTOCOL)
_VALUE = (
    Argument("NewInternalPort", "InternalPort"),
    Argument("NewInternalClient", "InternalClient"),
    Argument("NewEnabled", "PortMappingEnabled", default=True),
    Argument("NewPortMappingDescription", "PortMappingDescription", default=""),
    Argument("NewLeaseDuration", "PortMappingLeaseDuration", default=0),
)
_CONNECTION_TYPE = Argument("NewConnectionType", "ConnectionType")

# WANIPConnection:1 section 2.4, WANIPConnection:2 section 2.5; optional actions that could only fail are left out.
WAN_IP_CONNECTION = Service(
    type="WANIPConnection",
    id="urn:upnp-org:serviceId:WANIPConn1",
    versions=BOTH,
    level=Level.CONNECTION_DEVICE,
    scpd_path="/WANIPCn.xml",
    control_path="/ctl/IPConn",
    event_path="/evt/IPConn",
    actions=(
        Action("SetConnectionType", inputs=(_CONNECTION_TYPE,)),
        Action(
            "GetConnectionTypeInfo",
            outputs=(_CONNECTION_TYPE, Argument("NewPossibleConnectionTypes", "PossibleConnectionTypes")),
        ),
        Action("RequestConnection"),
        Action("ForceTermination"),
        Action(
            "GetStatusInfo",
            outputs=(
                Argument("NewConnectionStatus", "ConnectionStatus"),
                Argument("NewLastConnectionError", "LastConnectionError"),
                Argument("NewUptime", "Uptime"),
            ),
        ),
        Action(
            "GetNATRSIPStatus",
            outputs=(Argument("NewRSIPAvailable", "RSIPAvailable"), Argument("NewNATEnabled", "NATEnabled")),
        ),
        Action(
            "GetGenericPortMappingEntry",
            inputs=(Argument("NewPortMappingIndex", "PortMappingNumberOfEntries"),),
            outputs=_KEY + _VALUE,
        ),
        Action("GetSpecificPortMappingEntry", inputs=_KEY, outputs=_VALUE),
        Action("AddPortMapping", inputs=_KEY + _VALUE),
        Action(
            "AddAnyPortMapping",
            inputs=_KEY + _VALUE,
            outputs=(Argument("NewReservedPort", "ExternalPort"),),
            versions=V2,
        ),
        Action("DeletePortMapping", inputs=_KEY),
        Action("GetExternalIPAddress", outputs=(Argument("NewExternalIPAddress", "ExternalIPAddress"),)),
    ),
    variables=(
        StateVariable("ConnectionType", DataType.STRING, versions=V1),
        StateVariable("ConnectionType", DataType.STRING, allowed=_CONNECTION_TYPES, default="IP_Routed", versions=V2),
        StateVariable("PossibleConnectionTypes", DataType.STRING, allowed=_CONNECTION_TYPES, evented=True, versions=V1),
        StateVariable("PossibleConnectionTypes", DataType.STRING, evented=True, versions=V2),
        StateVariable(
            "ConnectionStatus",
            DataType.STRING,
            allowed=("Unconfigured", "Connecting", "Connected", "Disconnecting", "Disconnected"),
            default="Unconfigured",
            evented=True,
        ),
        StateVariable("Uptime", DataType.UI4),
        StateVariable(
            "LastConnectionError",
            DataType.STRING,
            allowed=(
                "ERROR_NONE",
                "ERROR_ISP_DISCONNECT",
                "ERROR_NO_CARRIER",
                "ERROR_IP_CONFIGURATION",
                "ERROR_UNKNOWN",
            ),
            default="ERROR_NONE",
        ),
        StateVariable("RSIPAvailable", DataType.BOOLEAN, default="0"),
        StateVariable("NATEnabled", DataType.BOOLEAN, default="1"),
        StateVariable("ExternalIPAddress", DataType.STRING, evented=True),
        StateVariable("PortMappingNumberOfEntries", DataType.UI2, evented=True),
        StateVariable("PortMappingEnabled", DataType.BOOLEAN),
        StateVariable("PortMappingLeaseDuration", DataType.UI4, versions=V1),
        StateVariable(
            "PortMappingLeaseDuration",
            DataType.UI4,
            minimum=0,
            maximum=LEASE_MAX_IGD2,
            default="3600",
            versions=V2,
        ),
        StateVariable("RemoteHost", DataType.STRING, wildcards=("*", "0.0.0.0", "255.255.255.255")),
        StateVariable("ExternalPort", DataType.UI2),
        StateVariable("InternalPort", DataType.UI2, versions=V1),
        StateVariable("InternalPort", DataType.UI2, minimum=1, maximum=UI2_MAX, versions=V2),
        StateVariable("PortMappingProtocol", DataType.STRING, allowed=("TCP", "UDP")),
        StateVariable("InternalClient", DataType.STRING),
        StateVariable("PortMappingDescription", DataType.STRING, free_text=True),
        StateVariable("SystemUpdateID", DataType.UI4, evented=True, versions=V2),
    ),
)

_TOTALS = ("TotalBytesSent", "TotalBytesReceived", "TotalPacketsSent", "TotalPacketsReceived")

# WANCommonInterfaceConfig:1 section 2.4; control points recognise a gateway by this service.
WAN_COMMON_INTERFACE_CONFIG = Service(
    type="WANCommonInterfaceConfig",
    id="urn:upnp-org:serviceId:WANCommonIFC1",
    versions=V1,
    level=Level.WAN_DEVICE,
    scpd_path="/WANCfg.xml",
    control_path="/ctl/CmnIfCfg",
    event_path="/evt/CmnIfCfg",
    actions=(
        Action(
            "GetCommonLinkProperties",
            outputs=(
                Argument("NewWANAccessType", "WANAccessType"),
                Argument("NewLayer1UpstreamMaxBitRate", "Layer1UpstreamMaxBitRate"),
                Argument("NewLayer1DownstreamMaxBitRate", "Layer1DownstreamMaxBitRate"),
                Argument("NewPhysicalLinkStatus", "PhysicalLinkStatus"),
            ),
        ),
        *(Action(f"Get{total}", outputs=(Argument(f"New{total}", total),)) for total in _TOTALS),
    ),
    variables=(
        StateVariable("WANAccessType", DataType.STRING, allowed=("DSL", "POTS", "Cable", "Ethernet")),
        StateVariable("Layer1UpstreamMaxBitRate", DataType.UI4),
        StateVariable("Layer1DownstreamMaxBitRate", DataType.UI4),
        StateVariable("PhysicalLinkStatus", DataType.STRING, allowed=("Up", "Down"), evented=True),
        *(StateVariable(total, DataType.UI4) for total in _TOTALS),
    ),
)

# Layer3Forwarding:1 section 2.4
LAYER3_FORWARDING = Service(
    type="Layer3Forwarding",
    id="urn:upnp-org:serviceId:L3Forwarding1",
    versions=V1,
    level=Level.ROOT,
    scpd_path="/L3F.xml",
    control_path="/ctl/L3F",
    event_path="/evt/L3F",
    actions=(
        Action(
            "SetDefaultConnectionService",
            inputs=(Argument("NewDefaultConnectionService", "DefaultConnectionService"),),
        ),
        Action(
            "GetDefaultConnectionService",
            outputs=(Argument("NewDefaultConnectionService", "DefaultConnectionService"),),
        ),
    ),
    variables=(StateVariable("DefaultConnectionService", DataType.STRING, evented=True),),
)

SERVICES = (LAYER3_FORWARDING, WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION)

_BY_TYPE = {service.type: service for service in SERVICES}


def service_by_type(type: str) -> Service | None:
    """The service of that type (no URN, no version)."""
    return _BY_TYPE.get(type)
