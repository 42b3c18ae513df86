# SPDX-License-Identifier: Apache-2.0
"""Which ports of the WAN the redirects of /etc/config/firewall take, also those that are not loaded yet.

A zone counts as one of the WAN unless all its networks and devices are known, and the WAN's is not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from igdpcp import uci
from igdpcp.errors import ConfigError, OurFault
from igdpcp.model import Protocol
from igdpcp.netfilter.detect import fits
from igdpcp.netfilter.taken_ports import BOTH, TakenPorts, port_range
from igdpcp.uci import Section

DIRECTORY = Path("/etc/config")
NAME_LIMIT = 32  # characters of a redirect's name that are shown

_PLAIN_INTERFACES = ("static", "dhcp", "dhcpv6", "none")  # others make a device of their own
_FALSE = ("0", "no", "off", "false", "disabled")
_PROTOCOLS = {
    **dict.fromkeys(("tcp", "6"), frozenset({Protocol.TCP})),
    **dict.fromkeys(("udp", "17"), frozenset({Protocol.UDP})),
    **dict.fromkeys(("tcpudp", "all", "any", "*", "0"), BOTH),
}


class UciRedirects:
    """Reads ``firewall`` and ``network`` again only when they are others than at the last reading."""

    def __init__(self, directory: Path | None = None) -> None:
        directory = directory or DIRECTORY
        self._files = directory / "firewall", directory / "network"
        self._read: tuple[object, list[Section], list[Section]] | None = None

    def taken(self, device: str, address: IPv4Address | None) -> list[TakenPorts]:
        """What is redirected of what comes by this WAN device for this address.

        Blocks; none without a file. Raises OurFault when there is one that cannot be read.
        """
        signature = [_signature(file) for file in self._files]
        if self._read is None or self._read[0] != signature:
            firewall, network = map(_sections, self._files)
            self._read = signature, firewall, network
        _, firewall, network = self._read
        inner = _zones_elsewhere(firewall, network, device)
        redirects = [section for section in firewall if section.type == "redirect"]
        return [
            TakenPorts(_protocols(redirect), ports, f"redirect {_name(redirect, at)} of {self._files[0]}")
            for at, redirect in enumerate(redirects)
            if _takes(redirect, address, inner)
            for ports in _ports(redirect)
        ]


def _signature(file: Path) -> object:
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _sections(file: Path) -> list[Section]:
    try:
        return uci.parse(file.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OurFault(f"{file}: cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise OurFault(f"{file}: {error.problems[0]}") from error


def _words(section: Section, option: str) -> list[str]:
    value = section.values.get(option, "")
    return [word for text in (value if isinstance(value, list) else [value]) for word in text.split()]


def _text(section: Section, option: str, default: str = "") -> str:
    words = _words(section, option)
    return words[0].lower() if words else default


def _zones_elsewhere(firewall: list[Section], network: list[Section], device: str) -> set[str]:
    """The names of zones of which it is known that they are not the WAN's."""
    devices = {
        section.name: _words(section, "device")
        for section in network
        if section.type == "interface" and _text(section, "proto") in _PLAIN_INTERFACES
    }
    elsewhere = set()
    for zone in firewall:
        parts = [devices.get(name, []) for name in _words(zone, "network")]
        parts += [[name] for name in _words(zone, "device")]
        known = zone.type == "zone" and parts and all(parts)
        if known and not any(name.startswith("@") or fits(name, device) for part in parts for name in part):
            elsewhere.add(_text(zone, "name"))
    return elsewhere


def _takes(redirect: Section, address: IPv4Address | None, zones_elsewhere: set[str]) -> bool:
    if _text(redirect, "enabled", "1") in _FALSE or _text(redirect, "target", "dnat") != "dnat":
        return False
    zone = _text(redirect, "src")
    if not zone or zone in zones_elsewhere or _text(redirect, "family") == "ipv6":
        return False
    destinations = _words(redirect, "src_dip")
    return not destinations or address is None or any(_may_mean(text, address) for text in destinations)


def _may_mean(text: str, address: IPv4Address) -> bool:
    try:
        return address in IPv4Network(text, strict=False)
    except ValueError:
        return True


def _protocols(redirect: Section) -> frozenset[Protocol]:
    words = _words(redirect, "proto") or ["tcpudp"]
    return frozenset().union(*(_PROTOCOLS.get(word.lower(), frozenset()) for word in words))


def _ports(redirect: Section) -> Iterator[range]:
    return (ports for ports in map(port_range, _words(redirect, "src_dport")) if ports)


def _name(redirect: Section, at: int) -> str:
    """Its name, else the one that the uci program gives it."""
    name = redirect.values.get("name") or redirect.name
    return f"'{name[:NAME_LIMIT]}'" if isinstance(name, str) and name else f"@redirect[{at}]"
