# SPDX-License-Identifier: Apache-2.0
"""The sockets of a PCP client: one connected to the server, one for its multicast announcements."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import PCP_SERVER_PORT, IPAddress
from igdpcp.net.sockets import pcp_announce_listener, udp_connected

LOG = logging.getLogger("igdpcp.upstream")
PACKET_SPACE = 2048  # more than PCP's 1100, so that a longer datagram is seen to be longer
DATAGRAMS_PER_WAKE = 64  # what one wake-up reads before other work has its turn

_NOBODY_THERE = (errno.ECONNREFUSED, errno.EHOSTUNREACH)  # RFC 7488 section 3: hard errors; others are our own
_IPV6_ADDRESSES = Path("/proc/net/if_inet6")  # proc(5): the address first, the device last

Source = tuple[str, int]


class PcpSockets:
    """``received`` gets every datagram with its source, ``woken`` comes after the datagrams of one wake-up.

    ``unreachable`` is called when the kernel or an ICMP error refused a datagram; with True, when it says that nobody
    listens at the server's address.
    """

    def __init__(
        self,
        received: Callable[[bytes, Source], None],
        woken: Callable[[], None],
        unreachable: Callable[[bool], None],
        log_wire: bool,
    ) -> None:
        self._received = received
        self._woken = woken
        self._unreachable = unreachable
        self._log_wire = log_wire
        self._loop = asyncio.get_running_loop()
        self._client: socket.socket | None = None
        self._listener: socket.socket | None = None
        self.refused = 0  # datagrams that the kernel or an ICMP error refused

    def open(self, device: str, server: IPAddress) -> IPAddress:
        """Connect to the server through the device; returns our address there. Raises OurFault.

        An IPv6 server may be elsewhere than behind the IPv4 WAN device (DS-Lite); then the kernel's route counts.
        """
        self._client, through = self._connected(device, server)
        self._loop.add_reader(self._client, self._readable, self._client)
        self._listen(through, server)
        return _own_address(self._client)

    def source(self, device: str, server: IPAddress) -> IPAddress:
        """The address that ``open`` would return now. Raises OurFault."""
        with self._connected(device, server)[0] as sock:
            return _own_address(sock)

    @staticmethod
    def _connected(device: str, server: IPAddress) -> tuple[socket.socket, str]:
        try:
            return udp_connected(device, server, PCP_SERVER_PORT), device
        except OurFault:
            if server.version == 4:
                raise
        sock = udp_connected("", server, PCP_SERVER_PORT)
        return sock, _device_of(_own_address(sock))

    def _listen(self, device: str, server: IPAddress) -> None:
        try:
            if server.version == 6 and not device:
                raise OurFault(f"it is not known behind which device {server} is")
            self._listener = pcp_announce_listener(device, server.version)
            self._loop.add_reader(self._listener, self._readable, self._listener)
        except OurFault as fault:
            LOG.warning(line("no_announcements", reason=fault))

    def close(self) -> None:
        for sock in (self._client, self._listener):
            if sock:
                self._loop.remove_reader(sock)
                sock.close()
        self._client = self._listener = None

    @property
    def port(self) -> int | None:
        """Our UDP port, None while closed."""
        return int(self._client.getsockname()[1]) if self._client else None

    def send(self, data: bytes) -> None:
        """Send to the server, if there is one; what is refused is counted, and asked again by retransmission."""
        if self._log_wire:
            LOG.info("%s bytes=%s", line("pcp_sent"), data.hex())  # line() would cut it short
        if self._client is None:
            return
        try:
            self._client.send(data)
        except OSError as error:
            LOG.debug(line("pcp_not_sent", error=error))
            self._refused(error)

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(DATAGRAMS_PER_WAKE):
            try:
                data, source = sock.recvfrom(PACKET_SPACE)
            except BlockingIOError:
                break
            except OSError as error:  # what an ICMP message said
                self._refused(error)
                break
            self._take(data, source)
        self._woken()

    def _refused(self, error: OSError) -> None:
        self.refused += 1
        self._unreachable(error.errno in _NOBODY_THERE)

    def _take(self, data: bytes, source: Any) -> None:
        if self._log_wire:
            LOG.info("%s bytes=%s", line("pcp_received", source=source[0]), data.hex())
        self._received(data, (source[0], source[1]))


def _own_address(sock: socket.socket) -> IPAddress:
    return ip_address(sock.getsockname()[0])


def _device_of(address: IPAddress) -> str:
    """The device that has this IPv6 address; "" when there is none, or no telling."""
    assert isinstance(address, IPv6Address)
    try:
        rows = _IPV6_ADDRESSES.read_text().splitlines()
    except OSError:
        return ""
    return next((row.split()[-1] for row in rows if row.startswith(address.packed.hex())), "")
