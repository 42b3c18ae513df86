# SPDX-License-Identifier: Apache-2.0
"""What sane control points send: every action, document and subscription that is declared, and the transcripts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from uuid import UUID

from igdpcp.upnp.actions import TREE_PREFIX, Action, Service
from igdpcp.upnp.description import documents, udns_from
from igdpcp.upnp.services import services_in
from igdpcp.upnp.ssdp import GATEWAY as GATEWAY_TYPE
from igdpcp.upnp.ssdp import Presence, Search, alive, answers, byebye, search_request, update
from tests.support.hall import A6, IDENTITY, A
from tests.support.soap_client import envelope
from tests.support.transcripts import DIRECTORY, HTTP, SSDP, Transcript

GATEWAY = "192.168.1.1"
AGENT = "game/1.0"
SEED = 1  # of the gateway's chance, so that its SIDs are known here
SIDS_KNOWN = 4

NEIGHBOURS_PORT = 8080
NEIGHBOURS_PINHOLE = 7
REFUSED_PORT = 6001  # the carrier has given it to another subscriber
SILENT_PORT = 6002  # the carrier says nothing when it is asked for it

_chance = random.Random(SEED)
NEIGHBOURS_SID, *SIDS = (f"uuid:{UUID(int=_chance.getrandbits(128), version=4)}" for _ in range(SIDS_KNOWN))

ARGUMENTS = {
    "NewConnectionType": "IP_Routed",
    "NewDefaultConnectionService": f"{IDENTITY.udns[2]}:WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1",
    "NewEnabled": "1",
    "NewEndPort": "65535",
    "NewExternalPort": "8081",
    "NewInternalClient": A,
    "NewInternalPort": "8000",
    "NewLeaseDuration": "3600",
    "NewPortMappingDescription": "a game",
    "NewProtocol": "TCP",
    "NewStartPort": "1024",
    "InternalClient": A6,
    "InternalPort": "8000",
    "LeaseTime": "3600",
    "NewLeaseTime": "3600",
    "Protocol": "17",
    "RemotePort": "0",
    "UniqueID": "8",
}
EMPTY, ZERO = "", "0"  # of the inputs that are not above: remote hosts, and numbers


def message(method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bytes:
    """An HTTP/1.1 request to the gateway."""
    fields = {"Host": f"{GATEWAY}:5000", "User-Agent": AGENT, **(headers or {})}
    if body:
        fields["Content-Length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@cache
def http_requests() -> tuple[bytes, ...]:
    """Documents, all forms in which a body can come, and what programs were recorded to send."""
    paths = list(documents(IDENTITY))
    body = envelope("urn:schemas-upnp-org:control-1-0", "QueryStateVariable", {"varName": "Uptime"})
    query = {"SOAPACTION": '"urn:schemas-upnp-org:control-1-0#QueryStateVariable"', "Content-Type": "text/xml"}
    chunks = b"%x\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (20, body[:20], len(body) - 20, body[20:])
    return (
        *(message("GET", path, {"User-Agent": "Microsoft-Windows/10.0"}) for path in paths),
        *(message("HEAD", path, {"Accept-Language": "en", "Connection": "close"}) for path in paths[:2]),
        message("OPTIONS", "*"),
        message("GET", f"http://{GATEWAY}:5000/rootDesc.xml"),
        message("GET", "/rootDesc.xml").replace(b"HTTP/1.1", b"HTTP/1.0"),
        message("POST", "/ctl/IPConn", query, body),
        message("POST", "/ctl/IPConn", query | {"Expect": "100-continue"}, body),
        message("POST", "/ctl/IPConn", query | {"Transfer-Encoding": "chunked"}) + chunks,
        message("POST", "/ctl/IPConn", query | {"Origin": "http://example.org"}, body),
        *_recorded(HTTP),
    )


@cache
def soap_requests() -> tuple[bytes, ...]:
    """Every action of every service at its control URL in every tree, and in every version of the service."""
    return tuple(
        _call(prefix + service.control_path, service, version, action)
        for tree, prefix in TREE_PREFIX.items()
        for service in services_in(tree)
        for version in service.versions
        for action in service.actions
        if version in action.versions
    )


@cache
def gena_requests() -> tuple[bytes, ...]:
    """Subscribing to every service, renewing and ending subscriptions, a neighbour's too."""
    paths = [prefix + service.event_path for tree, prefix in TREE_PREFIX.items() for service in services_in(tree)]
    callback = f"<http://{A}:5001/cb><http://[{A6}]/?a=b>"
    wish = {"CALLBACK": callback, "NT": "upnp:event", "TIMEOUT": "Second-1800", "STATEVAR": "Uptime"}
    return (
        *(message("SUBSCRIBE", path, wish) for path in paths),
        *(message("SUBSCRIBE", paths[2], {"SID": sid, "TIMEOUT": "Second-infinite"}) for sid in SIDS),
        *(message("UNSUBSCRIBE", paths[2], {"SID": sid}) for sid in (*SIDS, NEIGHBOURS_SID)),
    )


@cache
def datagrams() -> tuple[bytes, ...]:
    """Searches for everything that is here, and what another gateway sends."""
    ours = Presence(IDENTITY, f"http://{GATEWAY}:5000", "1", "239.255.255.250:1900")
    stranger = replace(ours, identity=replace(IDENTITY, udns=udns_from("stranger")), location_base=f"http://{A}:80")
    targets = (GATEWAY_TYPE, "upnp:rootdevice", "ssdp:all", *IDENTITY.udns, *_types())
    return (
        *(search_request(target, 1) for target in targets),
        *(says(who)[0] for who in (ours, stranger) for says in (alive, byebye)),
        update(stranger, 2)[0],
        answers(Search(GATEWAY_TYPE, 1), stranger)[0],
        *_recorded(SSDP),
    )


def _types() -> list[str]:
    return [service.urn(version) for service in services_in(2) for version in service.versions]


def _call(path: str, service: Service, version: int, action: Action) -> bytes:
    urn = service.urn(version)
    arguments = {
        argument.name: ARGUMENTS.get(argument.name, EMPTY if argument.name.endswith("RemoteHost") else ZERO)
        for argument in action.inputs
    }
    headers = {"SOAPACTION": f'"{urn}#{action.name}"', "Content-Type": 'text/xml; charset="utf-8"'}
    return message("POST", path, headers, envelope(urn, action.name, arguments))


def _recorded(transport: str) -> Iterable[bytes]:
    """The requests of the transcripts, each once."""
    transcripts = map(Transcript.load, sorted(DIRECTORY.glob("*.json")))
    every = (exchange for transcript in transcripts for exchange in transcript.exchanges)
    return dict.fromkeys(exchange.request for exchange in every if exchange.transport == transport)
