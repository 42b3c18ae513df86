# SPDX-License-Identifier: Apache-2.0
"""NAT-PMP as far as a PCP client meets it: the refusal of a server that knows nothing newer (RFC 6886 section 3.5)."""

from __future__ import annotations

NATPMP_VERSION = 0
UNSUPPORTED_VERSION = b"\x00\x01"
SHORTEST_REFUSAL = 4  # the field has servers that leave the epoch out


def is_natpmp_refusal(octets: bytes) -> bool:
    """Whether a NAT-PMP server refuses a PCP request by this.

    Octet 1 does not count: RFC 6886 draws it as 0, servers in the field send 128 + the request's opcode.
    """
    return len(octets) >= SHORTEST_REFUSAL and octets[0] == NATPMP_VERSION and octets[2:4] == UNSUPPORTED_VERSION
