# SPDX-License-Identifier: Apache-2.0
"""SSDP messages: searches in, answers and announcements out, and what other gateways say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address

from igdpcp.errors import MalformedRequest
from igdpcp.model import IPAddress
from igdpcp.upnp.actions import DEVICE_TYPES, DEVICE_URN, UI2_MAX, Level
from igdpcp.upnp.description import ROOT_PATH, VERSIONS, DeviceIdentity
from igdpcp.upnp.services import services_in
from igdpcp.values import dataclass

MAX_AGE = 1800  # seconds; UPnP Device Architecture 1.1 section 1.2.2: at least that
UNANNOUNCED_MAX_AGE = 86400  # seconds, of what is only found by searching
MESSAGE_LIMIT = 2048  # bytes of a message that is looked at
FIELD_LIMIT = 32  # header fields that are looked at
TEXT_LIMIT = 200  # characters kept of what a stranger says of itself
PORT = 1900  # UPnP Device Architecture 1.1 section 1.2.2
GATEWAY = f"{DEVICE_URN}{DEVICE_TYPES[Level.ROOT]}:1"

_SEARCHED_HOST = f"239.255.255.250:{PORT}"
_ROOT_DEVICE = "upnp:rootdevice"
_ALL = "ssdp:all"
_DISCOVER = "ssdp:discover"
_LOCATION = re.compile(r"http://([0-9.]{7,15})(?::([0-9]{1,5}))?(?:/.*)?", re.IGNORECASE)
_HTTP_PORT = "80"
_LOCATION_SIGNATURE = '"http://schemas.upnp.org/upnp/1/0/"; ns=01'  # UPnP Device Architecture 1.1 annex A.2
_START_OF_ANSWER = b"HTTP/1.1 200 OK\r\n"
_REMEMBERED_ANSWERS = 32  # addresses that answers are made for: some for each LAN


@dataclass(frozen=True, slots=True)
class Search:
    """An M-SEARCH; ``mx`` None: none given, as in a unicast search."""

    target: str
    mx: int | None
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a device says of itself, in an answer or an announcement."""

    usn: str
    location: str
    target: str
    server: str = ""

    @property
    def is_gateway(self) -> bool:
        """Whether it is an Internet gateway, of any version."""
        return f":{DEVICE_TYPES[Level.ROOT]}:" in self.target or f":{DEVICE_TYPES[Level.ROOT]}:" in self.usn

    @property
    def endpoint(self) -> tuple[IPv4Address, int] | None:
        """Address and port of its description, None when LOCATION is not an http URL with a literal IPv4 address."""
        match = _LOCATION.fullmatch(self.location)
        if match is None:
            return None
        try:
            address, port = IPv4Address(match[1]), int(match[2] or _HTTP_PORT)
        except AddressValueError:
            return None
        return (address, port) if 0 < port <= UI2_MAX else None

    def belongs_to(self, identity: DeviceIdentity) -> bool:
        """Whether it is one of our own devices."""
        device = self.usn.partition("::")[0].lower()
        return any(device == identity.udn(level, version).lower() for level in Level for version in VERSIONS)


@dataclass(frozen=True, slots=True)
class Presence:
    """The gateway as it is found at one of its addresses.

    ``location_base`` is "http://ADDRESS:PORT"; ``igd_version`` is the option's value: with "auto" the version that is
    searched for chooses the tree, and with it the document. ``host`` is the HOST of what is sent to the group.
    """

    identity: DeviceIdentity
    location_base: str
    igd_version: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """One thing that is advertised: its target, the device that has it, and in which tree."""

    target: str
    level: Level
    tree: int


