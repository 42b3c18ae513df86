# SPDX-License-Identifier: Apache-2.0
"""Every socket that the program opens: bound to its device and non-blocking, or OurFault with a text to act on."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from igdpcp.errors import OurFault
from igdpcp.model import PCP_CLIENT_PORT, PCP_SERVER_PORT, IPAddress, Protocol

SSDP_GROUP = IPv4Address("239.255.255.250")  # UPnP Device Architecture 1.1 section 1
SSDP_GROUP_LINK = IPv6Address("ff02::c")  # UPnP Device Architecture 1.1 annex A
SSDP_GROUP_SITE = IPv6Address("ff05::c")
SSDP_GROUPS = (SSDP_GROUP, SSDP_GROUP_LINK, SSDP_GROUP_SITE)
SSDP_PORT = 1900
SSDP_TTL = 2  # UPnP Device Architecture 1.1 section 1.2
SSDP_HOPS = 10  # UPnP Device Architecture 2.0 annex A, of the site-local group
ANNOUNCE_GROUP = IPv4Address("224.0.0.1")  # RFC 6887 section 14.1.1
ANNOUNCE_GROUP_6 = IPv6Address("ff02::1")
ANNOUNCE_TTL = 1
HTTP_BACKLOG = 128

_LIKELY_HOLDER = {SSDP_PORT: "miniupnpd or a media server", PCP_CLIENT_PORT: "miniupnpd or another PCP client"}
_KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


def udp_connected(device: str, address: IPAddress, port: int) -> socket.socket:
    """A UDP socket with a random source port that talks to one peer only, through ``device`` ("": as routed)."""

    def prepare(sock: socket.socket) -> None:
        _bind_device(sock, device)
        sock.connect(_socket_address(address, port, device))

    return _made(_family(address), socket.SOCK_DGRAM, prepare, f"cannot send to {address} port {port}{_via(device)}")


def ssdp_listener(device: str, family: socket.AddressFamily) -> socket.socket:
    """A socket for what is sent to the SSDP groups of a family on one LAN.

    Other SSDP programs of the router can have the port too.
    """

    def prepare(sock: socket.socket) -> None:
        _share_port(sock)
        _bind_device(sock, device)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", SSDP_PORT))
        for group in SSDP_GROUPS:
            if _family(group) == family:
                _join(sock, group, device)

    what = f"cannot listen for UPnP searches on {device} UDP port {SSDP_PORT}"
    return _made(family, socket.SOCK_DGRAM, prepare, what, SSDP_PORT)


def ssdp_speaker(device: str, address: IPAddress) -> socket.socket:
    """The socket of one of the router's addresses: sends to ``ssdp_group`` and answers, hears what is sent to it."""

    def prepare(sock: socket.socket) -> None:
        _share_port(sock)
        _bind_device(sock, device)
        _bind(sock, address, SSDP_PORT, device)
        _aim(sock, address, device)

    what = f"cannot announce the gateway on {address} ({device}) UDP port {SSDP_PORT}"
    return _made(_family(address), socket.SOCK_DGRAM, prepare, what, SSDP_PORT)


def ssdp_searcher(device: str, address: IPv4Address) -> socket.socket:
    """A socket that searches one LAN from ``address`` and a random port, and receives the answers."""

    def prepare(sock: socket.socket) -> None:
        _bind_device(sock, device)
        sock.bind((str(address), 0))
        _aim(sock, address, device)

    what = f"cannot search for other gateways on {address} ({device})"
    return _made(socket.AF_INET, socket.SOCK_DGRAM, prepare, what)


def ssdp_group(address: IPAddress) -> IPAddress:
    """The group to which the gateway is announced from ``address``: one as far-reaching as the address itself."""
    if address.version == 4:
        return SSDP_GROUP
    return SSDP_GROUP_LINK if address.is_link_local else SSDP_GROUP_SITE


