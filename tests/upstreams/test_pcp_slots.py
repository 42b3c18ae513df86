# SPDX-License-Identifier: Apache-2.0
"""A carrier that grants few mappings: what nobody asked for makes room, and what was only a query is handed over."""

from __future__ import annotations

import asyncio

import pytest

from igdpcp.iwf.interfaces import Granted, Refused
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import Sent, answer
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, Line, request

QUOTA = int(ResultCode.USER_EX_QUOTA)


def slots(line: Line, count: int) -> None:
    """The carrier refuses whatever is more than so many mappings, for half an hour."""
    script = line.carrier.script

    def refuse(sent: Sent) -> list[bytes] | None:
        full = len(script.mappings) >= count and sent.octets[36:42] not in script.mappings
        if sent.is_map and sent.lifetime and full:
            return [answer(sent.octets, epoch=script.epoch(sent.at), result=QUOTA, lifetime=1800)]
        return None

    script.scripted = refuse


@virtual
async def test_iwf_025_the_probe_goes_first_when_the_carrier_has_no_more_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        slots(line, 1)
        await line.up()
        assert line.upstream.spare == 1
        line.upstream.map(request())
        await asyncio.sleep(3 * ANSWERED)
        assert [(sent.internal_port, bool(sent.lifetime)) for sent in line.carrier.maps] == [
            (9, True), (8080, True), (9, False), (8080, True),
        ]  # fmt: skip
        assert (len(line.of(Granted)), line.of(Refused), line.upstream.spare) == (1, [], 0)


@virtual
async def test_a_slot_that_is_given_back_is_there_for_what_was_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        slots(line, 1)
        await line.up()
        line.upstream.map(request("1", 8080))
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(ANSWERED)
        assert line.of(Refused) == [Refused("2", QUOTA, 1800)]
        line.upstream.unmap("2")
        line.upstream.map(request("3", 8081))
        await asyncio.sleep(ANSWERED)
        assert line.of(Refused)[1:] == [Refused("3", QUOTA, 1800)]
        assert len(line.carrier.maps) == 2
        line.upstream.unmap("1")
        line.upstream.unmap("3")
        line.upstream.map(request("4", 8081))
        await asyncio.sleep(ANSWERED)
        assert [event.id for event in line.of(Granted)] == ["1", "4"]


@virtual
async def test_iwf_118_a_grant_that_is_long_enough_serves_without_another_map(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        now = asyncio.get_running_loop().time()
        line.upstream.map(request(until=now + 60))
        await asyncio.sleep(10)
        line.upstream.map(request(until=now + 100, description="a program"))
        await asyncio.sleep(50)
        (query,) = line.carrier.maps
        assert query.lifetime == 60
        line.upstream.map(request(until=now + 3600))
        await asyncio.sleep(ANSWERED)
        _, longer = line.carrier.maps
        assert longer.lifetime == 3540
        assert (longer.nonce, longer.octets[36:42]) == (query.nonce, query.octets[36:42])


@virtual
async def test_iwf_117_a_query_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request(until=asyncio.get_running_loop().time() + 60))
        await asyncio.sleep(119)
        assert len(line.carrier.maps) == 1


@virtual
async def test_what_is_refused_while_a_deletion_is_on_its_way_may_be_asked_for_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        slots(line, 1)
        await line.up()
        line.upstream.map(request("1", 8080))
        await asyncio.sleep(ANSWERED)
        line.carrier.script.drop = 1  # the first deletion is lost
        line.upstream.unmap("1")
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(5)
        assert line.of(Refused) == [Refused("2", QUOTA, 1800)]
        line.upstream.unmap("2")
        line.upstream.map(request("3", 8081))
        await asyncio.sleep(ANSWERED)
        assert [event.id for event in line.of(Granted)] == ["1", "3"]
