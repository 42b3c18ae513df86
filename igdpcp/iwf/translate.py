# SPDX-License-Identifier: Apache-2.0
"""Where both languages meet: what UPnP calls what PCP says, as tables in the order of RFC 6970 section 4.

``v1`` and ``v2`` are the versions of the service URN in the SOAP request.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from igdpcp.errors import Reason, Refusal, UpnpFault
from igdpcp.model import (
    LEASE_INFINITE,
    LEASE_MAX_IGD2,
    PINHOLE_LEASES,
    Endpoint,
    Mapping,
    MappingRequest,
    Owner,
    PinholeRequest,
    Protocol,
    Requester,
)
from igdpcp.pcp.message import ResultCode
from igdpcp.values import shared

Value = str | int | bool


class Codes(NamedTuple):
    """A UPnP error code per version of the service."""

    v1: int
    v2: int


ACTION_FAILED = Codes(501, 501)

# State variables (RFC 6970 section 4.1) that are constant here; the others come from the table and the upstream.
CONNECTION_TYPE = "IP_Routed"
RSIP_AVAILABLE = False
NAT_ENABLED = True  # also without NAT in the router: control points must not notice (draft-01 section 5.3)
PORT_MAPPING_ENABLED = True

# Methods (RFC 6970 section 4.2) that the carrier's side decides about, so that control points may not call them.
REFUSED_METHODS = {
    "SetConnectionType": Codes(501, 731),
    "RequestConnection": Codes(501, 606),
    "ForceTermination": Codes(501, 606),
}

# PCP result codes (RFC 6970 section 4.3); a code that is not here is ACTION_FAILED.
PCP_RESULTS = {
    ResultCode.NOT_AUTHORIZED: Codes(718, 606),
    ResultCode.NO_RESOURCES: Codes(501, 728),
    ResultCode.USER_EX_QUOTA: Codes(501, 728),
    ResultCode.CANNOT_PROVIDE_EXTERNAL: Codes(718, 718),
    **{code: Codes(718, 606) for code in range(14, 24)},  # RFC 7652: the carrier wants authentication
}

# Those that are short-lifetime errors by their nature (RFC 6887 section 7.4).
SHORT_ERRORS = {ResultCode.NETWORK_FAILURE, ResultCode.NO_RESOURCES, ResultCode.USER_EX_QUOTA}

# PCP result codes of the upstream that a PCP host of the LAN is told as they are; others are a NETWORK_FAILURE.
RELAYED_RESULTS = {
    ResultCode.NOT_AUTHORIZED,
    ResultCode.NETWORK_FAILURE,
    ResultCode.NO_RESOURCES,
    ResultCode.USER_EX_QUOTA,
    ResultCode.CANNOT_PROVIDE_EXTERNAL,
}

# What else keeps a PCP host of the LAN from its mapping (RFC 6887 section 7.4); what is not here is NO_RESOURCES.
PCP_CONDITIONS = {
    Reason.UNREACHABLE: ResultCode.NETWORK_FAILURE,
    Reason.CONFLICT: ResultCode.CANNOT_PROVIDE_EXTERNAL,
    Reason.PORT_IN_USE: ResultCode.CANNOT_PROVIDE_EXTERNAL,
    Reason.OPERATORS_ENTRY: ResultCode.CANNOT_PROVIDE_EXTERNAL,
    Reason.NOT_GIVEN: ResultCode.CANNOT_PROVIDE_EXTERNAL,
    Reason.FOREIGN_CLIENT: ResultCode.NOT_AUTHORIZED,
    Reason.NOT_PERMITTED: ResultCode.NOT_AUTHORIZED,
    Reason.FOREIGN_ENTRY: ResultCode.NOT_AUTHORIZED,
    Reason.QUOTA: ResultCode.USER_EX_QUOTA,
    Reason.UNFAIR: ResultCode.USER_EX_QUOTA,
}
SHORT_LIFETIME, LONG_LIFETIME = 30, 1800  # seconds, of errors (RFC 6887 section 7.4)

# Conditions without a PCP answer.
CONDITIONS = {
    Reason.UNREACHABLE: ACTION_FAILED,
    Reason.RULESET: ACTION_FAILED,
    Reason.CANCELLED: ACTION_FAILED,
    Reason.CONFLICT: Codes(718, 718),
    Reason.PORT_IN_USE: Codes(718, 729),
    Reason.OPERATORS_ENTRY: Codes(718, 729),
    Reason.FOREIGN_CLIENT: Codes(718, 606),
    Reason.NOT_PERMITTED: Codes(718, 606),
    Reason.QUOTA: Codes(501, 728),
    Reason.UNFAIR: Codes(501, 728),
    Reason.TOO_FAST: Codes(501, 728),
    Reason.NO_PORT: Codes(501, 728),
    Reason.NOT_GIVEN: Codes(718, 718),
    Reason.NOT_ENABLED: ACTION_FAILED,
    Reason.REMOTE_HOST: Codes(726, 501),  # WANIPConnection:2 has no code for it
    Reason.WILDCARD_EXTERNAL_PORT: Codes(716, 716),
    Reason.WILDCARD_INTERNAL_PORT: Codes(402, 732),
    Reason.NO_SUCH_ENTRY: Codes(714, 714),
    Reason.NO_SUCH_INDEX: Codes(713, 713),
    Reason.FOREIGN_ENTRY: Codes(714, 606),
    Reason.NOTHING_IN_RANGE: Codes(714, 730),
}

# WANIPv6FirewallControl has one version only.
PINHOLE_CONDITIONS = {
    Reason.PINHOLE_NOT_PERMITTED: 606,
    Reason.FOREIGN_PINHOLE: 606,
    Reason.PINHOLE_SPACE: 701,
    Reason.INBOUND_NOT_ALLOWED: 703,
    Reason.NO_SUCH_PINHOLE: 704,
    Reason.NO_TRAFFIC: 709,
}

# AddAnyPortMapping knows no conflict: it takes another port, and its fault is that there is none (WANIPConnection:2).
NONE_LEFT = {"AddAnyPortMapping": {718: 728}}

INCONSISTENT_PORTS = 733  # WANIPConnection:2: InconsistentParameters

# WANIPv6FirewallControl:1: what AddPinhole's arguments may have wrong.
PINHOLE_PROTOCOL_UNKNOWN = 705
PINHOLE_PORT_WILDCARD = 706
PINHOLE_PROTOCOL_WILDCARD = 707
PINHOLE_CLIENT_WILDCARD = 708
ANY_PROTOCOL = 65535


def fault_code(refusal: Refusal, version: int, action: str) -> int:
    """The UPnP error code of this refusal for this action of service version 1 or 2."""
    if code := PINHOLE_CONDITIONS.get(refusal.reason):
        return code
    if refusal.reason is Reason.UPSTREAM:
        codes = PCP_RESULTS.get(refusal.result, ACTION_FAILED)
    else:
        codes = CONDITIONS[refusal.reason]
    code = codes.v1 if version == 1 else codes.v2
    return NONE_LEFT.get(action, {}).get(code, code)


def pcp_refusal(refusal: Refusal) -> tuple[int, int]:
    """The PCP result code that tells a host of the LAN of this refusal, and for how many seconds it holds."""
    if refusal.reason is Reason.UPSTREAM:
        result = refusal.result if refusal.result in RELAYED_RESULTS else ResultCode.NETWORK_FAILURE
    else:
        result = PCP_CONDITIONS.get(refusal.reason, ResultCode.NO_RESOURCES)
    passing = result in SHORT_ERRORS or external_port_is_taken(result)
    return result, refusal.lifetime or (SHORT_LIFETIME if passing else LONG_LIFETIME)


def result_name(result: int) -> str:
    """The standard's name of a PCP result code."""
    try:
        return ResultCode(result).name
    except ValueError:
        return f"result {result}"


