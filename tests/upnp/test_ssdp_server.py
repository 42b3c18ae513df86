# SPDX-License-Identifier: Apache-2.0
"""SSDP on a LAN of two network namespaces: a router and one host."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from itertools import pairwise

import pytest

from igdpcp.daemon import flood_guard, other_gateways, ssdp_searches, ssdp_sockets
from igdpcp.daemon.http_server import HttpServer
from igdpcp.net.sockets import SSDP_GROUP, SSDP_GROUP_LINK, SSDP_GROUP_SITE, SSDP_PORT, http_listener
from igdpcp.upnp.description import documents
from igdpcp.upnp.http import HttpResponse, xml_response
from igdpcp.upnp.soap import encode_response, parse_control, soapaction_of
from igdpcp.upnp.ssdp import GATEWAY
from tests.support.ssdp_lan import (
    CLIENT,
    CLIENT_GUA,
    CLIENT_LINK,
    CLIENT_TOO,
    CLIENT_ULA,
    DEVICE,
    GOODBYE,
    IDENTITY,
    IGD2,
    LOCATION,
    ROUTER,
    ROUTER_GUA,
    ROUTER_LINK,
    ROUTER_ULA,
    SET,
    advertising,
    client_socket,
    everybody,
    everything_heard,
    fields,
    in_router,
    lan,
    received,
    search,
)
from tests.support.virtual_time import virtual
from tests.support.waiting import until

pytestmark = pytest.mark.lab

EVERYWHERE = [lan(address) for address in (ROUTER, ROUTER_LINK, ROUTER_ULA, ROUTER_GUA)]


@pytest.mark.parametrize("to", [SSDP_GROUP, ROUTER])
def test_a_search_that_comes_at_the_start_is_answered_from_port_1900_within_a_third_of_a_second(homes, to):
    async def scenario():
        loop = asyncio.get_running_loop()
        with client_socket(homes) as sock:
            began = loop.time()
            async with advertising():
                search(sock, to=to)
                ((data, sender),) = await received(sock, b"200 OK")
                return data, sender, loop.time() - began

    data, sender, seconds = in_router(homes, scenario)
    assert LOCATION in data
    assert sender == (str(ROUTER), SSDP_PORT)
    assert seconds < 0.35


def test_later_searches_are_answered_at_once(homes):
    async def scenario():
        loop = asyncio.get_running_loop()
        with client_socket(homes) as sock:
            async with advertising(force=True) as server:
                await until(lambda: server.advertising)
                began = loop.time()
                search(sock, target=IGD2)
                ((data, _),) = await received(sock, b"200 OK")
                return data, loop.time() - began, server.counters

    data, seconds, counters = in_router(homes, scenario)
    assert b"LOCATION: http://192.168.77.1:5000/v2/rootDesc.xml\r\n" in data
    assert seconds < 0.05
    assert (counters.searches, counters.answers) == (1, 1)


@pytest.mark.parametrize(("now", "date"), [(1795356000.0, "Sun, 22 Nov 2026 14:00:00 GMT"), (86400.0, None)])
def test_an_answer_has_the_date_when_the_clock_was_set(homes, now, date):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True, wall_clock=lambda: now) as server:
                await until(lambda: server.advertising)
                search(sock)
                return (await received(sock, b"200 OK"))[0][0]

    assert fields(in_router(homes, scenario)).get("DATE") == date


def test_a_search_from_outside_the_lan_is_not_answered(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True, admit=lambda address, device: False) as server:
                search(sock)
                await until(lambda: server.counters.not_on_lan)
                return server.counters

    counters = in_router(homes, scenario)
    assert (counters.searches, counters.answers) == (0, 0)


def test_upnpc_finds_a_connected_gateway_with_a_public_address(homes):
    outputs = {
        "NewConnectionStatus": "Connected",
        "NewLastConnectionError": "ERROR_NONE",
        "NewUptime": 60,
        "NewExternalIPAddress": "1.2.3.4",
        "NewConnectionType": "IP_Routed",
        "NewPossibleConnectionTypes": "IP_Routed",
        "NewWANAccessType": "Ethernet",
        "NewLayer1UpstreamMaxBitRate": 0,
        "NewLayer1DownstreamMaxBitRate": 0,
        "NewPhysicalLinkStatus": "Up",
        **{f"NewTotal{total}": 1 for total in ("BytesSent", "BytesReceived", "PacketsSent", "PacketsReceived")},
    }

    async def handler(request, peer):
        if request.method == "GET":
            document = documents(IDENTITY).get(request.path)
            return xml_response(200, document) if document else HttpResponse(404)
        call = parse_control(soapaction_of(request.headers), request.body)
        return xml_response(200, encode_response(call, outputs))

    async def scenario():
        http = HttpServer(handler, lambda address, device: address == CLIENT and device == DEVICE)
        await http.start([(http_listener(ROUTER, 5000, DEVICE), DEVICE)])
        try:
            async with advertising():
                return await asyncio.to_thread(homes.client.run, ["upnpc", "-s"])
        finally:
            await http.close()

    printed = in_router(homes, scenario).stdout
    assert "Found valid IGD : http://192.168.77.1:5000/ctl/IPConn" in printed
    assert "ExternalIPAddress = 1.2.3.4" in printed
    assert "Status : Connected" in printed


def test_goodbye_comes_first_then_everything_twice_and_goodbye_at_the_end(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising() as server:
                await until(lambda: server.counters.announcements == GOODBYE + 2 * SET)
            return everything_heard(sock)

    heard = [data for data in in_router(homes, scenario) if data.startswith(b"NOTIFY")]
    assert ["byebye" if b"ssdp:byebye" in data else "alive" for data in heard] == [
        *["byebye"] * GOODBYE,
        *["alive"] * 2 * SET,
        *["byebye"] * GOODBYE,
    ]
    assert all(b"BOOTID.UPNP.ORG: 7\r\n" in data for data in heard)


@virtual
async def test_announcements_come_again_after_810_to_899_seconds(monkeypatch):
    loop = asyncio.get_running_loop()
    times = []

    class Nowhere(socket.socket):
        def __init__(self, *_):
            super().__init__(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

        def sendto(self, data, to):
            times.append((loop.time(), data))

    for module, name in (
        (ssdp_sockets, "ssdp_listener"),
        (ssdp_sockets, "ssdp_speaker"),
        (other_gateways, "ssdp_searcher"),
    ):
        monkeypatch.setattr(module, name, Nowhere)
    async with advertising(force=True):
        began = loop.time()
        await asyncio.sleep(50 * 900)
    alive = [at - began for at, data in times if b"ssdp:alive" in data and b"NT: upnp:rootdevice" in data]
    assert 0.05 < alive[0] < 0.05 + 0.2
    assert 0.25 < alive[1] - alive[0] < 0.4
    pauses = [later - earlier for earlier, later in pairwise(alive[1:])]
    assert len(pauses) >= 50
    assert all(810 <= pause < 899.9 for pause in pauses)
    assert max(pauses) - min(pauses) > 60


def test_more_searches_than_the_ceiling_are_dropped(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True, searches_per_second=10) as server:
                await until(lambda: server.advertising)
                for _ in range(10):
                    search(sock)
                await until(lambda: server.counters.searches == 10)
                return server.counters

    counters = in_router(homes, scenario)
    assert 3 <= counters.answers <= 5  # 30 %, and what becomes free meanwhile
    assert counters.answers + counters.over_limit == 10


def test_all_hosts_together_have_a_ceiling(homes):
    async def scenario():
        with client_socket(homes) as first, client_socket(homes, address=CLIENT_TOO) as second:
            async with advertising(force=True, admit=everybody, searches_per_second=1) as server:
                await until(lambda: server.advertising)
                search(first)
                search(second)
                await until(lambda: server.counters.searches == 2)
                return server.counters

    counters = in_router(homes, scenario)
    assert (counters.answers, counters.over_limit) == (1, 1)


def test_searches_that_wait_have_a_ceiling(homes, monkeypatch):
    monkeypatch.setattr(ssdp_searches, "WAITING_SEARCHES_LIMIT", 2)

    async def scenario():
        with client_socket(homes) as sock:
            async with advertising() as server:
                for _ in range(5):
                    search(sock)
                await until(lambda: server.advertising)
                return server.counters

    counters = in_router(homes, scenario)
    assert (counters.answers, counters.over_limit) == (2, 3)


def test_the_same_search_is_answered_again(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True) as server:
                await until(lambda: server.advertising)
                for _ in range(3):
                    search(sock)
                await until(lambda: server.counters.answers == 3)
                return [data for data, _ in await received(sock, LOCATION)]

    assert in_router(homes, scenario)


def test_searches_for_other_things_are_free(homes):
    async def scenario():
        with client_socket(homes) as sock:
            async with advertising(force=True, searches_per_second=10) as server:
                await until(lambda: server.advertising)
                for _ in range(100):
                    search(sock, target="urn:dial-multiscreen-org:service:dial:1")
                search(sock)
                await received(sock, LOCATION)
                return server.counters

    assert in_router(homes, scenario).over_limit == 0


def test_one_hosts_searches_do_not_keep_another_from_its_answer(homes):
    async def scenario():
        with client_socket(homes) as flooding, client_socket(homes, address=CLIENT_TOO) as sock:
            async with advertising(force=True, admit=everybody, searches_per_second=10) as server:
                await until(lambda: server.advertising)
                for _ in range(20):
                    search(flooding)
                await until(lambda: server.counters.searches == 20)
                search(sock)
                await received(sock, LOCATION)
                return server.counters

    assert in_router(homes, scenario).over_limit >= 15


def test_the_addresses_of_one_host_have_its_share_together(homes):
    async def scenario():
        options = {
            "force": True,
            "admit": everybody,
            "searches_per_second": 10,
            "host_of": lambda address, device: "one",
        }
        with client_socket(homes) as sock, client_socket(homes, address=CLIENT_TOO) as too:
            async with advertising(**options) as server:
                await until(lambda: server.advertising)
                for _ in range(10):
                    search(sock)
                    search(too)
                await until(lambda: server.counters.searches == 20)
                return server.counters

    assert in_router(homes, scenario).answers <= 5  # 30 %, and what becomes free meanwhile


def test_a_host_that_floods_is_shut_out_by_the_kernel_for_the_rest_of_the_second(homes, monkeypatch):
    monkeypatch.setattr(flood_guard, "DATAGRAMS_PER_HOST", 100)

    async def scenario():
        with client_socket(homes) as flooding, client_socket(homes, address=CLIENT_TOO) as sock:
            async with advertising(force=True, admit=everybody) as server:
                await until(lambda: server.advertising)
                for _ in range(110):
                    search(flooding)
                await until(lambda: server.counters.barred)
                first = server.counters
                for _ in range(2000):
                    search(flooding)
                search(sock)
                await received(sock, LOCATION)
                second = server.counters
                await until(lambda: not server._guard._barred)
                everything_heard(flooding)
                search(flooding)
                await received(flooding, LOCATION)
                return first, second

    first, second = in_router(homes, scenario)
    assert first.barred == second.barred == 1
    assert second.searches == 100 + 1
    assert second.flood <= 10  # what was in the socket before the kernel knew


# -- IPv6 --------------------------------------------------------------------------------------------------------


def by_ipv6(address, device):
    return address in (CLIENT_LINK, CLIENT_ULA, CLIENT_GUA)


@pytest.mark.parametrize(
    ("asker", "to", "location"),
    [
        (CLIENT_LINK, SSDP_GROUP_LINK, ROUTER_LINK),
        (CLIENT_LINK, SSDP_GROUP_SITE, ROUTER_LINK),
        (CLIENT_ULA, SSDP_GROUP_LINK, ROUTER_ULA),
        (CLIENT_ULA, SSDP_GROUP_SITE, ROUTER_ULA),
        (CLIENT_GUA, SSDP_GROUP_LINK, ROUTER_GUA),
        (CLIENT_GUA, SSDP_GROUP_SITE, ROUTER_GUA),
        (CLIENT_LINK, ROUTER_LINK, ROUTER_LINK),
        (CLIENT_ULA, ROUTER_ULA, ROUTER_ULA),
        (CLIENT_GUA, ROUTER_GUA, ROUTER_GUA),
        (CLIENT_GUA, ROUTER_ULA, ROUTER_ULA),
    ],
)
@pytest.mark.parametrize(("target", "path"), [(GATEWAY, b"/rootDesc.xml"), (IGD2, b"/v2/rootDesc.xml")])
def test_a_search_by_ipv6_is_answered_with_the_address_nearest_to_the_asker(homes, asker, to, location, target, path):
    async def scenario():
        with client_socket(homes, address=asker) as sock:
            async with advertising(*EVERYWHERE, force=True, admit=by_ipv6) as server:
                await until(lambda: server.advertising)
                search(sock, target, to)
                ((data, sender),) = await received(sock, b"200 OK")
                return data, sender[0].partition("%")[0], sender[1]

    data, source, port = in_router(homes, scenario)
    assert b"LOCATION: http://[%s]:5000%s\r\n" % (str(location).encode(), path) in data
    assert (source, port) == (str(location), SSDP_PORT)


def test_ipv6_announcements_name_their_group_and_an_address_of_its_reach(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT, CLIENT_LINK) as sock:
            async with advertising(lan(ROUTER_LINK), lan(ROUTER_ULA), force=True, admit=by_ipv6) as server:
                await until(lambda: server.counters.announcements == 2 * (GOODBYE + 2 * SET))
            return everything_heard(sock)

    heard = in_router(homes, scenario)
    by_kind = Counter(
        (fields(data)["NTS"], fields(data)["HOST"], fields(data).get("LOCATION", "").removesuffix("rootDesc.xml"))
        for data in heard
        if b"NT: upnp:rootdevice\r\n" in data
    )
    assert by_kind == {
        ("ssdp:byebye", "[FF02::C]:1900", ""): 2,
        ("ssdp:alive", "[FF02::C]:1900", "http://[fe80::77:1]:5000/"): 2,
        ("ssdp:byebye", "[FF05::C]:1900", ""): 2,
        ("ssdp:alive", "[FF05::C]:1900", "http://[fd00:77::1]:5000/"): 2,
    }


def test_a_link_local_host_is_not_told_of_an_address_that_it_may_not_reach(homes):
    async def scenario():
        with client_socket(homes, address=CLIENT_LINK) as sock, client_socket(homes, address=CLIENT_ULA) as other:
            async with advertising(lan(ROUTER_ULA), force=True, admit=by_ipv6) as server:
                await until(lambda: server.advertising)
                search(sock, to=SSDP_GROUP_SITE)
                await until(lambda: server.counters.searches)
                search(other, to=SSDP_GROUP_SITE)
                await received(other, b"200 OK")
                return server.counters.answers, everything_heard(sock)

    assert in_router(homes, scenario) == (1, [])
