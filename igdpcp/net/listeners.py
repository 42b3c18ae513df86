# SPDX-License-Identifier: Apache-2.0
"""Which ports the router's own programs listen on, asked of the kernel (sock_diag(7)) without disturbing anybody.

The question is the one that the kernel answers for each packet: which socket would get what a stranger sends to this
address and port, when it comes by this device? So sockets of all addresses count as well as those of one, those of
IPv6 that take IPv4 too, and those of another device do not.

What the router's programs send out holds no port here. Its answers belong to a flow that connection tracking knows, and
never come to a redirect; only who waits for strangers loses something by one.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address

from igdpcp.errors import OurFault
from igdpcp.model import Protocol

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
NLM_F_REQUEST = 0x1  # netlink(7)
NLMSG_ERROR = 2
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = b"\xff" * 8  # linux/inet_diag.h: INET_DIAG_NOCOOKIE
_ANSWER_SPACE = 4096
_HEADER = struct.Struct("=LHHLL")  # netlink(7): struct nlmsghdr
_QUESTION = struct.Struct("=BBBxI")  # linux/inet_diag.h: struct inet_diag_req_v2, as far as its id
_PORTS = struct.Struct("!HH")  # struct inet_diag_sockid: source and destination port, in network order
_ADDRESSES = struct.Struct("=16s16sI")  # its source and destination address, and the device's index
_ERROR = struct.Struct("=l")


class Listeners:
    """Of what comes by one device. Use as a context manager, in one thread.

    A question takes some microseconds, however many sockets there are.
    """

    def __init__(self, device: str) -> None:
        """Raises OurFault where the kernel has no netlink for sockets."""
        self._device_index = _index(device)
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG)
        except OSError as error:
            raise OurFault(_cannot(error)) from error

    def __enter__(self) -> Listeners:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def hold(self, protocol: Protocol, address: IPv4Address, port: int) -> bool:
        """Whether a program would get what comes for this address and port; raises OurFault."""
        try:
            return self._answer(protocol, address, port) == 0
        except OSError as error:
            raise OurFault(_cannot(error)) from error

    def _answer(self, protocol: Protocol, address: IPv4Address, port: int) -> int:
        """0 when there is such a socket, ENOENT when there is none; raises OSError."""
        self._socket.send(_question(protocol, address, port, self._device_index))
        data = self._socket.recv(_ANSWER_SPACE)  # the kernel has answered before send() returns
        _, kind, *_ = _HEADER.unpack_from(data)
        if kind != NLMSG_ERROR:
            return 0
        code = -_ERROR.unpack_from(data, _HEADER.size)[0]
        if code != errno.ENOENT:
            raise OSError(code, os.strerror(code))
        return int(code)


def check() -> None:
    """Raises OurFault where the kernel cannot tell listeners: its answer is then that there are none."""
    for protocol, kind in ((Protocol.TCP, socket.SOCK_STREAM), (Protocol.UDP, socket.SOCK_DGRAM)):
        with socket.socket(socket.AF_INET, kind) as known, Listeners("lo") as listeners:
            known.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
            known.bind(("", 0))
            if protocol is Protocol.TCP:
                known.listen(1)
            if not listeners.hold(protocol, IPv4Address("127.0.0.1"), known.getsockname()[1]):
                raise OurFault(_cannot(OSError(errno.ENOENT, os.strerror(errno.ENOENT))))


def _question(protocol: Protocol, address: IPv4Address, port: int, device_index: int) -> bytes:
    """For UDP the kernel takes source and destination the other way round than for TCP."""
    here, there = (address.packed, port), (b"", 0)
    source, destination = (here, there) if protocol is Protocol.TCP else (there, here)
    body = _QUESTION.pack(socket.AF_INET, protocol, 0, _ANY_STATE) + _PORTS.pack(source[1], destination[1])
    body += _ADDRESSES.pack(source[0], destination[0], device_index) + _NO_COOKIE
    return _HEADER.pack(_HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0) + body


def _index(device: str) -> int:
    """0, which sockets of one device do not hear, where there is no such device now."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


def _cannot(error: OSError) -> str:
    return f"the kernel does not tell who listens on a port ({error.strerror}): install kmod-inet-diag"
