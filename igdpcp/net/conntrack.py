# SPDX-License-Identifier: Apache-2.0
"""How long the kernel's connection tracking keeps a flow that is silent."""

from __future__ import annotations

from pathlib import Path

from igdpcp.errors import OurFault
from igdpcp.model import Protocol

_SETTINGS = Path("/proc/sys/net/netfilter")
_ESTABLISHED = {
    Protocol.TCP: "nf_conntrack_tcp_timeout_established",
    Protocol.UDP: "nf_conntrack_udp_timeout_stream",
}


def established_timeout(protocol: Protocol) -> int:
    """Seconds after which a flow that had packets in both directions is forgotten; raises OurFault."""
    try:
        return int((_SETTINGS / _ESTABLISHED[protocol]).read_text())
    except (OSError, ValueError) as error:
        raise OurFault("the kernel tells no connection tracking timeouts: is nf_conntrack loaded?") from error