def quota_is_met(result: int) -> bool:
    """Whether this PCP result says that we hold as many mappings as we may."""
    return result == ResultCode.USER_EX_QUOTA


def external_port_is_taken(result: int) -> bool:
    """Whether this PCP result says that the external port belongs to somebody else."""
    return result == ResultCode.CANNOT_PROVIDE_EXTERNAL


def may_pass_soon(result: int, lifetime: int, soon: int) -> bool:
    """Whether the request that got this PCP result may be granted when it is sent again (RFC 6970 section 5.6).

    ``lifetime``: what came with it, ``soon``: what counts as a short lifetime, both in seconds.
    """
    return result in SHORT_ERRORS or (external_port_is_taken(result) and lifetime <= soon)


def belongs_to_another_nonce(result: int) -> bool:
    """Whether this PCP result can mean that the internal port's mapping was made with a nonce that is lost."""
    return result == ResultCode.NOT_AUTHORIZED


def still_there(result: int) -> bool:
    """Whether a deletion answered with this PCP result leaves the mapping in place.

    Servers in the field answer the deletion of what they do not know with various errors; only NOT_AUTHORIZED says
    that it stays.
    """
    return result == ResultCode.NOT_AUTHORIZED


def untold(result: int) -> bool:
    """Whether a deletion ended with this result because the server could not be told."""
    return result == ResultCode.NETWORK_FAILURE


def mapping_key(arguments: dict[str, Value]) -> tuple[Protocol, int, IPv4Address | None]:
    """Protocol, external port and remote host; raises UpnpFault 402 when the last is no IPv4 address."""
    return _protocol(arguments), int(arguments["NewExternalPort"]), _remote_host(arguments)