def http_listener(address: IPAddress, port: int, device: str) -> socket.socket:
    """A listening TCP socket of the LAN address, reachable through ``device`` only ("": any); port 0: a free one."""

    def prepare(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind_device(sock, device)
        _bind(sock, address, port, device)
        sock.listen(HTTP_BACKLOG)

    what = f"cannot listen on {address} TCP port {port} (option http_port)"
    return _made(_family(address), socket.SOCK_STREAM, prepare, what, port)


def event_sender(device: str, address: IPAddress) -> socket.socket:
    """A TCP socket that will carry an event from ``address`` through ``device`` ("": as routed); connecting is left."""

    def prepare(sock: socket.socket) -> None:
        _bind_device(sock, device)
        _bind(sock, address, 0, device)

    return _made(_family(address), socket.SOCK_STREAM, prepare, f"cannot send events from {address}{_via(device)}")


def pcp_announce_listener(device: str, version: int = 4) -> socket.socket:
    """A socket for the multicast ANNOUNCE of the PCP servers behind ``device``; ``version``: 4 or 6, of their IP."""
    group: IPAddress = ANNOUNCE_GROUP if version == 4 else ANNOUNCE_GROUP_6

    def prepare(sock: socket.socket) -> None:
        _share_port(sock)
        _bind_device(sock, device)
        sock.bind(_socket_address(group, PCP_CLIENT_PORT, device))
        _join(sock, group, device)

    what = f"cannot listen for PCP announcements on {device} UDP port {PCP_CLIENT_PORT}"
    return _made(_family(group), socket.SOCK_DGRAM, prepare, what, PCP_CLIENT_PORT)


def pcp_listener(device: str, address: IPAddress) -> socket.socket:
    """The socket of a LAN address at which hosts ask in PCP and NAT-PMP; announces to the hosts of ``device``, too."""

    def prepare(sock: socket.socket) -> None:
        _bind_device(sock, device)
        _bind(sock, address, PCP_SERVER_PORT, device)
        _aim(sock, address, device, ANNOUNCE_TTL)

    what = f"cannot listen for PCP and NAT-PMP on {address} ({device}) UDP port {PCP_SERVER_PORT}"
    return _made(_family(address), socket.SOCK_DGRAM, prepare, what, PCP_SERVER_PORT)


def port_in_use(protocol: Protocol, address: IPv4Address, port: int) -> bool:
    """Whether a program of this router holds the port on that address; raises OurFault when it cannot be told."""
    with socket.socket(socket.AF_INET, _KINDS[protocol]) as sock:
        try:
            sock.bind((str(address), port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise OurFault(f"cannot test {protocol.name} port {port} of {address}: {error.strerror}") from error
    return False


def _made(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    prepare: Callable[[socket.socket], None],
    what: str,
    port: int = 0,
) -> socket.socket:
    """A non-blocking socket after ``prepare``; OurFault starts with ``what`` and leaves nothing open."""
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise OurFault(f"{what}: {error.strerror}") from error
    try:
        prepare(sock)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OurFault(f"{what}: {_reason(error, port)}") from error
    return sock


def _reason(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"address in use, probably by {_LIKELY_HOLDER.get(port, 'miniupnpd')}: stop it"
    if error.errno == errno.ENODEV:
        return "no such network device"
    if error.errno == errno.EPERM:
        return "not permitted (CAP_NET_RAW is needed)"
    return error.strerror or str(error)


def _via(device: str) -> str:
    return f" through {device}" if device else ""


def _share_port(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _bind_device(sock: socket.socket, device: str) -> None:
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _bind(sock: socket.socket, address: IPAddress, port: int, device: str) -> None:
    if address.version == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(_socket_address(address, port, device))


def _aim(sock: socket.socket, address: IPAddress, device: str, ttl: int = SSDP_TTL) -> None:
    """Make what is sent to a group leave through ``device``, and from ``address``."""
    if isinstance(address, IPv4Address):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _membership(IPv4Address(0), device, address))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(device))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, SSDP_HOPS)


def _membership(group: IPv4Address, device: str, address: IPv4Address) -> bytes:
    """A struct ip_mreqn (ip(7))."""
    index = socket.if_nametoindex(device) if device else 0
    return group.packed + address.packed + struct.pack("@i", index)


def _join(sock: socket.socket, group: IPAddress, device: str) -> None:
    if isinstance(group, IPv4Address):
        option = _membership(group, device, IPv4Address(0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, option)
    else:  # a struct ipv6_mreq (ipv6(7))
        option = group.packed + struct.pack("@I", socket.if_nametoindex(device))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, option)


def _socket_address(address: IPAddress, port: int, device: str) -> tuple[str, int] | tuple[str, int, int, int]:
    if isinstance(address, IPv6Address):
        scope = socket.if_nametoindex(device) if device and (address.is_link_local or address.is_multicast) else 0
        return str(address), port, 0, scope
    return str(address), port
