# SPDX-License-Identifier: Apache-2.0
"""Mappings and pinholes as lines of the journal, and back.

``shift`` is what has to be added to times: on the way out the loop's become CLOCK_BOOTTIME's, on the way in the other
way round. Reading raises ValueError, LookupError, TypeError or AttributeError for what was not written here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from igdpcp.model import (
    UNIQUE_IDS,
    Endpoint,
    Entry,
    Grant,
    IPAddress,
    Mapping,
    MappingRequest,
    MappingState,
    Mode,
    Owner,
    Pinhole,
    PinholeRequest,
    Protocol,
    Requester,
)
from igdpcp.values import shared

Record = Mapping | Pinhole
Line = dict[str, Any]


def key(entry: Record) -> str:
    """What the journal knows the entry by."""
    return entry.id if isinstance(entry, Mapping) else entry.name


def lasting(mapping: Mapping) -> int:
    """What is worth a flash write by itself, as a number nobody can guess: the same for the same, in this process.

    Times are not, which renewals move for ever, nor words and leases, which LAN hosts may change at no cost; an entry
    that was deleted and made again is the same one.
    """
    request, others = mapping.request, frozenset(each.request.remote_host for each in mapping.others)
    return hash((
        mapping.state, mapping.mode, mapping.external_port, mapping.wan_port, request.protocol, request.external_port,
        request.client, request.remote_host, request.any_port, request.requester.owner.is_operators,
        request.requester.owner.maps_tuple, others,
    ))  # fmt: skip


def encode(entry: Record, shift: float) -> Line:
    """The entry as one line."""
    return _mapping_line(entry, shift) if isinstance(entry, Mapping) else _pinhole_line(entry, shift)


def encode_renewal(mapping: Mapping, shift: float) -> Line:
    """What is another in a mapping of which nothing but its grant's time has changed."""
    assert mapping.grant is not None
    return {"renewed": mapping.id, "lifetime": mapping.grant.lifetime, "ends": mapping.grant.ends + shift}


def renewed(entry: Record, fields: Line, shift: float) -> Record:
    """The entry with the times of a line that ``encode_renewal`` made."""
    if not isinstance(entry, Mapping) or entry.grant is None:
        raise ValueError("what has no grant cannot be renewed")
    lifetime, ends = _whole(fields["lifetime"]), fields["ends"] + shift
    return replace(entry, grant=replace(entry.grant, lifetime=lifetime, ends=ends))


def decode(entry: Line, shift: float) -> Record:
    """The entry of one line."""
    return _pinhole(entry, shift) if "pinhole" in entry else _mapping(entry, shift)


def _mapping_line(mapping: Mapping, shift: float) -> Line:
    request, grant, sharer = mapping.request, mapping.grant, mapping.sharer
    others = [_entry_line(each.request, each.lease_ends, shift) for each in mapping.others]
    return {
        "id": mapping.id,
        "serial": mapping.serial,
        "state": mapping.state.value,
        "mode": mapping.mode.value,
        **_entry_line(request, mapping.lease_ends, shift),
        "external_port": mapping.external_port,
        "wan_port": mapping.wan_port,
        **({"others": others} if others else {}),
        **({"sharer": _entry_line(sharer.request, sharer.lease_ends, shift)} if sharer else {}),
        "grant": grant
        and {
            "upstream": grant.upstream,
            "internal": [str(grant.internal), mapping.wan_port],
            "address": str(grant.external.address),
            "port": grant.external.port,
            "lifetime": grant.lifetime,
            "ends": grant.ends + shift,
            "nonce": grant.nonce.hex(),
            "server": grant.server,
        },
    }


def _entry_line(request: MappingRequest, lease_ends: float | None, shift: float) -> Line:
    return {
        **_requester_fields(request.requester),
        "protocol": request.protocol.name,
        "wanted": request.external_port,
        "client": str(request.client.address),
        "client_port": request.client.port,
        "remote_host": str(request.remote_host or ""),
        "lease": request.lease,
        "description": request.description,
        "any": request.any_port,
        "lease_ends": None if lease_ends is None else lease_ends + shift,
        **({"nonce": request.nonce.hex()} if request.nonce else {}),
    }