def mapping_request(arguments: dict[str, Value], requester: Requester, version: int, any_port: bool) -> MappingRequest:
    """The eight arguments of AddPortMapping and AddAnyPortMapping; raises Refusal or UpnpFault."""
    if not arguments["NewEnabled"]:
        raise Refusal(Reason.NOT_ENABLED)
    return MappingRequest(
        requester=requester,
        protocol=_protocol(arguments),
        external_port=shared(int(arguments["NewExternalPort"])),
        client=Endpoint(_internal_client(arguments, requester, version), shared(int(arguments["NewInternalPort"]))),
        remote_host=_remote_host(arguments),
        lease=_lease(int(arguments["NewLeaseDuration"]), version),
        description=sys.intern(str(arguments["NewPortMappingDescription"])),  # many mappings share a few
        any_port=any_port,
    )


def port_range(arguments: dict[str, Value]) -> range:
    """The external ports from NewStartPort to NewEndPort, both included; raises UpnpFault 733."""
    start, end = int(arguments["NewStartPort"]), int(arguments["NewEndPort"])
    if start > end:
        raise UpnpFault(INCONSISTENT_PORTS, f"NewStartPort {start} is greater than NewEndPort {end}")
    return range(start, end + 1)


def pinhole_request(arguments: dict[str, Value], requester: Requester) -> PinholeRequest:
    """The six arguments of AddPinhole; raises UpnpFault, for the first of them that miniupnpd would find wrong."""
    number, lease = int(arguments["Protocol"]), int(arguments["LeaseTime"])
    client, port = str(arguments["InternalClient"]), int(arguments["InternalPort"])
    remote_host = str(arguments["RemoteHost"])
    if port == 0:
        raise UpnpFault(PINHOLE_PORT_WILDCARD, "InternalPort is 0")
    if not client:
        raise UpnpFault(PINHOLE_CLIENT_WILDCARD, "InternalClient is empty")
    if number == ANY_PROTOCOL:
        raise UpnpFault(PINHOLE_PROTOCOL_WILDCARD, "Protocol is 65535")
    if number not in tuple(Protocol):
        raise UpnpFault(PINHOLE_PROTOCOL_UNKNOWN, f"Protocol is {number}")
    if lease not in PINHOLE_LEASES:
        raise UpnpFault(402, f"a lease of {lease} s is not allowed")
    return PinholeRequest(
        requester=requester,
        protocol=Protocol(number),
        client=_ipv6_address("InternalClient", client),
        client_port=port,
        remote_host=_ipv6_address("RemoteHost", remote_host) if remote_host else None,
        remote_port=int(arguments["RemotePort"]),
        lease=lease,
    )


def requester_owner(version: int) -> Owner:
    """The door that a request to this version of the service came through."""
    return Owner.UPNP1 if version == 1 else Owner.UPNP2


def specific_entry(mapping: Mapping, now: float) -> dict[str, Value]:
    """What GetSpecificPortMappingEntry returns of a mapping."""
    request = mapping.request
    return {
        "NewInternalPort": request.client.port,
        "NewInternalClient": str(request.client.address),
        "NewEnabled": PORT_MAPPING_ENABLED,
        "NewPortMappingDescription": request.description,
        "NewLeaseDuration": lease_left(mapping, now),
    }


def generic_entry(mapping: Mapping, now: float) -> dict[str, Value]:
    """What GetGenericPortMappingEntry returns of a mapping."""
    request = mapping.request
    return {
        "NewRemoteHost": str(request.remote_host) if request.remote_host else "",
        "NewExternalPort": mapping.external_port,
        "NewProtocol": request.protocol.name,
        **specific_entry(mapping, now),
    }


def lease_left(mapping: Mapping, now: float) -> int:
    """Remaining lease in seconds, at least 1; 0 is an infinite lease."""
    return LEASE_INFINITE if mapping.lease_ends is None else max(1, round(mapping.lease_ends - now))


def _protocol(arguments: dict[str, Value]) -> Protocol:
    return Protocol[str(arguments["NewProtocol"])]


def _remote_host(arguments: dict[str, Value]) -> IPv4Address | None:
    text = str(arguments["NewRemoteHost"])
    return _address("NewRemoteHost", text) if text else None


def _lease(seconds: int, version: int) -> int:
    if version == 1:
        return seconds
    return min(seconds, LEASE_MAX_IGD2) or LEASE_MAX_IGD2


def _internal_client(arguments: dict[str, Value], requester: Requester, version: int) -> IPv4Address:
    text = str(arguments["NewInternalClient"])
    if text:
        return _address("NewInternalClient", text)
    if version == 1 and isinstance(requester.address, IPv4Address):
        return requester.address
    raise UpnpFault(715, "NewInternalClient is empty")


def _address(name: str, text: str) -> IPv4Address:
    try:
        return _ipv4_address(text.strip())
    except AddressValueError:
        raise UpnpFault(402, f"{name} is no IPv4 address") from None


_ipv4_address = lru_cache(maxsize=64)(IPv4Address)  # a host's mappings share its address


def _ipv6_address(name: str, text: str) -> IPv6Address:
    try:
        address = IPv6Address(text.strip())
    except AddressValueError:
        raise UpnpFault(402, f"{name} is no IPv6 address") from None
    if address.scope_id is not None:
        raise UpnpFault(402, f"{name} has a zone")
    return address
