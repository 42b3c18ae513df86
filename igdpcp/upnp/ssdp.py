# SPDX-License-Identifier: Apache-2.0
"""SSDP messages: searches in, answers and announcements out, and what other gateways say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.actions import DEVICE_TYPES, DEVICE_URN, SERVICES, UI2_MAX, Level
from igdpcp.upnp.description import ROOT_PATH, VERSIONS, DeviceIdentity

MAX_AGE = 1800  # seconds; UPnP Device Architecture 1.1 section 1.2.2: at least that
MESSAGE_LIMIT = 2048  # bytes of a message that is looked at
FIELD_LIMIT = 32  # header fields that are looked at
TEXT_LIMIT = 200  # characters kept of what a stranger says of itself
HOST = "239.255.255.250:1900"  # UPnP Device Architecture 1.1 section 1.2.2
GATEWAY = f"{DEVICE_URN}{DEVICE_TYPES[Level.ROOT]}:1"

_ROOT_DEVICE = "upnp:rootdevice"
_ALL = "ssdp:all"
_DISCOVER = "ssdp:discover"
_LOCATION = re.compile(r"http://([0-9.]{7,15})(?::([0-9]{1,5}))?(?:/.*)?", re.IGNORECASE)
_HTTP_PORT = "80"
_REMEMBERED_ANSWERS = 16  # addresses that answers are made for: one for each LAN


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


def answers(search: Search, identity: DeviceIdentity, location_base: str, igd_version: str) -> tuple[bytes, ...]:
    """The answers to a search, none when nothing here is meant.

    ``location_base`` is "http://ADDRESS:PORT"; ``igd_version`` is the option's value: with "auto" the version that is
    searched for chooses the tree, and with it the document. A target of a lower version than the device's is answered
    with that version (UPnP Device Architecture 1.1 section 1.3.2).
    """
    return _all_answers(identity, location_base, igd_version).get(search.target, ())


def alive(identity: DeviceIdentity, location_base: str, igd_version: str) -> list[bytes]:
    """One announcement of everything; with "auto" of the version 1 tree, which all control points understand."""
    return [
        _message(
            "NOTIFY * HTTP/1.1",
            ("HOST", HOST),
            ("CACHE-CONTROL", f"max-age={MAX_AGE}"),
            ("LOCATION", location_base + ROOT_PATH[row.tree]),
            ("NT", row.target),
            ("NTS", "ssdp:alive"),
            ("SERVER", identity.server),
            ("USN", _usn(row, identity)),
            *_numbers(identity),
        )
        for row in _rows(identity, _trees(igd_version)[0])
    ]


def byebye(identity: DeviceIdentity, igd_version: str) -> list[bytes]:
    """The end of everything that control points can have found."""
    return [
        _message(
            "NOTIFY * HTTP/1.1",
            ("HOST", HOST),
            ("NT", row.target),
            ("NTS", "ssdp:byebye"),
            ("USN", _usn(row, identity)),
            *_numbers(identity),
        )
        for tree in _trees(igd_version)
        for row in _rows(identity, tree)
    ]


def search_request(target: str, mx: int) -> bytes:
    """A multicast search that is to be answered within ``mx`` seconds."""
    return _message("M-SEARCH * HTTP/1.1", ("HOST", HOST), ("MAN", f'"{_DISCOVER}"'), ("MX", str(mx)), ("ST", target))


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
    for service in SERVICES:
        yield _Row(service.urn(service.version_in(tree)), service.level, tree)


def _searchable(identity: DeviceIdentity, tree: int) -> Iterator[_Row]:
    """The rows of a tree, and the same for every lower version."""
    for row in _rows(identity, tree):
        yield row
        if row.target.startswith("urn:"):
            base, _, version = row.target.rpartition(":")
            for lower in range(1, int(version)):
                yield _Row(f"{base}:{lower}", row.level, tree)


@lru_cache(_REMEMBERED_ANSWERS)
def _all_answers(identity: DeviceIdentity, location_base: str, igd_version: str) -> dict[str, tuple[bytes, ...]]:
    """The answers to every target that is meant for us: most searches on a LAN are not, and must cost nothing."""
    trees = _trees(igd_version)
    found = {_ALL: tuple(_answer(row, identity, location_base) for row in _rows(identity, trees[0]))}
    for tree in trees:
        for row in _searchable(identity, tree):
            found.setdefault(row.target, (_answer(row, identity, location_base),))
    return found


def _usn(row: _Row, identity: DeviceIdentity) -> str:
    udn = identity.udn(row.level, row.tree)
    return udn if row.target == udn else f"{udn}::{row.target}"


def _answer(row: _Row, identity: DeviceIdentity, location_base: str) -> bytes:
    return _message(
        "HTTP/1.1 200 OK",
        ("CACHE-CONTROL", f"max-age={MAX_AGE}"),
        ("EXT", ""),
        ("LOCATION", location_base + ROOT_PATH[row.tree]),
        ("SERVER", identity.server),
        ("ST", row.target),
        ("USN", _usn(row, identity)),
        *_numbers(identity),
    )


def _numbers(identity: DeviceIdentity) -> tuple[tuple[str, str], ...]:
    return ("BOOTID.UPNP.ORG", str(identity.boot_id)), ("CONFIGID.UPNP.ORG", str(identity.config_id))


def _message(start: str, *fields: tuple[str, str]) -> bytes:
    lines = [start, *(f"{name}: {value}".rstrip() for name, value in fields)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


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
