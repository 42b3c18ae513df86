# SPDX-License-Identifier: Apache-2.0
"""The doors to the LANs: what stays is not disturbed, what cannot be opened is reported once and tried again."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import SimpleNamespace

import pytest

from igdpcp.config import MainConfig
from igdpcp.daemon import lan_doors, other_gateways, ssdp_sockets
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.lan_doors import ADDRESSES_PER_LAN, LanDoors
from igdpcp.errors import OurFault
from igdpcp.net.router import Lan
from igdpcp.upnp.description import DeviceIdentity, udns_from, with_config_id
from igdpcp.upnp.http import HttpResponse
from tests.support.ssdp_lan import first_boot_id
from tests.support.waiting import until

IDENTITY = with_config_id(DeviceIdentity("igdpcp", "1", udns_from("machine"), 7, "", "1.2.3"))
HOME = Lan("home", "br-lan", IPv4Interface("127.0.0.1/8"))
GUEST = Lan("guest", "br-guest", IPv4Interface("127.0.0.2/8"))


class Network:
    """Loopback sockets in place of those of the LANs' devices; those that ``broken`` names cannot be made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken: set[tuple[str, str]] = set()
        self.failures = 0
        self.speaking: list[str] = []
        self.asked_at: set[str] = set()  # devices on which the PCP server is
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        monkeypatch.setattr(lan_doors, "RETRY_INTERVAL", 0.05)
        monkeypatch.setattr(lan_doors, "http_listener", self._http)
        monkeypatch.setattr(ssdp_sockets, "ssdp_speaker", self._ssdp)
        monkeypatch.setattr(ssdp_sockets, "ssdp_listener", datagram_socket)
        monkeypatch.setattr(other_gateways, "ssdp_searcher", datagram_socket)

    def _http(self, address: IPv4Address | IPv6Address, port: int, device: str) -> socket.socket:
        if (device, "http") in self.broken:
            self.failures += 1
            raise OurFault(f"cannot listen on {address}")
        if isinstance(address, IPv6Address):  # of a namespace that has none
            return socket.create_server(("127.0.0.1", 0))
        return socket.create_server((str(address), port))

    def _ssdp(self, device: str, address: IPv4Address | IPv6Address) -> socket.socket:
        if (device, "ssdp") in self.broken:
            self.failures += 1
            raise OurFault(f"cannot join on {device}")
        self.speaking.append(device)
        return datagram_socket()

    def serve(self, lans: tuple[Lan, ...]) -> dict[Lan, OurFault]:
        """As the PCP server does."""
        broken = {lan: OurFault("cannot listen") for lan in lans if (lan.device, "pcp") in self.broken}
        self.failures += len(broken)
        self.asked_at = {lan.device for lan in lans if lan not in broken}
        return broken

    async def stop(self) -> None:
        """As the PCP server does."""
        self.asked_at = set()

    def serves(self, lan: Lan) -> bool:
        try:
            socket.create_connection((str(lan.address), self.port), 1).close()
        except ConnectionRefusedError:
            return False
        return True


def datagram_socket(*_) -> socket.socket:
    return socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)


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
    doors = LanDoors(
        main=MainConfig(http_port=network.port, force=True),
        identity=IDENTITY,
        boot_id=first_boot_id(),
        http=http,
        pcp_server=network,
        router=router,
        status=status,
    )
    await doors.open(lans)
    try:
        yield doors
    finally:
        await doors.close()


@pytest.mark.parametrize("kind", ["http", "ssdp", "pcp"])
def test_one_lan_that_fails_leaves_the_other_served_and_is_opened_later(network, kind, caplog):
    async def scenario():
        network.broken = {("br-guest", kind)}
        async with doors_on(network, GUEST, HOME) as doors:
            await until(lambda: doors._status.ssdp.advertising)
            assert network.serves(HOME)
            assert network.serves(GUEST) is (kind != "http")
            assert network.speaking[-1] == "br-lan"
            assert ("br-guest" in network.speaking) is (kind == "pcp")
            assert network.asked_at == ({"br-lan"} if kind == "pcp" else {"br-guest", "br-lan"})
            await until(lambda: network.failures >= 3)
            network.broken.clear()
            await until(lambda: sorted(network.speaking) == ["br-guest", "br-lan"])
            await until(lambda: network.asked_at == {"br-guest", "br-lan"})
            assert network.serves(GUEST)
        assert network.asked_at == set()

    asyncio.run(scenario())
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "device=br-guest" in record.message


