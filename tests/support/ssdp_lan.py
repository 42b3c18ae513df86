# SPDX-License-Identifier: Apache-2.0
"""A LAN of two network namespaces, a router and one host, both with IPv4 and IPv6; and SSDP on it."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import subprocess
import time
from collections import namedtuple
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path
from tempfile import TemporaryDirectory

from igdpcp.daemon.boot_id import BootId
from igdpcp.daemon.lan_hosts import by_address
from igdpcp.daemon.ssdp_server import SsdpServer
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_GROUP, SSDP_GROUP_LINK, SSDP_GROUP_SITE, SSDP_PORT
from igdpcp.upnp.description import DeviceIdentity, documents, udns_from, with_config_id
from igdpcp.upnp.ssdp import GATEWAY, Presence, alive, answers, parse_search, search_request
from tests.lab.namespaces import Host

ROUTER, CLIENT, CLIENT_TOO = (IPv4Address(f"192.168.77.{end}") for end in (1, 2, 3))
ROUTER_LINK, CLIENT_LINK = IPv6Address("fe80::77:1"), IPv6Address("fe80::77:2")
ROUTER_ULA, CLIENT_ULA = IPv6Address("fd00:77::1"), IPv6Address("fd00:77::2")
ROUTER_GUA, CLIENT_GUA = IPv6Address("2600:77::1"), IPv6Address("2600:77::2")
DEVICE, CLIENT_DEVICE = "br-lan", "eth0"
PREFIX_LENGTH = {4: 24, 6: 64}
IDENTITY = with_config_id(DeviceIdentity("igdpcp", "1", udns_from("machine"), 7, "", "1.2.3"))
STRANGER = with_config_id(DeviceIdentity("other", "1", udns_from("another"), 7, "", "1.2.3"))
BOOT_ID = 7  # of the first boot instance
LOCATION = f"LOCATION: http://{ROUTER}:5000/rootDesc.xml\r\n".encode()
SET = 10  # messages that announce one gateway
GOODBYE = 18  # messages that take back what can have been found in both trees
IGD2 = GATEWAY.removesuffix("1") + "2"

Homes = namedtuple("Homes", "router client")


def lan(address):
    return Lan("lan", DEVICE, ip_interface(f"{address}/{PREFIX_LENGTH[address.version]}"))


@contextmanager
def two_namespaces():
    """The router's and the host's, with all the addresses above."""
    with TemporaryDirectory() as directory:
        names = [f"ssdp{os.getpid()}{end}" for end in "rc"]
        hosts = [Host(n, n, str(a), Path(directory)) for n, a in zip(names, (ROUTER, CLIENT), strict=True)]
        try:
            for name in names:
                subprocess.run(["ip", "netns", "add", name], check=True)
            link = ["ip", "-n", names[0], "link", "add", DEVICE, "type", "veth", "peer", CLIENT_DEVICE]
            subprocess.run([*link, "netns", names[1]], check=True)
            addresses = ((ROUTER, ROUTER_LINK, ROUTER_ULA, ROUTER_GUA), (CLIENT, CLIENT_LINK, CLIENT_ULA, CLIENT_GUA))
            for host, device, own in zip(hosts, (DEVICE, CLIENT_DEVICE), addresses, strict=True):
                host.sysctl({f"ipv6.conf.{device}.{key}": "0" for key in ("accept_dad", "accept_ra", "autoconf")})
                host.run(["ip", "link", "set", device, "addrgenmode", "none", "up"])
                host.run(["ip", "link", "set", "lo", "up"])
                for address in own:
                    add_address(host, device, address)
            add_address(hosts[1], CLIENT_DEVICE, CLIENT_TOO)
            hosts[1].run(["ip", "route", "add", "default", "via", str(ROUTER)])
            yield Homes(*hosts)
        finally:
            for name in names:
                subprocess.run(["ip", "netns", "del", name], check=False)


def add_address(host, device, address):
    host.run(["ip", "addr", "add", f"{address}/{PREFIX_LENGTH[address.version]}", "dev", device])


def in_router(homes, scenario):
    """Run a coroutine in the router's namespace."""
    return homes.router.inside(lambda: asyncio.run(scenario()))


