# SPDX-License-Identifier: Apache-2.0
"""One server under changing names: what it granted stays ours, whoever names it, and nothing is told to another."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from igdpcp.iwf.interfaces import Granted, Refused, Released
from igdpcp.model import Activation
from igdpcp.pcp.discovery import Origin, Server, known_as, learnt
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import Sent, answer, mapped
from tests.support.virtual_time import virtual
from tests.upstreams.line import (
    ANSWERED,
    EXTERNAL,
    NET,
    NONCE,
    OTHER,
    OTHER_SERVER,
    OWN,
    SERVER,
    Line,
    granted,
    request,
)

GIVEN_UP = 47.0  # four transmissions and the last timeout (RFC 7488 section 3)
A = Server("a", (SERVER,), Origin.CONFIGURED)
B = Server("b", (OTHER_SERVER,), Origin.CONFIGURED)
GUESS = Server(f"wan0/{SERVER}", (SERVER,), Origin.ROUTER)


def told(*addresses: IPv4Address) -> Server:
    """What DHCP names."""
    return Server(" ".join(sorted(map(str, addresses))), addresses, Origin.DHCPV4)


@virtual
async def test_iwf_043_a_router_that_dhcp_names_too_is_asked_under_its_nonces_and_is_trusted_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(GUESS)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert not line.upstream.trusted
        for server in (told(SERVER), told(SERVER, OTHER_SERVER)):
            line.servers(server)
            line.upstream.map(request())
            line.upstream.map(request("2", 8081))
            await asyncio.sleep(1)
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        assert len({sent.nonce for sent in line.carrier.maps if sent.internal_port == 8080}) == 1
        assert (line.of(Refused), line.of(Released)) == ([], [Released("1", 0)])
        assert line.upstream.trusted
        assert [event.grant.server.split()[0] for event in line.of(Granted)] == [GUESS.identity] * 2


@virtual
async def test_iwf_043_after_a_restart_a_nonce_is_known_by_the_address_of_the_server_that_it_was_used_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(told(SERVER, OTHER_SERVER))
        for n, server in enumerate((GUESS, told(SERVER), A)):
            line.upstream.map(request(str(n), 8080 + n, grant=granted(server.mark, port=8080 + n)))
        await asyncio.sleep(1)
        assert [sent.nonce for sent in line.carrier.maps] == [NONCE] * 3


def test_routers_behind_two_devices_are_two_even_with_one_private_address() -> None:
    other = Server(f"lte/{SERVER}", (SERVER,), Origin.ROUTER)
    assert not other.made(GUESS.mark)
    assert told(SERVER).made(GUESS.mark)
    assert known_as([other], [GUESS]) == (other,)


def test_of_two_servers_that_were_one_only_the_first_keeps_its_identity() -> None:
    both = told(SERVER, OTHER_SERVER)
    assert [each.identity for each in known_as([told(SERVER), told(OTHER_SERVER)], [both])] == [
        both.identity, str(OTHER_SERVER),
    ]  # fmt: skip


@virtual
async def test_a_list_in_another_order_costs_no_deletion_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(told(SERVER, OTHER_SERVER))
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        port = line.upstream.peer
        line.carrier.script.silent = True
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        line.carrier.script.silent = False
        line.servers(told(OTHER_SERVER, SERVER))
        await asyncio.sleep(10)
        assert (line.of(Released), line.carrier.script.mappings) == ([Released("1", 0)], {})
        assert line.upstream.peer == port


@virtual
async def test_a_server_whose_address_in_use_is_no_longer_named_is_asked_at_another_under_its_nonces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(told(SERVER, OTHER_SERVER))
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.servers(told(OTHER_SERVER))
        line.upstream.map(request("2", 8081))
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        assert {sent.nonce for sent in line.carriers[1].maps if sent.internal_port == 8080} == {
            line.carrier.maps[0].nonce
        }
        assert line.of(Released) == [Released("1", 0)]


@virtual
async def test_what_is_left_at_a_server_is_given_back_when_it_is_asked_again_but_for_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        first, second = line.carriers
        line.servers(A, B)
        for n in range(3):
            line.upstream.map(request(str(n), 8080 + n))
        await asyncio.sleep(ANSWERED)
        first.script.silent = True
        line.upstream.map(request("late", 8090))
        await asyncio.sleep(GIVEN_UP)
        assert line.upstream.identity == "b"
        first.script.silent = False
        line.upstream.unmap("0")
        await asyncio.sleep(1)
        assert (line.of(Released), len(first.script.mappings)) == ([Released("0", 0)], 3)
        second.script.silent = True
        line.upstream.map(request("later", 8091))
        await asyncio.sleep(GIVEN_UP + 2)
        assert line.upstream.identity == "a"
        held = sorted(port for port, _ in first.script.mappings.values())
        assert held == [8081, 8082, 8090, 8091]
        assert {sent.nonce for sent in first.maps if sent.internal_port == 8080} == {first.maps[0].nonce}


@virtual
async def test_a_deletion_that_a_server_left_unanswered_is_told_to_it_and_to_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        first, second = line.carriers
        line.servers(A, B)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        first.script.silent = True
        line.upstream.unmap("1")
        line.servers(B)
        await asyncio.sleep(1)
        assert (line.of(Released), second.maps) == ([Released("1", ResultCode.NETWORK_FAILURE)], [])
        first.script.silent = False
        line.servers(A)
        await asyncio.sleep(1)
        assert line.of(Released)[-1] == Released("1", 0)
        assert first.script.mappings == {}


@virtual
async def test_what_an_earlier_process_left_at_another_server_is_not_given_back_to_this_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(B)
        await asyncio.sleep(ANSWERED)
        line.upstream.give_back(request(grant=granted(A.mark)))
        line.upstream.give_back(request("2", 8081, grant=granted(A.mark, port=8081, ends=1500.0)))
        await asyncio.sleep(1)
        assert line.carriers[1].maps == []
        assert {event.result for event in line.of(Released)} == {ResultCode.NETWORK_FAILURE}
        await asyncio.sleep(600)
        line.servers(A)
        await asyncio.sleep(1)
        assert [(sent.lifetime, sent.internal_port, sent.nonce) for sent in line.carrier.maps] == [(0, 8080, NONCE)]
        assert {event.id for event in line.of(Released) if event.result == 0} == {"1", "2"}


@virtual
async def test_a_mapping_that_is_adopted_from_another_server_is_owed_to_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(B)
        line.upstream.map(request(grant=granted(A.mark)))
        await asyncio.sleep(1)
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        assert NONCE not in {sent.nonce for sent in line.carriers[1].maps}
        line.servers(A)
        await asyncio.sleep(1)
        assert [(sent.lifetime, sent.nonce) for sent in line.carrier.maps] == [(0, NONCE)]


@virtual
async def test_what_was_granted_to_an_address_that_we_no_longer_have_is_not_given_back_from_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(A)
        await asyncio.sleep(ANSWERED)
        line.upstream.give_back(request(grant=granted(A.mark, address=OTHER)))
        await asyncio.sleep(1)
        assert (line.carrier.maps, line.of(Released)) == ([], [Released("1", 0)])


@virtual
async def test_what_is_wanted_again_before_it_could_be_given_back_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up(own=None)
        known = request(grant=granted(GUESS.mark))
        line.upstream.map(known)
        line.upstream.unmap("1")
        line.upstream.map(known)
        await line.up(own=OWN)
        await asyncio.sleep(1)
        assert {sent.lifetime > 0 for sent in line.carrier.maps} == {True}
        assert line.upstream.state is Activation.ACTIVE
        assert line.upstream.grants("1")
        assert line.of(Released) == []


@virtual
async def test_a_nonce_goes_with_its_internal_tuple_and_is_not_used_from_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(A)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        (first,) = line.of(Granted)
        line.own = OTHER
        line.servers(A)
        line.upstream.map(request(grant=first.grant))
        await asyncio.sleep(1)
        assert line.carrier.maps[-1].nonce != first.grant.nonce
        assert len(line.of(Granted)) == 2


@virtual
async def test_iwf_043_back_at_a_server_under_another_name_what_it_holds_is_asked_for_by_the_nonce_that_owns_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners: dict[int, bytes] = {}

    def strict(sent: Sent) -> list[bytes] | None:
        if not sent.is_map or owners.setdefault(sent.internal_port, sent.nonce) == sent.nonce:
            return None
        return [answer(sent.octets, epoch=int(sent.at), result=ResultCode.NOT_AUTHORIZED, lifetime=3600)]

    with Line(monkeypatch) as line:
        line.carrier.script.scripted = strict
        for server in (GUESS, told(OTHER_SERVER), told(SERVER)):
            line.servers(server)
            line.upstream.map(request())
            await asyncio.sleep(5)
        assert (line.of(Refused), line.upstream.grants("1")) == ([], True)
        assert line.of(Granted)[-1].grant.nonce == owners[8080]
        line.upstream.unmap("1")
        line.servers(told(OTHER_SERVER))
        await asyncio.sleep(5)
        assert line.carriers[1].script.mappings == {}  # what was left there is owed


@virtual
async def test_what_is_owed_to_another_server_stays_so_when_it_is_wanted_again_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(B)
        await asyncio.sleep(ANSWERED)
        line.upstream.give_back(request(grant=granted(A.mark)))
        line.upstream.map(request())
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(1)
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        line.servers(A)
        await asyncio.sleep(1)
        assert [(sent.lifetime, sent.nonce) for sent in line.carrier.maps if sent.internal_port == 8080] == [(0, NONCE)]


@virtual
async def test_another_tuple_under_the_same_id_leaves_the_first_one_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up(own=None)
        line.upstream.give_back(request(grant=granted(GUESS.mark)))
        line.upstream.map(request(port=8081))
        await line.up()
        await asyncio.sleep(1)
        deleted = [(sent.internal_port, sent.nonce) for sent in line.carrier.maps if not sent.lifetime]
        assert deleted == [(8080, NONCE)]


@virtual
async def test_what_is_wanted_again_without_its_grant_is_asked_for_by_the_nonce_that_was_to_give_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up(own=None)
        line.upstream.map(request(grant=granted(GUESS.mark)))
        line.upstream.unmap("1")
        line.upstream.map(request())
        await line.up()
        await asyncio.sleep(1)
        assert {(sent.lifetime > 0, sent.nonce) for sent in line.carrier.maps} == {(True, NONCE)}


@virtual
async def test_the_address_that_was_granted_before_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(A)
        line.upstream.map(request(grant=granted(A.mark)))
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(1)
        assert [sent.suggested_address for sent in line.carrier.maps] == [mapped(str(EXTERNAL)), mapped("0.0.0.0")]


@virtual
async def test_a_server_is_known_by_its_other_name_after_a_while_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(GUESS)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.servers()
        line.servers(told(SERVER))
        line.upstream.map(request("2", 8081))
        await asyncio.sleep(1)
        assert line.upstream.identity == GUESS.identity
        assert len({sent.nonce for sent in line.carrier.maps if sent.internal_port == 8080}) == 1


@virtual
async def test_a_deletion_that_no_server_answered_is_answered_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(A)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.carrier.script.silent = True
        line.upstream.unmap("1")
        line.servers(B)
        await asyncio.sleep(1)
        line.servers(told(IPv4Address(f"{NET}.3")))
        assert line.of(Released) == [Released("1", ResultCode.NETWORK_FAILURE)]


def test_servers_behind_two_devices_are_two_whoever_named_them() -> None:
    box = (IPv4Address("192.168.1.1"),)
    for origin in (Origin.CONFIGURED, Origin.ROUTER):
        one, other = (Server(f"wan{n}", box, origin, f"eth{n}") for n in (1, 2))
        assert known_as([other], [one]) == (other,)
        assert not other.made(one.mark)
    one, other = learnt(box, Origin.DHCPV4, "eth1"), learnt(box, Origin.DHCPV4, "eth2")
    assert one
    assert other
    assert one.identity != other.identity
    assert not other.made(one.mark)
    assert Server("wan1", box, Origin.CONFIGURED, "eth1").made(one.mark)


def test_a_shared_device_makes_no_two_servers_one() -> None:
    one, other = (Server(f"isp{n}", (IPv4Address(f"192.0.2.{n}"),), Origin.CONFIGURED, "eth1") for n in (1, 2))
    assert not other.made(one.mark)


def test_a_mark_that_tells_no_device_is_known_by_its_address() -> None:
    assert Server("wan1", (SERVER,), Origin.CONFIGURED, "eth1").made(f"isp {SERVER}")
    assert Server("wan1", (SERVER,), Origin.CONFIGURED).made(f"eth1/{SERVER} {SERVER}")
