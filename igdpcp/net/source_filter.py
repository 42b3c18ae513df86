# SPDX-License-Identifier: Apache-2.0
"""A packet filter for a UDP socket: what some hosts send is dropped by the kernel, before this process wakes for it."""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Collection

from igdpcp.model import IPAddress

SOURCES_LIMIT = 16  # hosts that a filter drops: it is walked for every datagram

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # asm-generic/socket.h
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: BPF_LD|BPF_W|BPF_ABS, ...
_NETWORK_HEADER = 0xFFF00000  # linux/filter.h: SKF_NET_OFF; from there on an offset counts from the IP header
_SOURCE_OFFSET = {4: 12, 6: 8}  # RFC 791 section 3.1, RFC 8200 section 3
_WORD = 4
_DROP, _PASS = 0, 0xFFFFFFFF  # bytes of the datagram that are kept
_INSTRUCTION = struct.Struct("=HBBI")  # linux/filter.h: struct sock_filter
_PROGRAM = struct.Struct("@HP")  # struct sock_fprog


def drop_sources(sock: socket.socket, sources: Collection[IPAddress]) -> None:
    """Drop what these hosts send to the socket, and nothing else; the addresses are of the socket's family.

    Raises OSError; the filter that was there is then still there.
    """
    if not sources:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        return
    instructions = [instruction for source in sources for instruction in _drop(source)]
    instructions.append(_INSTRUCTION.pack(_RETURN, 0, 0, _PASS))
    code = array("B", b"".join(instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(instructions), code.buffer_info()[0]))


def _drop(source: IPAddress) -> list[bytes]:
    """Instructions that end with a drop when the datagram is of that source, and go on behind them when not."""
    start = _NETWORK_HEADER + _SOURCE_OFFSET[source.version]
    words = struct.unpack(f">{len(source.packed) // _WORD}I", source.packed)
    found = []
    for place, word in enumerate(words):
        rest = 2 * (len(words) - place) - 1  # instructions from the comparison to the end
        found.append(_INSTRUCTION.pack(_LOAD_WORD, 0, 0, start + place * _WORD))
        found.append(_INSTRUCTION.pack(_JUMP_IF_EQUAL, 0, rest, word))
    return [*found, _INSTRUCTION.pack(_RETURN, 0, 0, _DROP)]
