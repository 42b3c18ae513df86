# SPDX-License-Identifier: Apache-2.0
"""The SSDP server that is fuzzed, on the loopback device: it has many neighbours there, all of them ours."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from io import StringIO
from ipaddress import IPv4Interface
from typing import Any

from igdpcp.daemon.flood_guard import HOSTS_LIMIT
from igdpcp.daemon.other_gateways import CHECKS_LIMIT
from igdpcp.daemon.ssdp_server import SsdpServer
from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_PORT
from igdpcp.upnp.ssdp import search_request
from tests.fuzz.gateway import daemons_log, other_tasks
from tests.fuzz.judge import fields_of, found_in
from tests.support.hall import IDENTITY, A
from tests.support.ssdp_lan import first_boot_id

DEVICE = "lo"
OURS = "upnp:rootdevice"  # a search for it has one answer
HOSTS = 250
ASKERS = 50  # of them; a host has a share of each second, so that many have to take turns
PATIENCE = 10.0  # seconds
MANY_SEARCHES = 1_000_000  # a second: ceilings are tested elsewhere, and would keep most of what is sent from the rest
BATCH = 16  # datagrams, fewer than the kernel holds
RECEIVE_SIZE = 65536


class SsdpPort:
    """Made by ``open_port``."""

    def __init__(self, server: SsdpServer, network: IPv4Interface, sockets: ExitStack, log_text: StringIO) -> None:
        self.server = server
        self._address = (str(network.ip), SSDP_PORT)
        self._hosts = [self._socket(sockets, str(network.ip + number)) for number in range(1, HOSTS + 1)]
        self._askers = itertools.cycle(self._hosts[:ASKERS])
        self._senders = itertools.cycle(self._hosts[ASKERS:])
        self._log_text = log_text

    def _socket(self, sockets: ExitStack, address: str) -> socket.socket:
        sock = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((address, 0))
        sock.setblocking(False)
        return sock

    async def say(self, datagrams: list[bytes]) -> list[dict[str, str]]:
        """Send these, each from another host, whose address takes the place of A; what all of them find, judged."""
        found = []
        for start in range(0, len(datagrams), BATCH):
            for datagram in datagrams[start : start + BATCH]:
                sender = next(self._senders)
                own, _ = sender.getsockname()
                sender.sendto(datagram.replace(A.encode(), own.encode()), self._address)
            await self._catch_up()
            found += [found_in(answer) for host in self._hosts for answer in _waiting_at(host)]
        self.judge()
        return found

    async def _catch_up(self) -> None:
        """Return when everything sent so far was looked at: searches are answered in the order in which they come."""
        asker = next(self._askers)
        asker.sendto(search_request(OURS, 1), self._address)
        async with asyncio.timeout(PATIENCE):
            answer = await asyncio.get_running_loop().sock_recv(asker, RECEIVE_SIZE)
        assert found_in(answer)["st"] == OURS

    def judge(self) -> None:
        """AssertionError when a table has outgrown its ceiling, or a log line is none."""
        assert len(self.server._guard._counts) <= HOSTS_LIMIT + 1
        assert len(self.server._others._checks) <= CHECKS_LIMIT
        assert self.server.conflict is None
        lines = self._log_text.getvalue().split("\n")[:-1]
        self._log_text.seek(0)
        self._log_text.truncate()
        for line in lines:
            fields_of(line)


def _waiting_at(sock: socket.socket) -> list[bytes]:
    answers = []
    with suppress(BlockingIOError):
        while True:
            answers.append(sock.recv(RECEIVE_SIZE))
    return answers


async def _nobody_is_there(*_: Any, **__: Any) -> Any:
    """In place of connections to what says that it is another gateway: it may name any program of this machine."""
    raise ConnectionRefusedError("nobody is there")


@asynccontextmanager
async def open_port() -> AsyncIterator[SsdpPort]:
    """A server that is advertising; in the end no task of it may be left."""
    loop = asyncio.get_running_loop()
    tasks = other_tasks()
    loop.create_connection = _nobody_is_there  # type: ignore[method-assign]
    own = os.getpid() % 0xFFFF + 1  # nobody else's network, as long as we run
    network = IPv4Interface(f"127.{own >> 8}.{own & 0xFF}.1/24")
    lan = Lan("lan", DEVICE, network, socket.if_nametoindex(DEVICE))
    with daemons_log(every_line=True) as text, ExitStack() as sockets:
        server = SsdpServer(
            identity=IDENTITY, boot_id=first_boot_id(), http_port=5000, igd_version="auto", notify_interval=900,
            searches_per_second=MANY_SEARCHES, force=False, rng=random.Random(1),
            admit=lambda address, device: address in network.network and address != network.ip,
        )  # fmt: skip
        assert await server.serve([lan]) == {}
        try:
            port = SsdpPort(server, network, sockets, text)
            async with asyncio.timeout(PATIENCE):
                await port._catch_up()
            yield port
        finally:
            await server.stop()
        port.judge()
    assert other_tasks() <= tasks
