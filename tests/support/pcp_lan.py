# SPDX-License-Identifier: Apache-2.0
"""A LAN inside the process, with the PCP server of a hall on it: datagrams of any host, at once and on no network."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_interface
from typing import Any

import pytest

from igdpcp.daemon import pcp_server
from igdpcp.daemon.pcp_server import PcpServer
from igdpcp.errors import OurFault
from igdpcp.model import IPAddress
from igdpcp.net.router import Lan
from tests.support.hall import A, Hall, settle

ROUTER = "192.168.1.1"
EVERYBODY = "224.0.0.1"
HOME = Lan("lan", "br-lan", ip_interface(f"{ROUTER}/24"))
GUEST = Lan("guest", "br-guest", ip_interface("192.168.1.129/25"))
_lans = itertools.count()


class _Datagrams(socket.socket):
    """Looks like a UDP socket of ``address`` and ``port``; other hosts of this LAN reach it by them."""

    def __init__(self, lan: bytes, address: str, port: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._lan = lan
        self.setblocking(False)
        self.bind(self._name(address, port))

    def _name(self, address: str, port: int) -> bytes:
        return b"\0%b/%b/%d" % (self._lan, address.encode(), port)

    def recvfrom(self, size: int, *_: Any) -> tuple[bytes, Any]:
        octets, name = super().recvfrom(size)
        address, port = name.rsplit(b"/", 2)[1:]
        return octets, (address.decode(), int(port))

    def sendto(self, octets: Any, to: Any, *_: Any) -> int:
        return super().sendto(octets, self._name(*to))

    def setsockopt(self, *_: Any) -> None:
        """There is no IP here whose options could be set."""


class PcpHost:
    """A host of the LAN, with one socket."""

    def __init__(self, lan: bytes, address: str, port: int) -> None:
        self.address = address
        self.socket = _Datagrams(lan, address, port)
        self._heard: list[bytes] = []
        asyncio.get_running_loop().add_reader(self.socket, self._receive)

    def send(self, octets: bytes, router: str = ROUTER) -> None:
        self.socket.sendto(octets, (router, 5351))

    async def flood(self, datagrams: Iterable[bytes]) -> None:
        """Send them so that none is lost: the kernel holds ten."""
        for octets in datagrams:
            self.send(octets)
            await settle()

    def heard(self) -> list[bytes]:
        """What has come since it was asked last."""
        heard, self._heard = self._heard, []
        return heard

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._heard.append(self.socket.recv(2048))

    async def ask(self, octets: bytes) -> bytes:
        """The only answer that comes at once."""
        self.send(octets)
        await settle()
        (answer,) = self.heard()
        return answer


class PcpLan:
    """The sockets of one LAN; ``broken``: the devices on which the server's cannot be opened."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.opened: list[str] = []
        self._name = b"pcp-lan-%d-%d" % (id(self), next(_lans))
        self._ports = itertools.count(40000)
        self._hosts: list[PcpHost] = []

    def listener(self, device: str, address: IPAddress) -> socket.socket:
        """In place of ``net.sockets.pcp_listener``."""
        if device in self.broken:
            raise OurFault(f"cannot listen on {address}")
        self.opened.append(device)
        return _Datagrams(self._name, str(address), 5351)

    def host(self, address: str = A) -> PcpHost:
        return self._host(address, next(self._ports))

    def everybody(self) -> PcpHost:
        """Hears what is multicast."""
        return self._host(EVERYBODY, 5350)

    def _host(self, address: str, port: int) -> PcpHost:
        host = PcpHost(self._name, address, port)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        for host in self._hosts:
            host.socket.close()


@pytest.fixture
def lan(monkeypatch: pytest.MonkeyPatch) -> Iterator[PcpLan]:
    """Nothing else is a network here."""
    lan = PcpLan()
    monkeypatch.setattr(pcp_server, "pcp_listener", lan.listener)
    yield lan
    lan.close()


def server_of(hall: Hall, admit: Callable[[IPAddress, str], bool] | None = None) -> PcpServer:
    """One for this hall, that serves nothing yet."""
    return PcpServer(
        main=hall.main, tuples=hall.tuples, outside=hall.interworking.outside, mappings=hall.table,
        admit=admit or (lambda address, device: hall.router.on_lan(address)),
    )  # fmt: skip


@asynccontextmanager
async def serving(hall: Hall, lans: Collection[Lan] = (HOME,)) -> Any:
    """The server of this hall on these LANs; the table's changes reach it as they do in the service."""
    server = server_of(hall)
    hall.shown_changed = server.outside_changed
    assert server.serve(lans) == {}
    try:
        yield server
    finally:
        await server.stop()
