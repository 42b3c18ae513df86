# SPDX-License-Identifier: Apache-2.0
"""The mapping that is made only to learn the external address (RFC 6970 section 5.7)."""

from __future__ import annotations

from ipaddress import IPv4Address

from igdpcp.model import Protocol, UpstreamRequest
from igdpcp.pcp.client import WantedMapping

PROBE_ID = "probe"
PROBE_PORT = 9  # discard, UDP
PROBE_LEASE = 120  # seconds; servers raise anything less to this (RFC 6887 section 15)


def probe(internal: IPv4Address, now: float) -> WantedMapping:
    """A short mapping of this address, at whatever external port."""
    return WantedMapping(
        key=PROBE_ID,
        protocol=Protocol.UDP,
        internal_address=internal,
        internal_port=PROBE_PORT,
        external_port=0,
        exact=False,
        until=now + PROBE_LEASE,
    )


def takes_its_place(request: UpstreamRequest) -> bool:
    """Whether a mapping has the internal tuple of the probe, and so tells the address as well."""
    return request.protocol is Protocol.UDP and request.internal.port == PROBE_PORT
