# SPDX-License-Identifier: Apache-2.0
"""The link-layer address of a host on a link, as the kernel's neighbour table has it."""

from __future__ import annotations

import socket
import struct

from igdpcp.model import IPAddress

NLM_F_REQUEST = 0x1  # netlink(7)
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30  # linux/rtnetlink.h
NDA_DST, NDA_LLADDR = 1, 2  # linux/neighbour.h
NUD_NOARP = 0x40
_ATTRIBUTE_TYPE = 0x3FFF  # linux/netlink.h: NLA_TYPE_MASK
_ALIGNMENT = 4
_ANSWER_SPACE = 4096
_HEADER = struct.Struct("=LHHLL")  # netlink(7): struct nlmsghdr
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # linux/neighbour.h: struct ndmsg
_ATTRIBUTE = struct.Struct("=HH")


def link_layer_address(device: str, address: IPAddress) -> bytes:
    """The neighbour's address on the link; empty where there is none, it is not known, or the kernel cannot tell.

    Takes some microseconds, however many neighbours there are; Linux before 5.0 cannot tell.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        index = socket.if_nametoindex(device)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as sock:
            sock.send(_question(family, index, address))
            return _answer(sock.recv(_ANSWER_SPACE))  # the kernel has answered before send() returns
    except OSError:
        return b""


def _question(family: int, index: int, address: IPAddress) -> bytes:
    wanted = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), NDA_DST) + address.packed
    body = _NEIGHBOUR.pack(family, index, 0, 0, 0) + wanted
    return _HEADER.pack(_HEADER.size + len(body), RTM_GETNEIGH, NLM_F_REQUEST, 0, 0) + body


def _answer(data: bytes) -> bytes:
    """The link-layer address in the kernel's answer; empty when it is an error, or of a link that has none."""
    _, kind, *_ = _HEADER.unpack_from(data)
    if kind != RTM_NEWNEIGH:
        return b""
    _, _, state, *_ = _NEIGHBOUR.unpack_from(data, _HEADER.size)
    at = _HEADER.size + _NEIGHBOUR.size
    while not state & NUD_NOARP and at + _ATTRIBUTE.size <= len(data):
        length, attribute = _ATTRIBUTE.unpack_from(data, at)
        if attribute & _ATTRIBUTE_TYPE == NDA_LLADDR:
            return data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % _ALIGNMENT
    return b""
