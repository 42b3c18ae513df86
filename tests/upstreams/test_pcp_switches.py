# SPDX-License-Identifier: Apache-2.0
"""The switches of the configuration on the wire to the carrier."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from igdpcp.iwf.interfaces import AddressChanged, Refused
from igdpcp.model import Activation, Endpoint, Protocol
from igdpcp.pcp.discovery import Origin, Server
from tests.support.pcp_script import FILTER, PREFER_FAILURE, THIRD_PARTY
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, EXTERNAL, SERVER, Line, request

CLIENT = Endpoint(IPv4Address("192.168.1.50"), 81)
REMOTE = IPv4Address("198.51.100.9")


@virtual
async def test_iwf_025_026_on_demand_one_probe_tells_the_address_and_no_other_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="demand") as line:
        await line.up()
        assert (line.upstream.state, line.carrier.maps) == (Activation.ACTIVE, [])
        await asyncio.gather(line.upstream.learn_address(), line.upstream.learn_address())
        assert line.upstream.external_address == EXTERNAL
        (probe,) = line.carrier.maps
        assert (probe.internal_port, probe.octets[36]) == (9, Protocol.UDP)
        assert probe.lifetime <= 120
        await asyncio.sleep(60)
        await line.upstream.learn_address()
        await asyncio.sleep(200)
        await line.upstream.learn_address()
        assert [sent for sent in line.carrier.maps if sent.lifetime] == [probe]
        assert line.of(AddressChanged) == [AddressChanged(EXTERNAL)]


@virtual
async def test_iwf_023_switched_off_nothing_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="off") as line:
        await line.up()
        await line.upstream.learn_address()
        await asyncio.sleep(10)
        assert (line.carrier.maps, line.upstream.external_address) == ([], None)


@virtual
async def test_iwf_026_a_probe_that_is_refused_is_answered_at_once_and_not_repeated_for_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="demand") as line:
        line.carrier.script.refuse = {0: (10, 30)}
        await line.up()
        began = asyncio.get_running_loop().time()
        for _ in range(20):
            await line.upstream.learn_address()
        assert asyncio.get_running_loop().time() - began < 1
        assert len(line.carrier.maps) == 1
        await asyncio.sleep(31)
        line.carrier.script.refuse = {}
        await line.upstream.learn_address()
        assert line.upstream.external_address == EXTERNAL


@virtual
async def test_iwf_025_who_asks_while_the_probe_of_the_start_is_unanswered_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        line.carrier.script.scripted = lambda sent: [] if sent.is_map and len(line.carrier.maps) == 1 else None
        await line.up()
        assert (line.upstream.state, line.upstream.external_address) == (Activation.ACTIVE, None)
        await line.upstream.learn_address()
        assert line.upstream.external_address == EXTERNAL
        assert len({sent.octets for sent in line.carrier.maps}) == 1


@virtual
async def test_iwf_025_the_address_is_not_waited_for_while_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="demand") as line:
        line.carrier.script.silent = True
        await line.up()
        began = asyncio.get_running_loop().time()
        await line.upstream.learn_address()
        assert asyncio.get_running_loop().time() == began


@pytest.mark.parametrize("switch", ["auto", "never"])
def test_iwf_051_054_nothing_is_asked_on_behalf_of_others_where_that_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch, third_party=switch) as line:
            line.servers(Server("carrier", (SERVER,), Origin.CONFIGURED))
            line.upstream.map(request("others", internal=CLIENT))
            line.upstream.map(request("own"))
            await asyncio.sleep(10)
            told = {sent.internal_port: THIRD_PARTY in sent.codes for sent in line.carrier.maps}
            assert told == {81: True, 8080: False} if switch == "auto" else told == {8080: False}
            assert line.upstream.trusted is (switch == "auto")

    run()


@virtual
async def test_iwf_052_without_third_party_a_server_is_asked_at_its_ipv4_addresses_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, "::1", str(SERVER), third_party="never") as line:
        await line.up(router=None)
        line.upstream.map(request())
        await asyncio.sleep(1)
        assert line.upstream.address == SERVER
        assert [sent.codes for sent in line.carrier.maps] == [[PREFER_FAILURE]]


@pytest.mark.parametrize(("switch", "codes"), [("emulate", [[PREFER_FAILURE], []]), ("fail", [[PREFER_FAILURE]])])
def test_iwf_092_without_prefer_failure_the_carrier_is_asked_only_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, switch: str, codes: list[list[int]]
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch, prefer_failure_fallback=switch) as line:
            line.carrier.script.refuse = {PREFER_FAILURE: (5, 1800)}
            await line.up()
            line.upstream.map(request())
            await asyncio.sleep(10)
            assert [sent.codes for sent in line.carrier.maps] == codes
            assert [event.result for event in line.of(Refused)] == ([5] if switch == "fail" else [])

    run()


@pytest.mark.parametrize("switch", ["both", "filter"])
def test_iwf_174_without_filters_the_carrier_is_asked_only_where_the_router_enforces(
    monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch, remote_host=switch) as line:
            line.carrier.script.refuse = {FILTER: (5, 1800)}
            await line.up()
            line.upstream.map(request(remote_hosts=(REMOTE,)))
            await asyncio.sleep(10)
            assert any(FILTER not in sent.codes for sent in line.carrier.maps) is (switch == "both")
            assert [event.result for event in line.of(Refused)] == ([5] if switch == "filter" else [])

    run()


@virtual
async def test_iwf_150_the_configured_cap_is_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, lifetime_cap=65535) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert [sent.lifetime for sent in line.carrier.maps] == [65535]
