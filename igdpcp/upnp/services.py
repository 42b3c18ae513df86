# SPDX-License-Identifier: Apache-2.0
"""The UPnP services of the gateway, declared once: SCPD documents, dispatch and argument checking read this."""

from __future__ import annotations

from igdpcp.model import LEASE_MAX_IGD2, PINHOLE_LEASES
from igdpcp.upnp.actions import (
    BOTH,
    UI2_MAX,
    V1,
    V2,
    Action,
    Argument,
    DataType,
    Level,
    Service,
    StateVariable,
)

_CONNECTION_TYPES = ("Unconfigured", "IP_Routed", "IP_Bridged")

_DISCONNECT_TIMES = ("AutoDisconnectTime", "IdleDisconnectTime", "WarnDisconnectDelay")

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

_PORT_RANGE = (
    Argument("NewStartPort", "ExternalPort"),
    Argument("NewEndPort", "ExternalPort"),
    _PROTOCOL,
    Argument("NewManage", "A_ARG_TYPE_Manage", default=False),
)

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
        Action("DeletePortMappingRange", inputs=_PORT_RANGE, versions=V2),
        Action("GetExternalIPAddress", outputs=(Argument("NewExternalIPAddress", "ExternalIPAddress"),)),
        Action(
            "GetListOfPortMappings",
            inputs=(*_PORT_RANGE, Argument("NewNumberOfPorts", "PortMappingNumberOfEntries", default=0)),
            outputs=(Argument("NewPortListing", "A_ARG_TYPE_PortListing"),),
            versions=V2,
        ),
        # miniupnpc and weupnp ask for it, though no standard has it
        Action(
            "GetPortMappingNumberOfEntries",
            outputs=(Argument("NewPortMappingNumberOfEntries", "PortMappingNumberOfEntries"),),
            listed=False,
        ),
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
        StateVariable("RemoteHost", DataType.STRING, spellings=(("*", ""), ("0.0.0.0", ""), ("255.255.255.255", ""))),
        StateVariable("ExternalPort", DataType.UI2),
        StateVariable("InternalPort", DataType.UI2, versions=V1),
        StateVariable("InternalPort", DataType.UI2, minimum=1, maximum=UI2_MAX, versions=V2),
        StateVariable("PortMappingProtocol", DataType.STRING, allowed=("TCP", "UDP")),
        StateVariable("InternalClient", DataType.STRING),
        StateVariable("PortMappingDescription", DataType.STRING, free_text=True),
        StateVariable("SystemUpdateID", DataType.UI4, evented=True, versions=V2),
        StateVariable("A_ARG_TYPE_Manage", DataType.BOOLEAN, versions=V2),
        StateVariable("A_ARG_TYPE_PortListing", DataType.STRING, versions=V2),
    ),
    not_offered=("RequestTermination", *(f"{verb}{time}" for verb in ("Get", "Set") for time in _DISCONNECT_TIMES)),
    faults=(
        (703, "InactiveConnectionStateRequired"),
        (704, "ConnectionSetupFailed"),
        (705, "ConnectionSetupInProgress"),
        (706, "ConnectionNotConfigured"),
        (707, "DisconnectInProgress"),
        (708, "InvalidLayer2Address"),
        (709, "InternetAccessDisabled"),
        (710, "InvalidConnectionType"),
        (711, "ConnectionAlreadyTerminated"),
        (713, "SpecifiedArrayIndexInvalid"),
        (714, "NoSuchEntryInArray"),
        (715, "WildCardNotPermittedInSrcIP"),
        (716, "WildCardNotPermittedInExtPort"),
        (718, "ConflictInMappingEntry"),
        (726, "RemoteHostOnlySupportsWildcard"),
        (728, "NoPortMapsAvailable"),
        (729, "ConflictWithOtherMechanisms"),
        (730, "PortMappingNotFound"),
        (731, "ReadOnly"),
        (732, "WildCardNotPermittedInIntPort"),
        (733, "InconsistentParameters"),
    ),
)

_TOTALS = ("TotalBytesSent", "TotalBytesReceived", "TotalPacketsSent", "TotalPacketsReceived")
_SHARING = ("EnabledForInternet", "WANAccessProvider", "MaximumActiveConnections")

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
        *(Action(f"Get{name}", outputs=(Argument(f"New{name}", name),)) for name in (*_TOTALS, *_SHARING)),
        Action(
            "GetActiveConnection",
            inputs=(Argument("NewActiveConnectionIndex", "NumberOfActiveConnections"),),
            outputs=(
                Argument("NewActiveConnDeviceContainer", "ActiveConnectionDeviceContainer"),
                Argument("NewActiveConnectionServiceID", "ActiveConnectionServiceID"),
            ),
        ),
    ),
    variables=(
        StateVariable("WANAccessType", DataType.STRING, allowed=("DSL", "POTS", "Cable", "Ethernet")),
        StateVariable("Layer1UpstreamMaxBitRate", DataType.UI4),
        StateVariable("Layer1DownstreamMaxBitRate", DataType.UI4),
        StateVariable("PhysicalLinkStatus", DataType.STRING, allowed=("Up", "Down"), evented=True),
        *(StateVariable(total, DataType.UI4) for total in _TOTALS),
        StateVariable("EnabledForInternet", DataType.BOOLEAN, evented=True),
        StateVariable("WANAccessProvider", DataType.STRING),
        StateVariable("MaximumActiveConnections", DataType.UI2, minimum=1, maximum=UI2_MAX),
        StateVariable("NumberOfActiveConnections", DataType.UI2),
        StateVariable("ActiveConnectionDeviceContainer", DataType.STRING),
        StateVariable("ActiveConnectionServiceID", DataType.STRING),
    ),
    not_offered=("SetEnabledForInternet",),
    faults=((713, "SpecifiedArrayIndexInvalid"),),
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
    faults=((720, "InvalidDeviceUUID"), (721, "InvalidServiceID"), (723, "InvalidConnServiceSelection")),
)

