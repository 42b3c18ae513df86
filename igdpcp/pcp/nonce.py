# SPDX-License-Identifier: Apache-2.0
"""Mapping nonces that need no storage: one secret yields the nonce of every mapping (RFC 6887 section 11.2)."""

from __future__ import annotations

import hashlib
import hmac
import struct

from igdpcp.model import IPAddress, Protocol
from igdpcp.pcp.message import NONCE_LENGTH
from igdpcp.pcp.options import pack_address


def derive(secret: bytes, server_identity: str, protocol: Protocol, internal: IPAddress, port: int) -> bytes:
    """The 96-bit nonce of one internal tuple at one server.

    ``server_identity`` names the server, not one of its addresses, which share their nonces (RFC 7488 section 4).
    """
    internal_tuple = struct.pack("!B16sH", protocol, pack_address(internal), port)
    return hmac.digest(secret, internal_tuple + server_identity.encode(), hashlib.sha256)[:NONCE_LENGTH]