def parse_search(data: bytes) -> Search | None:
    """The search in a datagram, None when it is another SSDP message; raises MalformedRequest for anything else.

    Takes what control points send: no space after the colon, any case, MAN without quotes or missing, no MX.
    """
    start, fields = _split(data)
    if start.startswith(("NOTIFY ", "HTTP/1.")):
        return None
    if not start.startswith("M-SEARCH "):
        raise MalformedRequest("not an SSDP message")
    if fields.get("man", _DISCOVER).strip("\"'").lower() != _DISCOVER:
        return None
    target = fields.get("st", "")
    if not target or not target.isascii() or not target.isprintable():
        raise MalformedRequest("search without a target")
    mx = fields.get("mx", "")
    return Search(
        target, int(mx) if mx.isascii() and mx.isdigit() and len(mx) < 6 else None, fields.get("user-agent", "")
    )


def host_port(address: IPAddress, port: int) -> str:
    """Address and port as a URL or the HOST header has them."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def answers(search: Search, presence: Presence, date: str = "") -> tuple[bytes, ...]:
    """The answers to a search, none when nothing here is meant; ``date`` empty: it is not known.

    A target of a lower version than the device's is answered with that version, as it was asked for (UPnP Device
    Architecture 1.1 section 1.3.2).
    """
    found = _all_answers(presence).get(search.target, ())
    start = _START_OF_ANSWER + (f"DATE: {date}\r\n".encode() if date else b"")
    return tuple(start + answer for answer in found)


def alive(presence: Presence) -> list[bytes]:
    """One announcement of everything that is there."""
    return [
        _notify(
            presence,
            "ssdp:alive",
            row,
            ("CACHE-CONTROL", f"max-age={MAX_AGE}"),
            _location(row, presence),
            ("SERVER", presence.identity.server),
            *_signature(presence.identity),
        )
        for row in _announced(presence)
    ]


def update(presence: Presence, next_boot_id: int) -> list[bytes]:
    """What precedes ``alive`` with that boot number, at the addresses that were there before."""
    following = ("NEXTBOOTID.UPNP.ORG", str(next_boot_id))
    return [_notify(presence, "ssdp:update", row, _location(row, presence), following) for row in _announced(presence)]


def byebye(presence: Presence) -> list[bytes]:
    """The end of everything that control points can have found."""
    rows = dict.fromkeys((*_announced(presence), *_findable(presence).values()))
    return [_notify(presence, "ssdp:byebye", row) for row in rows]


def search_request(target: str, mx: int) -> bytes:
    """A multicast search by IPv4 that is to be answered within ``mx`` seconds."""
    fields = ("HOST", _SEARCHED_HOST), ("MAN", f'"{_DISCOVER}"'), ("MX", str(mx)), ("ST", target)
    return b"M-SEARCH * HTTP/1.1\r\n" + _fields(*fields)


def parse_answer(data: bytes) -> Sighting | None:
    """Who answers a search; None when the datagram is no such answer, whatever it is."""
    return _sighting(data, "HTTP/1.", "st")


def parse_announcement(data: bytes) -> Sighting | None:
    """Who announces to be there (ssdp:alive); None when the datagram is no such announcement, whatever it is."""
    return _sighting(data, "NOTIFY ", "nt")


def _trees(igd_version: str) -> tuple[int, ...]:
    """The versions of the trees that can be found, the one shown to those who do not say a version first."""
    return VERSIONS if igd_version == "auto" else (int(igd_version),)


def _rows(identity: DeviceIdentity, tree: int) -> Iterator[_Row]:
    """What UPnP Device Architecture 1.1 tables 1-1 to 1-3 advertise.

    The gateway's own row is first: some control points stop listening after the first answers.
    """
    for level in Level:
        yield _Row(f"{DEVICE_URN}{DEVICE_TYPES[level]}:{tree}", level, tree)
        if level is Level.ROOT:
            yield _Row(_ROOT_DEVICE, level, tree)
        yield _Row(identity.udn(level, tree), level, tree)
    for service in services_in(tree):
        yield _Row(service.urn(service.version_in(tree)), service.level, tree)


def _announced(presence: Presence) -> list[_Row]:
    """The rows of the first tree only: a control point that takes any version would see two gateways, and map on both.

    Whoever searched for the second tree keeps it for long, and is told when it goes.
    """
    return list(_rows(presence.identity, _trees(presence.igd_version)[0]))


def _findable(presence: Presence) -> dict[str, _Row]:
    """Every target that can be searched for: the rows, and the same for every lower version."""
    rows: dict[str, _Row] = {}
    for tree in _trees(presence.igd_version):
        for row in _rows(presence.identity, tree):
            rows.setdefault(row.target, row)
            base, _, version = row.target.rpartition(":")
            if base.startswith("urn:"):
                for lower in range(1, int(version)):
                    rows.setdefault(f"{base}:{lower}", _Row(f"{base}:{lower}", row.level, tree))
    return rows


@lru_cache(_REMEMBERED_ANSWERS)
def _all_answers(presence: Presence) -> dict[str, tuple[bytes, ...]]:
    """The answers to every target that is meant for us: most searches on a LAN are not, and must cost nothing."""
    first = _trees(presence.igd_version)[0]
    everything = tuple(_answer(row, presence) for row in _rows(presence.identity, first))
    return {_ALL: everything} | {target: (_answer(row, presence),) for target, row in _findable(presence).items()}


def _usn(row: _Row, identity: DeviceIdentity) -> str:
    udn = identity.udn(row.level, row.tree)
    return udn if row.target == udn else f"{udn}::{row.target}"


def _answer(row: _Row, presence: Presence) -> bytes:
    """An answer but for its start."""
    announced = row.tree == _trees(presence.igd_version)[0]
    return _fields(
        ("CACHE-CONTROL", f"max-age={MAX_AGE if announced else UNANNOUNCED_MAX_AGE}"),
        ("EXT", ""),
        _location(row, presence),
        ("SERVER", presence.identity.server),
        ("ST", row.target),
        ("USN", _usn(row, presence.identity)),
        *_numbers(presence.identity),
        *_signature(presence.identity),
    )


def _notify(presence: Presence, kind: str, row: _Row, *fields: tuple[str, str]) -> bytes:
    """A message to the group."""
    usn = ("USN", _usn(row, presence.identity))
    return b"NOTIFY * HTTP/1.1\r\n" + _fields(
        ("HOST", presence.host), ("NT", row.target), ("NTS", kind), usn, *_numbers(presence.identity), *fields
    )


def _location(row: _Row, presence: Presence) -> tuple[str, str]:
    return "LOCATION", presence.location_base + ROOT_PATH[row.tree]


def _numbers(identity: DeviceIdentity) -> tuple[tuple[str, str], ...]:
    return ("BOOTID.UPNP.ORG", str(identity.boot_id)), ("CONFIGID.UPNP.ORG", str(identity.config_id))


def _signature(identity: DeviceIdentity) -> tuple[tuple[str, str], ...]:
    """The same at every address of one boot instance: control points see that it is one device."""
    return ("OPT", _LOCATION_SIGNATURE), ("01-NLS", str(identity.boot_id))


def _fields(*fields: tuple[str, str]) -> bytes:
    """Header fields and the empty line that ends them."""
    return "".join(f"{name}: {value}".rstrip() + "\r\n" for name, value in fields).encode() + b"\r\n"


def _split(data: bytes) -> tuple[str, dict[str, str]]:
    """The start line, and the header fields with lower-case names."""
    lines = data[:MESSAGE_LIMIT].decode("latin-1").replace("\r\n", "\n").lstrip("\n").split("\n")
    fields: dict[str, str] = {}
    for text in lines[1 : FIELD_LIMIT + 1]:
        name, colon, value = text.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return lines[0], fields


def _sighting(data: bytes, start: str, target: str) -> Sighting | None:
    if not data.lstrip(b"\r\n").startswith(start.encode()):
        return None
    first, fields = _split(data)
    if "usn" not in fields or target not in fields:
        return None
    if start == "HTTP/1." and first.split(" ")[1:2] != ["200"]:
        return None
    if target == "nt" and fields.get("nts", "").lower() != "ssdp:alive":
        return None
    texts = (fields["usn"], fields.get("location", ""), fields[target], fields.get("server", ""))
    return Sighting(*("".join(filter(str.isprintable, text))[:TEXT_LIMIT] for text in texts))
