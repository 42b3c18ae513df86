# SPDX-License-Identifier: Apache-2.0
"""Sections ``mapping``: the port mappings that the configuration itself wants open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address
from typing import Any

from igdpcp import option_values
from igdpcp.model import Endpoint, Protocol
from igdpcp.option_values import Reader
from igdpcp.uci import Section
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class StaticMappingConfig:
    """Section ``mapping``: ``external_port`` leads to ``client``, for each of the protocols.

    ``remote_host`` None: for everybody.
    """

    name: str
    protocols: tuple[Protocol, ...]
    external_port: int
    client: Endpoint
    remote_host: IPv4Address | None = None
    description: str = ""


_port = option_values.number(int, 1, 65535, "a port")
_PROTOCOLS = {"tcp": (Protocol.TCP,), "udp": (Protocol.UDP,), "both": (Protocol.TCP, Protocol.UDP)}
_READERS: Mapping[str, Reader] = {
    "enabled": option_values.boolean,
    "protocol": option_values.choice(*_PROTOCOLS),
    "ext_port": _port,
    "int_addr": option_values.ipv4_host,
    "int_port": _port,
    "remote_host": option_values.ipv4_host,
    "description": option_values.device_text(option_values.DESCRIPTION_LIMIT),
}
_NEEDED = ("ext_port", "int_addr")

ReadSection = Callable[[str, Section, Mapping[str, Reader]], tuple[dict[str, Any], list[str]]]


def static_mappings(
    sections: Iterable[tuple[str, Section]], read: ReadSection, warn: Callable[[str], None]
) -> tuple[StaticMappingConfig, ...]:
    """The enabled sections that can be read. Of one that cannot, nothing is opened: it might be too much."""
    wanted: list[StaticMappingConfig] = []
    taken: dict[tuple[Protocol, int], str] = {}
    for title, section in sections:
        options, problems = read(title, section, _READERS)
        if not options.pop("enabled", True):
            continue
        problems = problems or _missing(title, options) or _taken(title, options, taken)
        if problems:
            for problem in problems:
                warn(f"{problem}; section skipped")
            continue
        mapping = _mapping(title, options)
        taken |= {(protocol, mapping.external_port): title for protocol in mapping.protocols}
        wanted.append(mapping)
    return tuple(wanted)


def _missing(title: str, options: dict[str, Any]) -> list[str]:
    return [f"section '{title}' option '{name}': missing" for name in _NEEDED if name not in options]


def _taken(title: str, options: dict[str, Any], taken: Mapping[tuple[Protocol, int], str]) -> list[str]:
    port, protocols = options["ext_port"], _protocols(options)
    held = [(each, taken[each, port]) for each in protocols if (each, port) in taken]
    return [
        f"section '{title}' option 'ext_port': {protocol.name.lower()} {port} is in section '{owner}' already"
        for protocol, owner in held
    ]


def _protocols(options: dict[str, Any]) -> tuple[Protocol, ...]:
    return _PROTOCOLS[options.get("protocol", "both")]


def _mapping(title: str, options: dict[str, Any]) -> StaticMappingConfig:
    port = options["ext_port"]
    return StaticMappingConfig(
        name=title,
        protocols=_protocols(options),
        external_port=port,
        client=Endpoint(options["int_addr"], options.get("int_port", port)),
        remote_host=options.get("remote_host"),
        description=options.get("description", title),
    )
