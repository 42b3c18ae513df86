# SPDX-License-Identifier: Apache-2.0
"""A request of the hall as a wish at the server that is asked: for which tuple, by which nonce, and whether at all."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import TypeGuard

from igdpcp.config import MainConfig
from igdpcp.model import Endpoint, Grant, IPAddress, Protocol, UpstreamRequest
from igdpcp.pcp.client import ServerState, WantedMapping
from igdpcp.pcp.conduct import Conduct
from igdpcp.pcp.discovery import Origin
from igdpcp.pcp.options import OptionCode
from igdpcp.upstreams.server_line import ServerLine

UNKNOWN_ADDRESS = IPv4Address(0)  # the router's own, where it has none


def conduct_of(main: MainConfig) -> Conduct:
    """What the switches mean for the engine.

    A carrier that does not take FILTER may be asked without it only where this router keeps others out itself.
    """
    insists_on = set()
    if main.remote_host == "filter":
        insists_on.add(OptionCode.FILTER)
    if main.prefer_failure_fallback == "fail":
        insists_on.add(OptionCode.PREFER_FAILURE)
    return Conduct(main.lifetime_cap, frozenset(insists_on), main.announce_recovery, main.third_party == "auto")


def is_way_in(address: IPAddress, is_local: Callable[[IPv4Address], bool]) -> TypeGuard[IPv4Address]:
    """Whether connections can come in at this address: the rules of a grant must not catch other traffic."""
    if not isinstance(address, IPv4Address) or is_local(address):
        return False
    return not (address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified)


class Wishes:
    """Reads requests in the light of the line: its server, and our address as that sees it."""

    def __init__(self, line: ServerLine) -> None:
        self._line = line

    def may_be_told(self, request: UpstreamRequest) -> bool:
        """Whether the server may be sent this: others' mappings only where it is trusted (RFC 6970 section 6).

        Requests for an anycast address can leak (RFC 7723), so somebody has to have answered there.
        """
        engine, server = self._line.engine, self._line.server
        if engine is None or server is None:
            return False
        if isinstance(request.internal, Endpoint) and not server.trusted:
            return False
        return server.origin is not Origin.ANYCAST or engine.state is ServerState.ACTIVE

    def is_of_another_server(self, request: UpstreamRequest) -> bool:
        """Whether what was granted for it is held by a server that is not asked now."""
        server = self._line.server
        return request.grant is not None and server is not None and not server.made(request.grant.server)

    def are_met(self, request: UpstreamRequest, grant: Grant) -> bool:
        """Whether the request was granted this last, by the server that is asked, for the tuple that is ours now."""
        if not self._line.wan_is_up or request.grant is None or not request.grant.leads_as(grant):
            return False
        return grant.internal == self.internal_address(request) and not self.is_of_another_server(request)

    def internal_address(self, request: UpstreamRequest) -> IPv4Address:
        """As the server sees it."""
        if isinstance(request.internal, Endpoint):
            return request.internal.address
        return self._line.internal or UNKNOWN_ADDRESS

    def tuple(self, request: UpstreamRequest) -> tuple[Protocol, IPv4Address, int]:
        """What a server knows at most one mapping of (RFC 6887 section 11.1)."""
        return request.protocol, self.internal_address(request), request.internal_port

    def wanted(self, request: UpstreamRequest) -> WantedMapping:
        """A nonce belongs to one internal tuple at one server, and so does the address that was assigned to it.

        The port that an aliased request was granted is asked for again wherever it may be had.
        """
        internal, grant, port = self.internal_address(request), request.grant, request.external_port
        if grant and self.is_of_another_server(request):
            grant = None
        if grant and request.aliased:
            port = grant.external.port
        if grant and grant.internal != internal:
            grant = None
        return WantedMapping(
            key=request.id,
            protocol=request.protocol,
            internal_address=internal,
            internal_port=request.internal_port,
            external_port=port,
            exact=request.exact and not request.aliased,
            until=request.until,
            external_address=grant.external.address if grant else None,
            remote_hosts=request.remote_hosts,
            description=request.description,
            nonce=grant.nonce if grant else b"",
            new_nonce=request.nonce,
        )
