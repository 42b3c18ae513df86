# SPDX-License-Identifier: Apache-2.0
"""An upstream on the loopback device, in virtual time: the real engine, its sockets, and scripted servers."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from igdpcp.config import MainConfig, UpstreamConfig
from igdpcp.daemon.pcp_servers import servers_behind
from igdpcp.errors import OurFault
from igdpcp.iwf.interfaces import Emit, UpstreamEvent
from igdpcp.model import PCP_SERVER_PORT, Endpoint, Grant, IPAddress, Protocol, UpstreamRequest
from igdpcp.net.router import Wan
from igdpcp.openings import PcpPeer
from igdpcp.pcp.discovery import Server
from igdpcp.upstreams import pcp, pcp_sockets
from tests.support.pcp_script import ScriptedServer, Sent

NET = f"127.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"  # other runs on this machine have other addresses
SERVER, OTHER_SERVER = IPv4Address(f"{NET}.1"), IPv4Address(f"{NET}.2")
OWN, OTHER = IPv4Address(f"{NET}.11"), IPv4Address(f"{NET}.12")
EXTERNAL = IPv4Address("203.0.113.77")
LAN = IPv4Network("192.168.1.0/24")
ANSWERED = 0.01
NONCE = b"n" * 12


class Carrier:
    """A scripted server at a loopback address."""

    def __init__(self, address: IPAddress) -> None:
        self.script = ScriptedServer()
        self.sent: list[Sent] = []
        self.loop = asyncio.get_running_loop()
        self.socket = socket.socket(_family(address), socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((str(address), PCP_SERVER_PORT))
        self.loop.add_reader(self.socket, self._readable)

    def _readable(self) -> None:
        data, source = self.socket.recvfrom(2048)
        sent = Sent(self.loop.time(), data)
        self.sent.append(sent)
        for reply in self.script.receive(sent):
            self.socket.sendto(reply, source)

    @property
    def maps(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.is_map]

    def close(self) -> None:
        """Nobody listens there any more."""
        if self.socket.fileno() >= 0:
            self.loop.remove_reader(self.socket)
            self.socket.close()


class Line:
    """An upstream with its events, and the address that its sockets have."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *servers: str,
        own: IPv4Address = OWN,
        emit: Emit | None = None,
        **options: Any,
    ) -> None:
        self.own = own
        self.down = False
        monkeypatch.setattr(pcp_sockets, "udp_connected", self._connected)
        monkeypatch.setattr(pcp_sockets, "pcp_announce_listener", self._no_listener)
        self.carriers = [Carrier(SERVER), Carrier(OTHER_SERVER)]
        self.events: list[UpstreamEvent] = []
        self.peers: list[PcpPeer | None] = []  # each that was there when another was told of
        main = MainConfig(**({"external_ip_probe": "off"} | options))
        self.config = UpstreamConfig(server=servers)
        self.upstream = pcp.PcpUpstream(
            main, self.config, secret=b"secret", rng=random.Random(1), emit=emit or self.events.append,
            is_local=lambda address: address in LAN, peer_changed=lambda: self.peers.append(self.upstream.peer),
        )  # fmt: skip

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.upstream.close()
        for carrier in self.carriers:
            carrier.close()

    @property
    def carrier(self) -> Carrier:
        return self.carriers[0]

    async def up(self, router: IPv4Address | None = SERVER, own: IPv4Address | None = OWN) -> None:
        self.own = own or self.own
        self.change(own, router)
        await asyncio.sleep(ANSWERED)

    def change(self, own: IPv4Address | None, router: IPv4Address | None) -> None:
        """The WAN has this address and this default router."""
        self.upstream.network_changed("wan0", own, servers_behind([self.config], Wan("wan0", own, router), [], []))

    def servers(self, *servers: Server) -> None:
        """These are the servers behind the WAN."""
        self.upstream.network_changed("wan0", self.own, servers)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def _connected(self, device: str, address: IPAddress, port: int) -> socket.socket:
        if self.down:
            raise OurFault("no route")
        sock = socket.socket(_family(address), socket.SOCK_DGRAM)
        sock.setblocking(False)
        if address.version == 4:
            sock.bind((str(self.own), 0))
        sock.connect((str(address), port))
        return sock

    def listen_at(self, address: IPAddress) -> Carrier:
        """One more server."""
        self.carriers.append(Carrier(address))
        return self.carriers[-1]

    def _no_listener(self, device: str, version: int) -> socket.socket:
        raise OurFault("the port is taken")


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def request(id: str = "1", port: int = 8080, **changes: Any) -> UpstreamRequest:
    """A wish for tcp ``port`` of the router's own, that port exactly, for as long as possible."""
    values: dict[str, Any] = {
        "id": id, "protocol": Protocol.TCP, "internal": port, "external_port": port, "exact": True, "until": None,
    }  # fmt: skip
    return UpstreamRequest(**(values | changes))


def granted(
    server: str, nonce: bytes = NONCE, port: int = 8080, address: IPv4Address = OWN, ends: float = 90000.0
) -> Grant:
    """What a server granted to an earlier process."""
    return Grant("pcp", address, Endpoint(EXTERNAL, port), 86400, ends, nonce, server)
