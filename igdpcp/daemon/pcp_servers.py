# SPDX-License-Identifier: Apache-2.0
"""Which WAN is in use, and which PCP servers are behind it (RFC 6887 section 8.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address

from igdpcp.config import UpstreamConfig
from igdpcp.errors import MalformedPcp
from igdpcp.log import line
from igdpcp.net.dhcp import DhcpAnswer
from igdpcp.net.links import LinkSnapshot
from igdpcp.net.router import Wan
from igdpcp.pcp.discovery import ANYCAST, Origin, Server, servers_of_dhcpv4, servers_of_dhcpv6

LOG = logging.getLogger("igdpcp.upstream")


def sections_in_use(upstreams: Sequence[UpstreamConfig], snapshot: LinkSnapshot) -> tuple[UpstreamConfig, ...]:
    """The sections of the first WAN that has an IPv4 address and a default route, else of one that has an address.

    Sections with the same device are several servers behind one WAN. While no WAN is up it is the first section's.
    """
    addressed = {device for device, interface in snapshot.addresses if interface.version == 4}
    routed = {route.device for route in snapshot.default_routes}
    for up in ((addressed & routed) | ({""} if routed else set()), addressed):
        for upstream in upstreams:
            if upstream.device in up:
                return _behind(upstreams, upstream.device)
    return _behind(upstreams, upstreams[0].device)


def _behind(upstreams: Sequence[UpstreamConfig], device: str) -> tuple[UpstreamConfig, ...]:
    return tuple(upstream for upstream in upstreams if upstream.device == device)


def servers_behind(
    sections: Sequence[UpstreamConfig], wan: Wan, wan6_devices: Iterable[str], answers: Iterable[DhcpAnswer]
) -> tuple[Server, ...]:
    """The servers in the order in which they are tried: the configured ones, else what DHCP named, else a guess.

    DHCPv6 may have been answered on another device than the IPv4 WAN (DS-Lite): one that leads to the internet.
    """
    configured = [
        Server(section.name, tuple(map(ip_address, section.server)), Origin.CONFIGURED, section.device)
        for section in sections
        if section.server
    ]
    if configured:
        return tuple(configured)
    learnt = list(_learnt(wan.device, set(wan6_devices), answers)) if any(section.dhcp for section in sections) else []
    if learnt:
        return tuple(learnt)
    guesses = []
    if wan.default_router:
        identity = f"{wan.device}/{wan.default_router}"
        guesses.append(Server(identity, (wan.default_router,), Origin.ROUTER, wan.device))
    if any(section.anycast for section in sections):
        guesses.append(Server(f"{wan.device}/anycast", ANYCAST, Origin.ANYCAST, wan.device))
    return tuple(guesses)


def _learnt(wan_device: str, wan6_devices: set[str], answers: Iterable[DhcpAnswer]) -> Iterator[Server]:
    for answer in answers:
        if answer.family == 4 and answer.device == wan_device:
            yield from servers_of_dhcpv4(answer.octets, answer.device)
        elif answer.family == 6 and answer.device in {wan_device} | wan6_devices:
            yield from _read_dhcpv6(answer.octets, answer.device)


@lru_cache(maxsize=8)  # they are looked at whenever anything may have changed; what is wrong with them is said once
def _read_dhcpv6(octets: bytes, device: str) -> tuple[Server, ...]:
    try:
        return tuple(servers_of_dhcpv6(octets, device))
    except MalformedPcp as error:
        LOG.warning(line("dhcp_unreadable", device=device, error=error))
        return ()