def _entry(entry: Line, shift: float) -> Entry:
    request = MappingRequest(
        requester=_requester(entry),
        protocol=Protocol[entry["protocol"]],
        external_port=_port(entry["wanted"]),
        client=Endpoint(IPv4Address(_text(entry["client"])), _port(entry["client_port"])),
        remote_host=IPv4Address(_text(entry["remote_host"])) if entry["remote_host"] else None,
        lease=_whole(entry["lease"]),
        description=_text(entry["description"]),
        any_port=bool(entry["any"]),
        nonce=bytes.fromhex(entry.get("nonce", "")),
    )
    return Entry(request, None if entry["lease_ends"] is None else entry["lease_ends"] + shift)


def _mapping(entry: Line, shift: float) -> Mapping:
    first = _entry(entry, shift)
    return Mapping(
        id=_text(entry["id"]),
        serial=_whole(entry["serial"]),
        request=first.request,
        mode=Mode(entry["mode"]),
        external_port=_port(entry["external_port"]),
        wan_port=_port(entry["wan_port"]),
        state=MappingState(entry["state"]),
        lease_ends=first.lease_ends,
        others=tuple(_entry(each, shift) for each in entry.get("others", ())),
        sharer=_entry(entry["sharer"], shift) if "sharer" in entry else None,
        grant=None if entry["grant"] is None else _grant(entry["grant"], shift),
    )


def _grant(grant: Line, shift: float) -> Grant:
    internal, _ = grant["internal"]  # the port is the mapping's
    return Grant(
        upstream=_text(grant["upstream"]),
        internal=IPv4Address(_text(internal)),
        external=Endpoint(IPv4Address(_text(grant["address"])), _port(grant["port"])),
        lifetime=_whole(grant["lifetime"]),
        ends=grant["ends"] + shift,
        nonce=bytes.fromhex(grant["nonce"]),
        server=_text(grant["server"]),
    )


def _whole(value: Any, allowed: range = range(sys.maxsize)) -> int:
    if type(value) is not int or value not in allowed:
        raise ValueError(f"{value!r} is no number from {allowed[0]} to {allowed[-1]}")
    return value


def _port(value: Any) -> int:
    return shared(_whole(value, range(65536)))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _pinhole_line(pinhole: Pinhole, shift: float) -> Line:
    request = pinhole.request
    return {
        "pinhole": pinhole.id,
        **_requester_fields(request.requester),
        "protocol": request.protocol.name,
        "client": str(request.client),
        "client_port": request.client_port,
        "remote_host": str(request.remote_host or ""),
        "remote_port": request.remote_port,
        "lease": request.lease,
        "lease_ends": pinhole.lease_ends + shift,
    }


def _pinhole(entry: Line, shift: float) -> Pinhole:
    return Pinhole(
        id=_whole(entry["pinhole"], UNIQUE_IDS),
        request=PinholeRequest(
            requester=_requester(entry),
            protocol=Protocol[entry["protocol"]],
            client=IPv6Address(_text(entry["client"])),
            client_port=_port(entry["client_port"]),
            remote_host=IPv6Address(_text(entry["remote_host"])) if entry["remote_host"] else None,
            remote_port=_port(entry["remote_port"]),
            lease=_whole(entry["lease"]),
        ),
        lease_ends=entry["lease_ends"] + shift,
    )


def _requester_fields(requester: Requester) -> Line:
    return {
        "requester": str(requester.address or ""),
        "owner": requester.owner.value,
        "agent": requester.agent,
    }


def _requester(entry: Line) -> Requester:
    address: IPAddress | None = ip_address(_text(entry["requester"])) if entry["requester"] else None
    return Requester(address, Owner(entry["owner"]), _text(entry["agent"]))
