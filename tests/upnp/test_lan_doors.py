# SPDX-License-Identifier: Apache-2.0
"""What cannot be opened on one LAN takes nothing from another, is reported once, and is tried again."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface
from types import SimpleNamespace

import pytest

from igdpcp.config import MainConfig
from igdpcp.daemon import lan_doors, ssdp_server
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.lan_doors import LanDoors
from igdpcp.errors import OurFault
from igdpcp.net.router import Lan
from igdpcp.upnp.description import DeviceIdentity, udns_from, with_config_id
from igdpcp.upnp.http import HttpResponse

IDENTITY = with_config_id(DeviceIdentity("igdpcp", "1", udns_from("machine"), 7, "", "1.2.3"))
HOME = Lan("home", "br-lan", IPv4Interface("127.0.0.1/8"))
GUEST = Lan("guest", "br-guest", IPv4Interface("127.0.0.2/8"))


class Network:
    """Loopback sockets in place of those of the LANs' devices; those that ``broken`` names cannot be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: set[tuple[str, str]] = set()
        self.searchable: list[str] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        monkeypatch.setattr(lan_doors, "RETRY_INTERVAL", 0.05)
        monkeypatch.setattr(lan_doors, "http_listener", self._http)
        monkeypatch.setattr(ssdp_server, "ssdp_listener", self._ssdp)
        monkeypatch.setattr(ssdp_server, "ssdp_sender", lambda device, address: socket.socket(type=socket.SOCK_DGRAM))

    def _http(self, address: IPv4Address, port: int, device: str) -> socket.socket:
        if (device, "http") in self.broken:
            raise OurFault(f"cannot listen on {address}")
        return socket.create_server((str(address), port))

    def _ssdp(self, device: str, address: IPv4Address) -> socket.socket:
        if (device, "ssdp") in self.broken:
            raise OurFault(f"cannot join on {device}")
        self.searchable.append(device)
        return socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def serves(self, lan: Lan) -> bool:
        try:
            socket.create_connection((str(lan.address), self.port), 1).close()
        except ConnectionRefusedError:
            return False
        return True


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


@asynccontextmanager
async def doors_on(network: Network, *lans: Lan):
    async def nothing(request, peer):
        return HttpResponse(404)

    http = HttpServer(nothing, lambda address, device: True)
    router = SimpleNamespace(on_lan_device=lambda address, device: True)
    status = SimpleNamespace()
    doors = LanDoors(MainConfig(http_port=network.port, force=True), IDENTITY, http, router, status)
    await doors.open(lans)
    try:
        yield status
    finally:
        await doors.close()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for is seen from outside only
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["http", "ssdp"])
def test_one_lan_that_fails_leaves_the_other_served_and_is_opened_later(network, kind, caplog):
    async def scenario():
        network.broken = {("br-guest", kind)}
        async with doors_on(network, GUEST, HOME) as status:
            await until(lambda: status.ssdp.advertising)
            assert network.serves(HOME)
            assert network.serves(GUEST) is (kind == "ssdp")
            assert network.searchable == ["br-lan"]
            await asyncio.sleep(lan_doors.RETRY_INTERVAL * 4)
            network.broken.clear()
            await until(lambda: network.searchable == ["br-lan", "br-guest"])
            assert network.serves(GUEST)

    asyncio.run(scenario())
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "device=br-guest" in record.message


def test_a_port_that_another_program_holds_at_the_start_is_taken_when_it_is_free(network):
    async def scenario():
        network.broken = {("br-lan", "http")}
        async with doors_on(network, HOME):
            assert (network.serves(HOME), network.searchable) == (False, [])
            network.broken.clear()
            await until(lambda: network.searchable == ["br-lan"])
            assert network.serves(HOME)

    asyncio.run(scenario())


def test_nothing_is_tried_again_after_the_end(network):
    async def scenario():
        network.broken = {("br-lan", "http")}
        async with doors_on(network, HOME):
            pass
        network.broken.clear()
        await asyncio.sleep(lan_doors.RETRY_INTERVAL * 3)
        assert not network.serves(HOME)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