def test_a_port_that_another_program_holds_at_the_start_is_taken_when_it_is_free(network):
    async def scenario():
        network.broken = {("br-lan", "http")}
        async with doors_on(network, HOME):
            assert (network.serves(HOME), network.speaking) == (False, [])
            network.broken.clear()
            await until(lambda: network.speaking == ["br-lan"])
            assert network.serves(HOME)

    asyncio.run(scenario())


def test_a_lan_that_was_gone_is_reported_again_when_it_fails_again(network, caplog):
    async def scenario():
        network.broken = {("br-guest", "http")}
        async with doors_on(network, HOME, GUEST) as doors:
            await doors.open((HOME,))
            await doors.open((HOME, GUEST))

    asyncio.run(scenario())
    assert caplog.text.count("event=lan_not_served") == 2


def test_nothing_is_tried_again_after_the_end(network, monkeypatch):
    monkeypatch.setattr(lan_doors, "RETRY_INTERVAL", 3600.0)

    async def scenario():
        network.broken = {("br-lan", "http")}
        async with doors_on(network, HOME):
            pass
        assert not network.serves(HOME)
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(scenario())


def test_a_lan_that_stays_keeps_its_connections_and_sockets_and_one_that_goes_loses_them(network):
    async def scenario():
        async with doors_on(network, HOME, GUEST) as doors:
            kept, lost = [await asyncio.open_connection(str(lan.address), network.port) for lan in (HOME, GUEST)]
            for _, writer in (kept, lost):
                writer.write(b"GET / HTTP/1.1\r\n")
            await until(lambda: doors._http.counters.connections == 2)
            await doors.open((HOME,))
            with suppress(ConnectionResetError):
                assert await lost[0].read() == b""
            assert not network.serves(GUEST)
            assert network.serves(HOME)
            kept[1].write(b"Host: 127.0.0.1\r\n\r\n")
            assert (await kept[0].readline()).startswith(b"HTTP/1.1 404")
            assert network.speaking == ["br-lan", "br-guest"]
            await doors.open((HOME, GUEST))
            assert network.serves(GUEST)
            assert network.speaking == ["br-lan", "br-guest", "br-guest"]
            for _, writer in (kept, lost):
                writer.close()

    asyncio.run(scenario())


def test_a_device_that_was_made_again_is_served_anew(network):
    async def scenario():
        async with doors_on(network, HOME) as doors:
            await doors.open((replace(HOME, index=9),))
            assert network.serves(HOME)
            assert network.speaking == ["br-lan", "br-lan"]

    asyncio.run(scenario())


def test_of_very_many_addresses_of_a_lan_only_some_are_served_those_first_that_are_already(network):
    crowd = tuple(Lan("home", "br-lan", IPv4Interface(f"127.0.1.{n}/8")) for n in range(1, ADDRESSES_PER_LAN + 4))

    async def scenario():
        async with doors_on(network, HOME, GUEST) as doors:
            await doors.open((*crowd, HOME, GUEST))
            served = [lan for lan in (*crowd, HOME) if network.serves(lan)]
            assert served == [*crowd[: ADDRESSES_PER_LAN - 1], HOME]
            assert network.serves(GUEST)
            assert doors.left_out == len(crowd) + 1 - ADDRESSES_PER_LAN

    asyncio.run(scenario())


def test_an_ipv4_address_is_never_the_one_that_is_left_out(network):
    """It may come back when the places are taken: a link that goes down takes its IPv4 address along for a moment."""
    crowd = tuple(Lan("home", "br-lan", IPv6Interface(f"2600:{n}::1/64")) for n in range(ADDRESSES_PER_LAN))

    async def scenario():
        async with doors_on(network, *crowd) as doors:
            assert len(network.speaking) == ADDRESSES_PER_LAN
            await doors.open((*crowd, HOME))
            assert network.serves(HOME)
            assert network.speaking.count("br-lan") == ADDRESSES_PER_LAN + 1
            assert doors.left_out == 1

    asyncio.run(scenario())
