# SPDX-License-Identifier: Apache-2.0
"""Hosts that control points name instead of giving their addresses."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.daemon.host_names import is_host_name
from tests.support.hall import A, B, Hall
from tests.support.virtual_time import virtual


@virtual
async def test_iwf_030_an_internal_client_given_as_a_name_is_resolved(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True, secure_mode=False)
    hall.resolver.hosts = {"nas.lan": B}
    assert (await hall.add(8080, A, InternalClient="NAS.lan.")).code == 0
    assert str(hall.carrier.asked[0].internal.address) == B
    assert (await hall.specific(8080, B))["InternalClient"] == B


@virtual
async def test_iwf_031_a_remote_host_given_as_a_name_is_resolved_wherever_it_is_part_of_the_key(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.resolver.hosts = {"peer.example": "198.51.100.9"}
    key = {"RemoteHost": "peer.example", "ExternalPort": 8080, "Protocol": "TCP"}
    assert (await hall.add(8080, A, version=2, RemoteHost="peer.example")).code == 0
    assert hall.carrier.asked[0].remote_hosts == hall.only_rule.remote_hosts == (IPv4Address("198.51.100.9"),)
    assert (await hall.soap("GetSpecificPortMappingEntry", A, 2, **key)).code == 0
    assert (await hall.soap("DeletePortMapping", A, 2, **key)).code == 0
    assert hall.resolver.asked == ["peer.example"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("argument", ["InternalClient", "RemoteHost"])
def test_iwf_030_031_a_name_without_an_address_is_an_invalid_argument(
    tmp_path: Path, argument: str, version: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for _ in range(2):
            assert (await hall.add(8080, A, version=version, **{argument: "no.such.name"})).code == 402
        assert (hall.carrier.asked, hall.resolver.asked) == ([], ["no.such.name"])
        await asyncio.sleep(11)
        await hall.add(8080, A, version=version, **{argument: "no.such.name"})
        assert len(hall.resolver.asked) == 2

    run()


@pytest.mark.parametrize(
    ("address", "code"),
    [
        pytest.param("198.51.100.9", 718, id="not_on_the_lan"),
        pytest.param("192.168.1.1", 718, id="the_router"),
        pytest.param("127.0.0.1", 718, id="loopback"),
        pytest.param(B, 718, id="another_host"),
        pytest.param(A, 0, id="the_host_itself"),
    ],
)
def test_iwf_030_the_policy_is_that_for_addresses(tmp_path: Path, address: str, code: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.resolver.hosts = {"me": address}
        assert (await hall.add(8080, A, InternalClient="me")).code == code
        assert len(hall.carrier.asked) == (code == 0)

    run()


@virtual
async def test_iwf_030_an_answer_is_remembered_for_a_minute(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.resolver.hosts = {"me": A}
    for wait in (0, 59, 2):
        await asyncio.sleep(wait)
        assert (await hall.add(8080, A, InternalClient="me")).code == 0
    assert hall.resolver.asked == ["me", "me"]


@virtual
async def test_iwf_175_a_silent_resolver_costs_no_more_than_the_deadline_and_holds_up_nobody(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.resolver.hosts, hall.resolver.slow = {"me": A}, 30.0
    before = hall.loop.time()
    slow = asyncio.ensure_future(hall.add(8080, A, InternalClient="me"))
    await asyncio.sleep(0.1)
    assert (await hall.add(8081, A)).code == 0
    assert hall.loop.time() == pytest.approx(before + 0.1)
    assert (await slow).code == 402
    assert hall.loop.time() < before + hall.main.soap_deadline
    assert (await hall.add(8080, A, InternalClient="me")).code == 402
    assert hall.resolver.asked == ["me"]
    await asyncio.sleep(30)
    assert (await hall.add(8080, A, InternalClient="me")).code == 0


@virtual
async def test_iwf_175_names_and_a_silent_carrier_together_keep_the_deadline(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.resolver.hosts, hall.resolver.slow = {"me": A, "peer": "198.51.100.9"}, 1.5
    hall.carrier.silent = True
    before = hall.loop.time()
    assert (await hall.add(8080, A, InternalClient="me", RemoteHost="peer")).code == 501
    assert hall.loop.time() <= before + hall.main.soap_deadline + 1


@virtual
async def test_a_host_cannot_make_us_look_up_names_for_ever(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    codes = [(await hall.add(8080, A, RemoteHost=f"n{n}.example")).code for n in range(20)]
    assert (codes, len(hall.resolver.asked)) == ([402] * 4 + [501] * 16, 4)
    hall.resolver.hosts = {"other.example": "198.51.100.9"}
    assert (await hall.add(8080, B, RemoteHost="other.example")).code == 0
    await asyncio.sleep(100)
    for n in range(1000):
        await hall.add(8080, f"192.168.1.{100 + n % 100}", RemoteHost=f"m{n}.example")
        await asyncio.sleep(0.01)
    assert len(hall.resolver.asked) <= 5 + 8 + 10


@virtual
async def test_only_so_many_look_ups_are_on_their_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.resolver.slow = 30.0
    adding = [asyncio.ensure_future(hall.add(8080, f"192.168.1.{n}", RemoteHost=f"n{n}")) for n in range(10, 16)]
    codes = sorted([(await each).code for each in adding])
    assert (codes, len(hall.resolver.asked)) == ([402] * 4 + [501] * 2, 4)


@virtual
async def test_a_host_whose_names_are_never_answered_leaves_others_theirs(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.resolver.slow = 30.0
    adding = [asyncio.ensure_future(hall.add(8080, A, RemoteHost=f"n{n}")) for n in range(4)]
    assert sorted([(await each).code for each in adding]) == [402, 402, 501, 501]
    hall.resolver.slow, hall.resolver.hosts = 0.0, {"peer": "198.51.100.9"}
    assert (await hall.add(8080, B, RemoteHost="peer")).code == 0


@virtual
async def test_one_look_up_serves_all_who_ask_for_that_name(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.resolver.hosts, hall.resolver.slow = {"peer": "198.51.100.9"}, 1.0
    replies = await asyncio.gather(*(hall.add(8080 + n, A, RemoteHost="peer") for n in range(10)))
    assert ({reply.code for reply in replies}, hall.resolver.asked) == ({0}, ["peer"])


@virtual
async def test_few_names_are_remembered(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for n in range(200):
        await hall.add(8080, A, RemoteHost=f"n{n}")
        await asyncio.sleep(6)
    assert len(hall.resolver.asked) == 200
    assert len(hall.names._known) <= 64


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "1.2.3", "0x7f000001", "host.0x7f", "2130706433", "::1", "fe80::1%br-lan", "a b", "a/b", "-x",
     "x-", "n" * 64, "a." * 127 + "a", "ü.lan", "a\n.b", "*"],
)  # fmt: skip
def test_what_is_no_host_name_is_not_looked_up(text: str) -> None:
    assert not is_host_name(text)


@pytest.mark.parametrize("text", ["nas", "nas.lan", "NAS.LAN.", " my_host ", "3com.example", "n" * 63, "a-b.c1"])
def test_host_names(text: str) -> None:
    assert is_host_name(text)
