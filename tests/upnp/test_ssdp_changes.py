# SPDX-License-Identifier: Apache-2.0
"""SSDP on a router with several addresses, which come and go."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Interface

import pytest

from igdpcp.net.router import Lan
from igdpcp.net.sockets import SSDP_GROUP, SSDP_PORT
from tests.support.ssdp_lan import (
    CLIENT,
    CLIENT_DEVICE,
    CLIENT_LINK,
    DEVICE,
    GOODBYE,
    LOCATION,
    ROUTER,
    ROUTER_LINK,
    SET,
    add_address,
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
from tests.support.waiting import until

pytestmark = pytest.mark.lab


@pytest.fixture
def second_lan(homes):
    """Another address of the router on the same device, and a host in its network."""
    router, host = IPv4Address("192.168.78.1"), IPv4Address("192.168.78.2")
    add_address(homes.router, DEVICE, router)
    add_address(homes.client, CLIENT_DEVICE, host)
    yield router, host
    homes.router.run(["ip", "addr", "del", f"{router}/24", "dev", DEVICE])
    homes.client.run(["ip", "addr", "del", f"{host}/24", "dev", CLIENT_DEVICE])


def test_each_host_is_answered_once_with_the_address_of_its_own_network(homes, second_lan):
    router, host = second_lan

    async def scenario():
        answered = []
        async with advertising(lan(ROUTER), lan(router), force=True, admit=everybody) as server:
            await until(lambda: server.advertising)
            for asker, to in ((CLIENT, SSDP_GROUP), (host, SSDP_GROUP), (CLIENT, ROUTER), (host, router)):
                with client_socket(homes, address=asker) as sock:
                    search(sock, to=to)
                    ((data, sender),) = await received(sock, b"200 OK")
                    answered.append((fields(data)["LOCATION"], sender[0]))
            return answered, server.counters.answers

    answered, count = in_router(homes, scenario)
    first, second = ((f"http://{own}:5000/rootDesc.xml", str(own)) for own in (ROUTER, router))
    assert answered == [first, second, first, second]
    assert count == 4


def test_an_address_that_is_added_is_announced_with_a_new_boot_number_and_what_stays_says_so_before(homes, second_lan):
    router, _ = second_lan

    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock, client_socket(homes) as asking:
            async with advertising(force=True, admit=everybody) as server:
                await until(lambda: server.counters.announcements == GOODBYE + 2 * SET)
                everything_heard(sock)
                speaker = next(iter(server._doors)).speaker
                await server.serve([lan(ROUTER), lan(router)])
                search(asking)
                ((answer, _),) = await received(asking, b"200 OK")
                await until(lambda: server.counters.announcements == GOODBYE + 2 * SET + SET + 4 * SET)
                return answer, everything_heard(sock), speaker is next(iter(server._doors)).speaker

    answer, heard, same_socket = in_router(homes, scenario)
    assert b"BOOTID.UPNP.ORG: 8\r\n" in answer
    heard = [fields(data) for data in heard if data.startswith(b"NOTIFY")]
    assert {message["LOCATION"].split("/")[2] for message in heard[:SET]} == {f"{ROUTER}:5000"}
    assert [(message["NTS"], message["BOOTID.UPNP.ORG"]) for message in heard] == [
        *[("ssdp:update", "7")] * SET,
        *[("ssdp:alive", "8")] * 4 * SET,
    ]
    assert {message["NEXTBOOTID.UPNP.ORG"] for message in heard[:SET]} == {"8"}
    assert {message["LOCATION"].split("/")[2] for message in heard[SET:]} == {f"{ROUTER}:5000", f"{router}:5000"}
    assert same_socket


def test_an_address_that_goes_says_goodbye_only_where_no_other_stays(homes, second_lan):
    router, _ = second_lan

    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock, client_socket(homes, SSDP_PORT, CLIENT_LINK) as sock6:
            async with advertising(lan(ROUTER), lan(router), lan(ROUTER_LINK), force=True, admit=everybody) as server:
                await until(lambda: server.counters.announcements == 3 * (GOODBYE + 2 * SET))
                heard = [everything_heard(sock), everything_heard(sock6)]
                await server.serve([lan(ROUTER)])
                await until(lambda: server.counters.announcements == 3 * (GOODBYE + 2 * SET) + GOODBYE + SET + 2 * SET)
                return heard, everything_heard(sock), everything_heard(sock6)

    _, heard, heard6 = in_router(homes, scenario)
    kinds = [[fields(data)["NTS"] for data in some if data.startswith(b"NOTIFY")] for some in (heard, heard6)]
    assert kinds == [["ssdp:update"] * SET + ["ssdp:alive"] * 2 * SET, ["ssdp:byebye"] * GOODBYE]


def test_a_search_that_waits_where_the_address_goes_is_forgotten(homes, second_lan):
    router, host = second_lan

    def hosts(address, device):
        return address in (CLIENT, host)

    async def scenario():
        with client_socket(homes, address=host) as sock, client_socket(homes) as other:
            async with advertising(lan(ROUTER), lan(router), admit=hosts) as server:
                search(sock, to=router)
                search(other)
                await until(lambda: server.counters.searches == 2)
                await server.serve([lan(ROUTER)])
                await received(other, LOCATION)
                return everything_heard(sock), server.counters.send_errors

    assert in_router(homes, scenario) == ([], 0)


def test_when_everything_goes_and_comes_back_a_boot_instance_begins(homes):
    async def scenario():
        with client_socket(homes, SSDP_PORT) as sock:
            async with advertising(force=True) as server:
                await until(lambda: server.advertising)
                await server.serve([])
                assert not server.advertising
                with socket.socket(type=socket.SOCK_DGRAM) as alone:
                    alone.bind(("", SSDP_PORT))  # nobody listens there
                everything_heard(sock)
                await server.serve([lan(ROUTER)])
                return [data for data, _ in await received(sock, b"ssdp:alive")]

    heard = [fields(data) for data in in_router(homes, scenario)]
    assert [message["NTS"] for message in heard] == ["ssdp:byebye"] * GOODBYE + ["ssdp:alive"]
    assert {message["BOOTID.UPNP.ORG"] for message in heard} == {"8"}


def test_a_lan_that_cannot_be_opened_takes_nothing_from_the_others(homes):
    async def scenario():
        missing = Lan("guest", "br-none", IPv4Interface("192.168.78.1/24"))
        with client_socket(homes) as sock:
            async with advertising() as server:
                faults = await server.serve([missing, lan(ROUTER)])
                search(sock)
                await received(sock, LOCATION)
                return [(place.device, str(fault)) for place, fault in faults.items()]

    ((device, text),) = in_router(homes, scenario)
    assert device == "br-none"
    assert "no such network device" in text
