# SPDX-License-Identifier: Apache-2.0
"""Hosts of the LAN are told when what they asked for in PCP or NAT-PMP may be gone: the epoch, and announcements."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.model import Activation, Endpoint, MappingRequest, Owner, Protocol, Requester
from tests.support.hall import CARRIER, A, B, Hall, settle
from tests.support.pcp_host import announce, map_request, read_address, read_announce, read_map
from tests.support.pcp_lan import GUEST, HOME, PcpHost, PcpLan, lan, serving
from tests.support.virtual_time import virtual

__all__ = ["lan"]  # a fixture

MOVED = IPv4Address("62.0.0.2")
GAPS = [0.25 * 2**n for n in range(9)]  # RFC 6887 section 14.1.3, RFC 6886 section 3.2.1
LONG = 2 * sum(GAPS)


async def told(host: PcpHost, seconds: float = 0.001) -> list[tuple[str, int]]:
    """What everybody is told in this time: the external address, or ``pcp``, and the epoch."""
    await asyncio.sleep(seconds)
    said = []
    for octets in host.heard():
        if octets[0] == 2:
            said.append(("pcp", read_announce(octets)))
        else:
            result, epoch, address = read_address(octets)
            assert result == 0
            said.append((address, epoch))
    return said


@virtual
async def test_a_start_is_announced_ten_times_at_growing_distances_with_the_epoch(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    started = hall.loop.time()
    async with serving(hall):
        heard = await told(everybody)
        times = [0.0]
        for gap in GAPS:
            times.append(times[-1] + gap)
            await asyncio.sleep(started + times[-1] - hall.loop.time() - 0.01)
            assert everybody.heard() == []
            heard += await told(everybody, 0.02)
        assert heard == [(who, int(at)) for at in times for who in ("pcp", str(CARRIER))]
        assert await told(everybody, LONG) == []


@virtual
async def test_the_end_is_silence(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall) as server:
        assert await told(everybody)
        hall.carrier.move(MOVED)
        server.outside_changed()
    left = [timer for timer in hall.loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert left == []
    assert await told(everybody, LONG) == []


@pytest.mark.parametrize(
    ("options", "known", "announced"),
    [
        ({"natpmp_server": False}, True, {"pcp"}),
        ({"pcp_server": False}, True, {str(CARRIER)}),
        ({"routed": True}, True, {"pcp"}),
        ({}, False, {"pcp"}),
    ],
)
def test_only_what_is_spoken_and_known_is_announced(
    tmp_path: Path, lan: PcpLan, options: dict[str, bool], known: bool, announced: set[str]
) -> None:
    @virtual
    async def run() -> None:
        hall, everybody = Hall(tmp_path, **options), lan.everybody()  # type: ignore[arg-type]
        if not known:
            hall.carrier.move(None)
        async with serving(hall):
            assert {who for who, _ in await told(everybody)} == announced

    run()


@virtual
async def test_an_address_that_is_known_later_is_told_then_and_is_no_new_epoch(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    hall.carrier.move(None)
    async with serving(hall) as server:
        await told(everybody, 1000)
        hall.carrier.move(CARRIER)
        assert await told(everybody, 1.1) == [("pcp", 1001), (str(CARRIER), 1001)]
        assert server.epoch == 1001


@virtual
async def test_another_address_begins_the_epoch_anew_and_is_announced(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody, host = Hall(tmp_path), lan.everybody(), lan.host()
    async with serving(hall):
        await told(everybody, 1000)
        hall.carrier.move(None)  # for a moment nobody knows
        await told(everybody, 10)
        hall.carrier.move(MOVED)
        assert await told(everybody, 1.1) == [("pcp", 0), (str(MOVED), 0)]
        assert read_announce(await host.ask(announce(A))) == 0
        assert len(await told(everybody, LONG)) == 18


@virtual
async def test_the_same_address_again_is_nothing_new(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall) as server:
        await told(everybody, 1000)
        hall.carrier.become(Activation.LOST)
        hall.carrier.move(None)
        await asyncio.sleep(10)
        hall.carrier.become(Activation.ACTIVE)
        hall.carrier.move(CARRIER)
        assert await told(everybody, 10) == []
        assert server.epoch == 1020


@virtual
async def test_an_address_that_is_there_for_a_moment_only_is_no_new_one(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall) as server:
        await told(everybody, 1000)
        hall.carrier.move(MOVED)
        await settle()
        hall.carrier.move(None)
        await asyncio.sleep(10)
        hall.carrier.move(CARRIER)
        assert await told(everybody, 10) == []
        assert server.epoch == 1020


@virtual
async def test_one_of_several_addresses_of_a_carrier_is_not_a_changed_one(tmp_path: Path, lan: PcpLan) -> None:
    """Every grant at another one would make all hosts ask anew, which are grants again."""
    hall, everybody, first, second = Hall(tmp_path), lan.everybody(), lan.host(A), lan.host(B)
    async with serving(hall) as server:
        assert read_map(await first.ask(map_request(A, 8000))).result == 0
        hall.carrier.answer = lambda request: hall.carrier.grant(request.id, address=MOVED)
        await told(everybody, 1000)
        hall.carrier.move(MOVED)
        assert read_map(await second.ask(map_request(B, 8000))).external == str(MOVED)
        assert await told(everybody, 10) == []
        assert server.epoch == 1010
        hall.carrier.answer = lambda request: hall.carrier.grant(request.id, address=MOVED)
        read_map(await first.ask(map_request(A, 8000, lifetime=0)))
        assert await told(everybody, 1.1) == [("pcp", 0), (str(MOVED), 0)]


@virtual
async def test_what_the_carrier_has_lost_does_not_keep_its_former_address_alive(tmp_path: Path, lan: PcpLan) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall):
        assert (await hall.add(LeaseDuration=0)).code == 0
        await told(everybody, 1000)
        hall.carrier.silent = True
        hall.carrier.lose(hall.only.id)
        hall.carrier.move(MOVED)
        assert await told(everybody, 1.1) == [("pcp", 0), (str(MOVED), 0)]


@virtual
async def test_what_is_to_be_announced_while_there_is_something_to_announce_begins_again(
    tmp_path: Path, lan: PcpLan
) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall) as server:
        await asyncio.sleep(10)
        await told(everybody)
        server.serve((HOME, GUEST))
        heard = await told(everybody, LONG)
        assert len(heard) == 2 * 2 * (len(GAPS) + 1)


@virtual
async def test_a_lan_that_comes_later_is_told_too_and_one_that_stays_is_not_told_of_an_end(
    tmp_path: Path, lan: PcpLan
) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall) as server:
        await told(everybody, 1000)
        assert server.serve((HOME,)) == {}
        assert await told(everybody) == []
        assert server.serve((HOME, GUEST)) == {}
        assert await told(everybody, 0.1) == [("pcp", 1000), (str(CARRIER), 1000)] * 2
        server.serve((GUEST,))
        await settle()
        assert lan.opened == ["br-lan", "br-guest"]


@virtual
async def test_a_mapping_that_was_given_up_begins_another_epoch_once_a_minute_at_most(
    tmp_path: Path, lan: PcpLan
) -> None:
    hall, everybody = Hall(tmp_path), lan.everybody()
    async with serving(hall) as server:
        await told(everybody, LONG)
        epoch = server.epoch
        for _ in range(2):
            asked = MappingRequest(
                Requester(IPv4Address(A), Owner.PCP), Protocol.TCP, 8080, Endpoint(IPv4Address(A), 8000), lease=7200
            )
            await hall.tuples.map(asked)
            assert (await hall.delete()).code == 0
            server.outside_changed()
            await asyncio.sleep(2)
        assert server.epoch < 10 < epoch
        began = server.epoch
        assert {who for who, _ in await told(everybody, 1)} == {"pcp", str(CARRIER)}
        await asyncio.sleep(50)
        assert server.epoch > began
        await asyncio.sleep(20)
        assert server.epoch < 20