_ADDRESS = "A_ARG_TYPE_IPv6Address"
_PORT = "A_ARG_TYPE_Port"
_UNIQUE_ID = Argument("UniqueID", "A_ARG_TYPE_UniqueID")
_FLOW = (
    Argument("RemoteHost", _ADDRESS, default=""),
    Argument("RemotePort", _PORT, default=0),
    Argument("InternalClient", _ADDRESS),
    Argument("InternalPort", _PORT),
    Argument("Protocol", "A_ARG_TYPE_Protocol"),
)

# WANIPv6FirewallControl:1 section 2.4
WAN_IPV6_FIREWALL_CONTROL = Service(
    type="WANIPv6FirewallControl",
    id="urn:upnp-org:serviceId:WANIPv6Firewall1",
    versions=V1,
    level=Level.CONNECTION_DEVICE,
    scpd_path="/WANIP6FC.xml",
    control_path="/ctl/IP6FCtl",
    event_path="/evt/IP6FCtl",
    trees=V2,
    actions=(
        Action(
            "GetFirewallStatus",
            outputs=(
                Argument("FirewallEnabled", "FirewallEnabled"),
                Argument("InboundPinholeAllowed", "InboundPinholeAllowed"),
            ),
        ),
        Action(
            "GetOutboundPinholeTimeout",
            inputs=_FLOW,
            outputs=(Argument("OutboundPinholeTimeout", "A_ARG_TYPE_OutboundPinholeTimeout"),),
        ),
        Action("AddPinhole", inputs=(*_FLOW, Argument("LeaseTime", "A_ARG_TYPE_LeaseTime")), outputs=(_UNIQUE_ID,)),
        Action("UpdatePinhole", inputs=(_UNIQUE_ID, Argument("NewLeaseTime", "A_ARG_TYPE_LeaseTime"))),
        Action("DeletePinhole", inputs=(_UNIQUE_ID,)),
        Action(
            "GetPinholePackets",
            inputs=(_UNIQUE_ID,),
            outputs=(Argument("PinholePackets", "A_ARG_TYPE_PinholePackets"),),
        ),
        Action("CheckPinholeWorking", inputs=(_UNIQUE_ID,), outputs=(Argument("IsWorking", "A_ARG_TYPE_Boolean"),)),
    ),
    variables=(
        StateVariable("FirewallEnabled", DataType.BOOLEAN, evented=True),
        StateVariable("InboundPinholeAllowed", DataType.BOOLEAN, evented=True),
        StateVariable("A_ARG_TYPE_OutboundPinholeTimeout", DataType.UI4),
        StateVariable(_ADDRESS, DataType.STRING, spellings=(("*", ""), ("::", ""))),
        StateVariable(_PORT, DataType.UI2),
        # by number; Sunshine writes names
        StateVariable("A_ARG_TYPE_Protocol", DataType.UI2, spellings=(("tcp", "6"), ("udp", "17"))),
        StateVariable("A_ARG_TYPE_LeaseTime", DataType.UI4, minimum=PINHOLE_LEASES[0], maximum=PINHOLE_LEASES[-1]),
        StateVariable("A_ARG_TYPE_UniqueID", DataType.UI2),
        StateVariable("A_ARG_TYPE_PinholePackets", DataType.UI4),
        StateVariable("A_ARG_TYPE_Boolean", DataType.BOOLEAN),
    ),
    faults=(
        (701, "PinholeSpaceExhausted"),
        (702, "FirewallDisabled"),
        (703, "InboundPinholeNotAllowed"),
        (704, "NoSuchEntry"),
        (705, "ProtocolNotSupported"),
        (706, "InternalPortWildcardingNotAllowed"),
        (707, "ProtocolWildcardingNotAllowed"),
        (708, "WildCardNotPermittedInSrcIP"),
        (709, "NoTrafficReceived"),
    ),
)

# A device's services are shown in this order; control points take the first WANIPConnection they see.
SERVICES = (LAYER3_FORWARDING, WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION, WAN_IPV6_FIREWALL_CONTROL)

_BY_TYPE = {service.type: service for service in SERVICES}


def service_by_type(type: str) -> Service | None:
    """The service of that type (no URN, no version)."""
    return _BY_TYPE.get(type)


def services_in(tree: int) -> tuple[Service, ...]:
    """The services that the device tree of that version offers."""
    return tuple(service for service in SERVICES if tree in service.trees)
