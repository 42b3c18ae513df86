# SPDX-License-Identifier: Apache-2.0
"""A packet filter for a UDP socket: what some hosts send is dropped by the kernel, before this process wakes for it."""

from __future__ import annotations

import socket
import struct
from array import array
from collections.abc import Collection, Sequence

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
    program = [step for source in sources for step in _drop(source)]
    attach(sock, [*program, instruction(_RETURN, _PASS)])


def attach(sock: socket.socket, program: Sequence[bytes]) -> None:
    """Let this program say what comes to the socket; raises OSError, and then the one that was there still does."""
    code = array("B", b"".join(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program), code.buffer_info()[0]))


def instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """One instruction; of a jump, how many it leaves out when the comparison holds, and when not."""
    return _INSTRUCTION.pack(code, then, otherwise, value)


def _drop(source: IPAddress) -> list[bytes]:
    """Instructions that end with a drop when the datagram is of that source, and go on behind them when not."""
    start = _NETWORK_HEADER + _SOURCE_OFFSET[source.version]
    words = struct.unpack(f">{len(source.packed) // _WORD}I", source.packed)
    found = []
    for place, word in enumerate(words):
        rest = 2 * (len(words) - place) - 1  # instructions from the comparison to the end
        found.append(instruction(_LOAD_WORD, start + place * _WORD))
        found.append(instruction(_JUMP_IF_EQUAL, word, otherwise=rest))
    return [*found, instruction(_RETURN, _DROP)]
