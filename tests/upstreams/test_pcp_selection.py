# SPDX-License-Identifier: Apache-2.0
"""Several addresses of a server, and several servers: which is asked, and what moves with it (RFC 7488)."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv6Address

import pytest

from igdpcp.iwf.interfaces import AddressChanged, Granted, StateChanged
from igdpcp.model import Activation
from igdpcp.pcp.discovery import ROUND_INTERVAL, Origin, Server
from tests.support.pcp_script import THIRD_PARTY, mapped
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, EXTERNAL, NET, OTHER, OTHER_SERVER, OWN, SERVER, Line, request

GIVEN_UP = 46.0  # four transmissions and the last timeout, with the initial one of 3 s (RFC 7488 section 3)
BOTH = Server("isp", (SERVER, OTHER_SERVER), Origin.CONFIGURED)
ONE, OTHER_ONE = Server("one", (SERVER,), Origin.DHCPV4), Server("other", (OTHER_SERVER,), Origin.DHCPV4)
NOBODY = IPv4Address(f"{NET}.77")


def states(line: Line) -> list[Activation]:
    return [event.state for event in line.of(StateChanged)]


@virtual
async def test_iwf_018_after_four_transmissions_the_other_address_is_asked_with_the_same_nonce(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        silent, answering = line.carriers
        silent.script.silent = True
        line.servers(BOTH)
        line.upstream.map(request())
        await asyncio.sleep(GIVEN_UP)
        assert len([sent for sent in silent.sent if not sent.is_map]) == 4
        assert {sent.nonce for sent in silent.maps} == {sent.nonce for sent in answering.maps}
        assert [event.id for event in line.of(Granted)] == ["1"]
        assert (line.upstream.address, line.upstream.state) == (OTHER_SERVER, Activation.ACTIVE)
        assert Activation.LOST not in states(line)


@virtual
async def test_an_answer_of_an_address_that_was_given_up_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        late, silent = line.carriers
        late.script.silent = silent.script.silent = True
        line.servers(BOTH)
        line.upstream.map(request())
        await asyncio.sleep(GIVEN_UP)
        assert line.upstream.address == OTHER_SERVER
        late.socket.sendto(b"\2\x81" + bytes(58), ("127.0.0.1", 9))
        await asyncio.sleep(1)
        assert (line.upstream.state, line.of(Granted)) == (Activation.PROBING, [])


@virtual
async def test_where_nobody_listens_the_next_address_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(Server("isp", (NOBODY, SERVER), Origin.CONFIGURED))
        line.upstream.map(request())
        await asyncio.sleep(1)
        assert [event.id for event in line.of(Granted)] == ["1"]


@virtual
async def test_the_address_that_answers_is_kept_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        first, second = line.carriers
        first.script.silent = True
        line.servers(BOTH)
        line.upstream.map(request())
        await asyncio.sleep(GIVEN_UP)
        first.script.silent = False
        before = len(first.sent)
        await asyncio.sleep(80000)
        assert len(first.sent) == before
        second.script.silent = True
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(GIVEN_UP)
        assert line.upstream.address == SERVER
        assert {event.id for event in line.of(Granted)} == {"1", "2"}
        assert Activation.LOST not in states(line)


@virtual
async def test_when_all_have_failed_another_round_begins_after_a_quarter_of_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        first, second = line.carriers
        first.script.silent = second.script.silent = True
        line.servers(BOTH)
        await asyncio.sleep(2 * GIVEN_UP + 4)
        assert states(line) == [Activation.PROBING, Activation.LOST]
        asked = len(first.sent)
        first.script.silent = False
        await asyncio.sleep(ROUND_INTERVAL - GIVEN_UP)
        assert len(first.sent) == asked
        await asyncio.sleep(GIVEN_UP)
        assert states(line) == [Activation.PROBING, Activation.LOST, Activation.ACTIVE]
        assert line.upstream.address == SERVER


@virtual
async def test_iwf_015_another_server_is_asked_for_everything_with_nonces_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        first, second = line.carriers
        line.servers(ONE, OTHER_ONE)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        first.script.silent = True
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(GIVEN_UP + 1)
        assert (line.upstream.identity, line.upstream.state) == ("other", Activation.ACTIVE)
        assert {sent.internal_port for sent in second.maps} == {8080, 8081}
        assert {sent.nonce for sent in first.maps}.isdisjoint({sent.nonce for sent in second.maps})
        assert Activation.LOST not in states(line)


@virtual
async def test_a_server_that_is_named_later_takes_the_place_of_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.carriers[0].script.silent = True
        await line.up()
        await asyncio.sleep(60)
        assert states(line)[-1] is Activation.NO_SERVER
        line.servers(OTHER_ONE)
        await asyncio.sleep(1)
        assert (line.upstream.state, line.upstream.trusted) == (Activation.ACTIVE, True)


@virtual
async def test_what_is_asked_stays_so_when_a_server_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(OTHER_ONE)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        asked = len(line.carriers[1].maps)
        line.servers(ONE, OTHER_ONE)
        await asyncio.sleep(5)
        assert (line.upstream.address, line.carriers[0].sent) == (OTHER_SERVER, [])
        assert len(line.carriers[1].maps) == asked


@virtual
async def test_iwf_052_055_an_ipv6_server_is_asked_from_our_ipv6_address_on_behalf_of_our_ipv4_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        carrier = line.listen_at(IPv6Address("::1"))
        line.upstream.network_changed("wan0", OWN, [Server("isp", (IPv6Address("::1"),), Origin.CONFIGURED)])
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        (sent,) = carrier.maps
        assert sent.octets[8:24] == IPv6Address("::1").packed
        assert (THIRD_PARTY, mapped(str(OWN))) in sent.options
        assert [event.grant.internal for event in line.of(Granted)] == [OWN]
        line.upstream.network_changed("wan0", OTHER, [Server("isp", (IPv6Address("::1"),), Origin.CONFIGURED)])
        await asyncio.sleep(5)
        assert (THIRD_PARTY, mapped(str(OTHER))) in carrier.maps[-1].options
        assert [event.grant.internal for event in line.of(Granted)] == [OWN, OTHER]


@virtual
async def test_iwf_018_grants_and_the_external_address_go_on_at_another_address_of_their_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        line.servers(BOTH)
        line.upstream.map(request())
        await asyncio.sleep(100)
        up_since = line.upstream.up_since
        line.carriers[0].script.silent = True
        line.upstream.announce()
        await asyncio.sleep(GIVEN_UP)
        assert (line.upstream.address, line.upstream.state) == (OTHER_SERVER, Activation.ACTIVE)
        assert (line.upstream.grants("1"), line.upstream.up_since) == (True, up_since)
        assert line.of(AddressChanged) == [AddressChanged(EXTERNAL)]
        assert line.carriers[1].maps == []  # what runs is renewed when it is due
