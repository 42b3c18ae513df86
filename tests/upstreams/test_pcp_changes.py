# SPDX-License-Identifier: Apache-2.0
"""The carrier behind a WAN that changes: other addresses, other routers, none at all; what goes to whom."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from igdpcp.iwf.interfaces import AddressChanged, Granted, Lost, Refused, Released
from igdpcp.model import Activation, Protocol
from tests.support.pcp_script import THIRD_PARTY, Sent, mapped
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, EXTERNAL, NONCE, OTHER, OTHER_SERVER, OWN, SERVER, Line, granted, request

MOVED = IPv4Address("203.0.113.99")
DISCARD = 9


def told(sent: Sent) -> tuple[bool, int, IPv4Address, bool]:
    """Whether it deletes, the internal port, our address in it, and whether it is for somebody else."""
    return sent.lifetime == 0, sent.internal_port, IPv4Address(sent.octets[20:24]), THIRD_PARTY in sent.codes


@virtual
async def test_a_mapping_of_the_probes_port_takes_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        await line.up()
        assert line.upstream.external_address == EXTERNAL
        line.upstream.map(request(port=DISCARD, protocol=Protocol.UDP))
        await asyncio.sleep(1)
        assert [(event.id, event.grant.external.port) for event in line.of(Granted)] == [("1", DISCARD)]
        assert (line.of(Refused), line.of(Released)) == ([], [])


@virtual
async def test_a_mapping_of_the_probes_port_that_is_there_first_serves_as_the_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        line.carrier.script.drop = 2
        line.change(OWN, SERVER)
        line.upstream.map(request(port=DISCARD, protocol=Protocol.UDP))
        await asyncio.sleep(100)
        assert [event.id for event in line.of(Granted)] == ["1"]
        assert (line.upstream.state, line.upstream.external_address) == (Activation.ACTIVE, EXTERNAL)
        assert {sent.internal_port for sent in line.carrier.maps} == {DISCARD}


@virtual
async def test_what_is_adopted_is_asked_for_before_the_address_is_probed_and_tells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        first = asyncio.get_running_loop().time() + ANSWERED
        line.carrier.script.scripted = lambda sent: [] if sent.is_map and sent.at < first else None
        line.change(OWN, SERVER)
        for n in range(3):
            known = granted(f"wan0/{SERVER}", port=8080 + n)
            line.upstream.map(request(str(n), 8080 + n, grant=known), urgent=False)
        await asyncio.sleep(1)
        assert [sent.internal_port for sent in line.carrier.maps] == [8080, 8081, 8082]
        assert line.upstream.external_address == EXTERNAL


@virtual
async def test_the_probes_port_can_be_given_back_while_the_probe_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        await line.up()
        line.upstream.give_back(request(port=DISCARD, protocol=Protocol.UDP))
        await asyncio.sleep(1)
        assert line.of(Released) == [Released("1", 0)]
        assert line.carrier.script.mappings == {}


@pytest.mark.parametrize("seconds", [0, 200], ids=["probe lives", "probe is over"])
def test_another_wan_address_is_probed_for_its_external_address(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch, external_ip_probe="startup") as line:
            await line.up()
            await asyncio.sleep(seconds)
            line.carrier.script.address = mapped(str(MOVED))
            line.own = OTHER
            line.change(OTHER, SERVER)
            assert line.upstream.external_address is None
            await asyncio.sleep(5)
            assert line.upstream.external_address == MOVED
            assert line.of(AddressChanged) == [AddressChanged(EXTERNAL), AddressChanged(None), AddressChanged(MOVED)]

    run()


@virtual
async def test_who_asks_with_the_grant_before_the_last_does_not_undo_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.carrier.script.address = mapped(str(MOVED))
        await line.up(own=OTHER)
        await asyncio.sleep(5)
        first, *_, last = [event.grant for event in line.of(Granted)]
        assert line.upstream.stands("1", last)
        line.upstream.map(request(grant=first))
        assert line.upstream.stands("1", last)
        assert not line.upstream.stands("1", first)


@virtual
async def test_a_grant_does_not_run_at_another_wan_address_until_it_is_made_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert line.upstream.grants("1")
        line.carrier.script.silent = True
        await line.up(own=OTHER)
        assert not line.upstream.grants("1")
        line.carrier.script.silent = False
        await asyncio.sleep(10)
        assert line.upstream.grants("1")


@virtual
async def test_another_default_router_begins_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        await line.up()
        await asyncio.sleep(200)
        line.carriers[1].script.silent = True
        line.change(OWN, OTHER_SERVER)
        assert (line.upstream.external_address, line.upstream.up_since) == (None, None)
        await asyncio.sleep(200)
        assert (line.upstream.state, line.upstream.external_address) == (Activation.NO_SERVER, None)


@virtual
async def test_a_nonce_goes_to_nobody_but_the_server_that_it_was_used_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        (first,) = line.of(Granted)
        known = request(grant=first.grant)
        line.upstream.map(known)
        await line.up(router=OTHER_SERVER)
        await asyncio.sleep(5)
        line.upstream.map(known)
        line.upstream.give_back(request("2", 8081, grant=granted(first.grant.server, port=8081)))
        await asyncio.sleep(5)
        assert line.carriers[1].maps
        assert {first.grant.nonce, NONCE}.isdisjoint({sent.nonce for sent in line.carriers[1].maps})


@virtual
async def test_a_wish_that_is_repeated_while_the_wan_is_down_costs_no_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        await line.up(own=None)
        line.upstream.map(request(until=asyncio.get_running_loop().time() + 600))
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(5)
        assert {told(sent) for sent in line.carrier.maps} == {(False, 8080, OWN, False)}
        assert line.of(Lost) == []


@virtual
async def test_what_is_dropped_while_the_wan_is_down_is_deleted_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        await line.up(own=None)
        line.upstream.unmap("1")
        assert line.of(Released) == []
        await line.up()
        await asyncio.sleep(1)
        assert told(line.carrier.maps[-1]) == (True, 8080, OWN, False)
        assert line.carrier.maps[-1].nonce == line.carrier.maps[0].nonce
        assert line.of(Released) == [Released("1", 0)]


@virtual
async def test_what_is_to_be_given_back_before_the_wan_has_an_address_is_deleted_for_that_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up(own=None)
        line.upstream.give_back(request())
        line.upstream.map(request("2", 8081, grant=granted(f"wan0/{SERVER}", port=8081)))
        line.upstream.unmap("2")
        assert line.of(Released) == []
        await line.up()
        await asyncio.sleep(1)
        deletions = [told(sent) for sent in line.carrier.maps]
        assert deletions == [(True, 8080, OWN, False), (True, 8081, OWN, False)]
        assert {event.id for event in line.of(Released)} == {"1", "2"}
        line.upstream.map(request("3", 8080))
        await asyncio.sleep(1)
        assert line.carrier.maps[-1].nonce == line.carrier.maps[0].nonce  # so it was ours to delete