def client_socket(homes, port=0, address=CLIENT):
    """A socket of the host on the LAN with that address; with port 1900 it hears the SSDP groups."""
    v6 = address.version == 6
    sock = homes.client.socket(socket.SOCK_DGRAM, socket.AF_INET6 if v6 else socket.AF_INET)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    index = homes.client.inside(lambda: socket.if_nametoindex(CLIENT_DEVICE))
    if v6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        groups = [(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group.packed + struct.pack("@I", index))
                  for group in (SSDP_GROUP_LINK, SSDP_GROUP_SITE)]  # fmt: skip
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, address.packed)
        groups = [(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, SSDP_GROUP.packed + address.packed)]
    sock.bind(("" if port else str(address), port, 0, index)[: 4 if v6 else 2])
    for group in groups if port else ():
        sock.setsockopt(*group)
    return sock


async def received(sock, wanted, seconds=5.0):
    """Datagrams until one of them holds ``wanted``; TimeoutError when none does."""
    loop = asyncio.get_running_loop()
    datagrams = []
    async with asyncio.timeout(seconds):
        while not any(wanted in data for data, _ in datagrams):
            datagrams.append(await loop.sock_recvfrom(sock, 4096))
    return datagrams


def everything_heard(sock):
    """What lies in the socket now."""
    heard = []
    while True:
        try:
            heard.append(sock.recv(4096))
        except BlockingIOError:
            return heard


def search(sock, target=GATEWAY, to=SSDP_GROUP):
    """Search as the socket's host."""
    scope = (0, sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF)) if to.version == 6 else ()
    sock.sendto(search_request(target, 1), (str(to), SSDP_PORT, *scope))


@asynccontextmanager
async def advertising(
    *lans,
    force=False,
    igd_version="auto",
    admit=lambda address, device: address == CLIENT,
    host_of=by_address,
    searches_per_second=100,
    wall_clock=time.time,
    ahead=(),
):
    """The SSDP server on these LANs (by default the IPv4 one), which admits the host; it looks around ``ahead``."""
    server = SsdpServer(
        identity=IDENTITY,
        boot_id=first_boot_id(),
        http_port=5000,
        igd_version=igd_version,
        notify_interval=900,
        searches_per_second=searches_per_second,
        force=force,
        admit=admit,
        rng=random.Random(1),
        host_of=host_of,
        wall_clock=wall_clock,
    )
    try:
        if ahead:
            server.look_around(ahead)
        assert await server.serve(lans or [lan(ROUTER)]) == {}
        yield server
    finally:
        await server.stop()


def first_boot_id():
    """BOOT_ID, and no file is left."""
    with TemporaryDirectory() as state_dir:
        Path(state_dir, "boot_id").write_text(str(BOOT_ID - 1))
        return BootId(Path(state_dir), lambda: 0.0)


def everybody(address, device):
    """Admits every host but the router itself."""
    return address not in (ROUTER, ROUTER_LINK, ROUTER_ULA, ROUTER_GUA)


def fields(message):
    """The header fields of an SSDP message."""
    return dict(line.split(": ", 1) for line in message.decode().split("\r\n")[1:] if ": " in line)


def stranger_at(address, port=80):
    """Another gateway as it is found at that address."""
    return Presence(STRANGER, f"http://{address}:{port}", "1", f"{SSDP_GROUP}:{SSDP_PORT}")


def announce(sock, address, location=None):
    """Say from there to the router that another gateway is at that URL."""
    stranger = stranger_at(address)
    presence = replace(stranger, location_base=location) if location else stranger
    sock.sendto(alive(presence)[0], (str(ROUTER), SSDP_PORT))


@asynccontextmanager
async def another_gateway(sock, web, address=CLIENT):
    """A gateway that answers every search with ``sock``; ``web`` is its TCP socket on ``address``.

    Gives a function that announces it.
    """
    loop = asyncio.get_running_loop()

    def answer():
        data, sender = sock.recvfrom(4096)
        if wanted := parse_search(data):
            for reply in answers(wanted, stranger_at(address)):
                sock.sendto(reply, sender)

    def announce():
        sock.sendto(alive(stranger_at(address))[0], (str(SSDP_GROUP), SSDP_PORT))

    async with described(web, address):
        loop.add_reader(sock, answer)
        try:
            yield announce
        finally:
            loop.remove_reader(sock)
            sock.close()


async def describe(reader, writer):
    """Answer one request for the description of that gateway."""
    path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
    document = documents(STRANGER).get(path)
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + document if document else b"HTTP/1.0 404 no " + path.encode())
    writer.close()


@asynccontextmanager
async def described(web, address, describe=describe):
    """What that host serves at port 80 with the socket ``web``."""
    web.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    web.bind((str(address), 80))
    server = await asyncio.start_server(describe, sock=web)
    try:
        yield
    finally:
        server.close()
