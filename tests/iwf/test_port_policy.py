# SPDX-License-Identifier: Apache-2.0
"""External ports that the carrier does not give: what each ``port_policy`` makes of them."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from igdpcp.config import PermissionConfig
from igdpcp.iwf.interfaces import PortSeen, Reset
from igdpcp.iwf.port_policy import BELIEVED_SECONDS, BLOCK_PORTS
from igdpcp.model import Activation, Endpoint, Protocol, UpstreamRequest
from igdpcp.netfilter.desired import Desired, Hairpin, HairpinTarget
from igdpcp.pcp.message import ResultCode
from tests.support.hall import CARRIER, A, B, Hall, settle
from tests.support.virtual_time import virtual

WANTED, GIVEN = 8080, 20100
FAR_APART = (10000, 20000, 30000, 40000, 50000)
CARRIER2 = IPv4Address("203.0.113.9")


def gives(hall: Hall, first: int = GIVEN) -> None:
    """The carrier gives ports from ``first`` on, one after the other, where it may give another than is wanted."""
    ports = iter(range(first, first + 100))

    def answer(request: UpstreamRequest) -> None:
        if request.grant and request.id in hall.carrier.running:
            hall.carrier.grant(request.id, port=request.grant.external.port)
        elif request.exact and not request.aliased:
            hall.carrier.refuse(request.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
        else:
            hall.carrier.grant(request.id, port=next(ports))

    hall.carrier.answer = answer


# alias


@virtual
async def test_by_default_a_port_that_the_carrier_does_not_give_is_a_conflict(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    gives(hall)
    assert (await hall.add(WANTED)).code == 718
    assert not hall.carrier.asked[0].aliased
    assert await hall.listed() == []


@virtual
async def test_an_alias_is_shown_by_the_wanted_port_and_open_at_the_given_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    assert (await hall.add(WANTED)).code == 0
    assert await hall.ports() == [WANTED]
    assert (await hall.specific(WANTED))["InternalClient"] == A
    assert (await hall.specific(GIVEN)).code == 714
    assert hall.only_rule.external == Endpoint(CARRIER, GIVEN)
    assert (hall.only_rule.wan_port, hall.only_rule.shown_port) == (WANTED, WANTED)
    assert (await hall.delete(GIVEN)).code == 714
    assert (await hall.delete(WANTED)).code == 0
    assert hall.ruleset.rules == {}
    assert hall.carrier.returned == [hall.carrier.asked[0].id]


@virtual
async def test_an_alias_that_is_given_the_wanted_port_is_an_ordinary_mapping(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    assert (await hall.add(WANTED)).code == 0
    assert (hall.only_rule.external.port, hall.only_rule.shown_port) == (WANTED, 0)


@virtual
async def test_the_port_that_an_alias_shows_is_taken_and_the_given_one_is_free_to_be_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    assert (await hall.add(WANTED, B)).code == 718
    assert (await hall.add(GIVEN, B)).code == 0
    assert await hall.ports() == [WANTED, GIVEN]


@virtual
async def test_add_any_port_mapping_shows_what_was_given_whatever_the_policy(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    reply = await hall.add(WANTED, any_port=True)
    assert reply["ReservedPort"] == str(GIVEN)
    assert await hall.ports() == [GIVEN]
    assert not hall.carrier.asked[0].aliased


@virtual
async def test_a_repeated_request_keeps_the_alias_and_another_given_port_is_taken_silently(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    assert (await hall.add(WANTED, LeaseDuration=7200)).code == 0
    assert hall.only_rule.external.port == GIVEN
    changes = hall.changes
    hall.carrier.grant(hall.only.id, port=GIVEN + 5)
    await settle()
    assert await hall.ports() == [WANTED]
    assert (hall.only_rule.external.port, hall.only_rule.shown_port) == (GIVEN + 5, WANTED)
    assert hall.changes == changes


@virtual
async def test_a_restart_keeps_an_alias_and_asks_with_what_was_given(tmp_path: Path) -> None:
    first = Hall(tmp_path, port_policy="alias")
    gives(first)
    await first.add(WANTED)
    first.kill()
    second = Hall(tmp_path, port_policy="alias")
    second.carrier.silent = True
    await second.restart.restore()
    assert await second.ports() == [WANTED]
    assert (second.only_rule.external.port, second.only_rule.shown_port) == (GIVEN, WANTED)
    (asked,) = second.carrier.asked
    assert (asked.external_port, asked.aliased, asked.grant and asked.grant.external.port) == (WANTED, True, GIVEN)


@virtual
async def test_an_alias_ends_at_a_restart_with_rules_that_permit_only_what_it_shows(tmp_path: Path) -> None:
    first = Hall(tmp_path, port_policy="alias")
    gives(first)
    await first.add(WANTED)
    first.kill()
    only_wanted = PermissionConfig(name="one", action="allow", external_ports=range(WANTED, WANTED + 1))
    second = Hall(tmp_path, port_policy="alias", permissions=[only_wanted])
    await second.restart.restore()
    assert await second.listed() == []
    assert [request.id for request in second.carrier.given_back] == [first.carrier.asked[0].id]
    gives(second)
    assert (await second.add(WANTED, version=2)).code == 728
    assert second.ruleset.rules == {}


@virtual
async def test_while_the_carrier_is_lost_the_router_serves_the_port_that_an_alias_shows(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    hall.carrier.become(Activation.LOST)
    hall.carrier.lose(hall.only.id)
    await settle()
    assert await hall.ports() == [WANTED]
    assert (hall.only_rule.external, hall.only_rule.shown_port) == (Endpoint(hall.only_rule.wan_address, WANTED), 0)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    assert await hall.ports() == [WANTED]
    assert hall.only_rule.shown_port == WANTED


@pytest.mark.parametrize(("any_port", "shown"), [(False, WANTED), (True, GIVEN)])
def test_iwf_115_118_with_aliases_a_query_finds_a_port_free_and_what_it_was_given_is_used(
    tmp_path: Path, any_port: bool, shown: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, port_policy="alias")
        gives(hall)
        assert (await hall.specific(WANTED)).code == 714
        assert (await hall.specific(GIVEN)).code == 714
        assert (await hall.add(WANTED, any_port=any_port)).code == 0
        assert await hall.ports() == [shown]
        assert hall.only_rule.external == Endpoint(CARRIER, GIVEN)
        assert (await hall.delete(shown)).code == 0
        assert await hall.listed() == []

    run()


@virtual
async def test_iwf_082_with_aliases_the_router_decides_about_the_port_that_is_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias", local_conflict_check=False)
    gives(hall)
    assert (await hall.add(WANTED)).code == 0
    rule = hall.only_rule
    assert (await hall.add(WANTED, B)).code == 718
    assert [asked.internal.port for asked in hall.carrier.asked] == [WANTED]
    assert hall.only_rule == rule
    assert (await hall.specific(WANTED))["InternalClient"] == A
    assert (await hall.specific(WANTED, B)).code == 718
    assert (await hall.delete(WANTED)).code == 0
    assert (await hall.add(WANTED, B)).code == 0
    assert (await hall.specific(WANTED, B))["InternalClient"] == B
    assert (hall.only_rule.client.address, hall.only_rule.external.port) == (IPv4Address(B), GIVEN + 1)


@virtual
async def test_iwf_082_with_aliases_a_conflict_is_one_after_a_restart_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"port_policy": "alias", "local_conflict_check": False}
    first = Hall(tmp_path, **options)
    gives(first)
    await first.add(WANTED)
    first.kill()
    second = Hall(tmp_path, **options)
    carrier = second.carrier
    carrier.answer = lambda request: carrier.grant(request.id, request.grant.external.port if request.grant else 0)
    await second.restart.restore()
    await settle()
    assert (await second.add(WANTED, B)).code == 718
    assert (await second.add(WANTED, LeaseDuration=7200)).code == 0
    assert (second.only_rule.client.address, second.only_rule.external.port) == (IPv4Address(A), GIVEN)
    assert (await second.delete(WANTED, B)).code in (606, 714)
    assert (await second.delete(WANTED)).code == 0
    assert second.ruleset.rules == {}


@virtual
async def test_iwf_112_with_relay_an_alias_of_another_client_stays_as_it_is(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias", local_conflict_check=False, specific_other_cp="relay")
    gives(hall)
    await hall.add(WANTED)
    assert (await hall.specific(WANTED, B)).code == 718
    await settle()
    assert (hall.only.request.client.address, hall.only_rule.external.port) == (IPv4Address(A), GIVEN)
    assert hall.carrier.running == {hall.only.id}


@virtual
async def test_packets_for_a_port_that_one_is_shown_and_another_was_given_go_to_whom_it_was_given(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    await hall.add(GIVEN, B)
    desired = Desired()
    for rule in hall.ruleset.rules.values():
        desired.set(rule.id, rule)
    facts = desired.all_facts(0.0)
    reached = [facts[Hairpin(CARRIER, Protocol.TCP, port)].value for port in (WANTED, GIVEN, GIVEN + 1)]
    assert [target.client.address for target in reached if isinstance(target, HairpinTarget)] == [
        IPv4Address(host) for host in (A, A, B)
    ]


@virtual
async def test_add_any_port_mapping_is_not_answered_with_a_port_that_is_only_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    for _ in range(2):
        assert (await hall.add(WANTED, any_port=True))["ReservedPort"] == str(GIVEN + 1)
    assert await hall.ports() == [WANTED, GIVEN + 1]
    assert (await hall.delete(GIVEN + 1)).code == 0
    assert hall.only_rule.external.port == GIVEN


@virtual
async def test_add_any_port_mapping_does_not_join_a_request_that_may_become_an_alias(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    hall.carrier.silent = True
    adds = [asyncio.create_task(hall.add(WANTED, any_port=any_port)) for any_port in (False, True)]
    await settle()
    for port, asked in enumerate(hall.carrier.asked, GIVEN):
        hall.carrier.grant(asked.id, port=port)
    assert (await adds[0]).code == 0
    assert (await adds[1])["ReservedPort"] == str(GIVEN + 1)


@virtual
async def test_add_any_port_mapping_that_is_given_a_port_which_an_alias_shows_gets_another(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    ports = iter((WANTED, GIVEN + 7))
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, next(ports))
    assert (await hall.add(9000, B, any_port=True))["ReservedPort"] == str(GIVEN + 7)
    await settle()
    assert await hall.ports() == [WANTED, GIVEN + 7]
    assert len(hall.carrier.running) == len(hall.ruleset.rules) == 2
    assert (await hall.specific(WANTED))["InternalClient"] == A


@virtual
async def test_a_refresh_of_an_alias_leads_the_given_port_to_another_port_of_its_client(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="alias")
    gives(hall)
    await hall.add(WANTED)
    assert (await hall.add(WANTED, InternalPort=8001)).code == 0
    assert (hall.only_rule.client.port, hall.only_rule.external.port, hall.only_rule.shown_port) == (
        8001,
        GIVEN,
        WANTED,
    )
    assert (await hall.specific(WANTED))["InternalPort"] == "8001"


# learn-block


@virtual
async def test_iwf_082_a_refusal_of_a_port_that_another_host_here_has_teaches_nothing_of_blocks(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block", local_conflict_check=False)
    await hall.add(WANTED)
    for n, first in enumerate(FAR_APART):
        gives(hall, first)
        await hall.add(0, any_port=True, InternalPort=9000 + n)
    hall.carrier.answer = None
    assert (await hall.add(3074, InternalPort=3074)).code == 0
    hall.carrier.refuses(ResultCode.CANNOT_PROVIDE_EXTERNAL)
    asked = len(hall.carrier.asked)
    assert (await hall.add(WANTED, B)).code == 718
    assert len(hall.carrier.asked) == asked + 1
    hall.carrier.answer = None
    assert (await hall.add(30000, InternalPort=30000)).code == 0


@virtual
async def test_iwf_082_what_is_out_of_the_block_is_not_contended_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block", local_conflict_check=False)
    hall.carrier.become(Activation.LOST)
    assert (await hall.add(3074)).code == 0
    hall.carrier.answer = lambda request: None
    hall.carrier.become(Activation.ACTIVE)
    await learnt(hall, InternalPort=9000)
    assert (await hall.add(3074, B)).code == 718
    assert [asked for asked in hall.carrier.asked if asked.internal.port != 3074] == []
    assert (await hall.specific(3074))["InternalClient"] == A


@virtual
async def test_a_renewal_teaches_nothing_of_blocks(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await hall.add(40000)
    hall.carrier.grant(hall.only.id)
    await settle()
    assert (await hall.add(3074, InternalPort=3074)).code == 0


async def learnt(hall: Hall, **changes: object) -> None:
    """The carrier has given another port than the wanted one, out of a block at GIVEN."""
    gives(hall)
    assert (await hall.add(WANTED, any_port=True, **changes))["ReservedPort"] == str(GIVEN)
    hall.carrier.asked.clear()


@virtual
async def test_a_port_outside_of_the_block_is_a_conflict_without_a_packet(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await learnt(hall)
    for outside in (3074, GIVEN - BLOCK_PORTS, GIVEN + BLOCK_PORTS, 65535):
        assert (await hall.add(outside)).code == 718
    assert hall.carrier.asked == []
    assert hall.port_policy.learnt() == {"": [f"{GIVEN}-{GIVEN}"]}


@pytest.mark.parametrize("inside", [GIVEN - BLOCK_PORTS + 1, GIVEN + 1, GIVEN + BLOCK_PORTS - 1])
def test_what_may_be_in_the_block_is_asked_for(tmp_path: Path, inside: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, port_policy="learn-block")
        await learnt(hall)
        hall.carrier.answer = None
        assert (await hall.add(inside)).code == 0

    run()


@virtual
async def test_before_the_carrier_has_kept_to_a_block_every_port_is_asked_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    for port in (8080, 20000, 40000, 60000):
        assert (await hall.add(port, InternalPort=port)).code == 0
    assert len(hall.carrier.asked) == 4


@virtual
async def test_a_refusal_far_from_what_was_given_shows_the_block(tmp_path: Path) -> None:
    """What the probe for the external address was given counts, too."""
    hall = Hall(tmp_path, port_policy="learn-block")
    gives(hall)
    hall.events.put_nowait(PortSeen(GIVEN))
    assert (await hall.add(WANTED)).code == 718
    assert len(hall.carrier.asked) == 1
    assert (await hall.add(3074)).code == 718
    assert len(hall.carrier.asked) == 1


@virtual
async def test_what_the_probe_was_given_shows_no_block_by_itself(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    hall.events.put_nowait(PortSeen(GIVEN))
    await settle()
    assert (await hall.add(WANTED)).code == 0


@virtual
async def test_after_a_while_one_request_finds_out_whether_it_is_still_so(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await learnt(hall)
    await asyncio.sleep(BELIEVED_SECONDS + 1)
    assert [(await hall.add(port)).code for port in (3074, 3075)] == [718, 718]
    assert [asked.external_port for asked in hall.carrier.asked] == [3074]
    await asyncio.sleep(BELIEVED_SECONDS + 1)
    hall.carrier.answer = None
    assert [(await hall.add(port)).code for port in (3074, 40000)] == [0, 0]


@virtual
async def test_add_any_port_mapping_suggests_a_free_port_of_the_block(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await learnt(hall)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=GIVEN + 9)
    await hall.add(GIVEN + 9, InternalPort=8001)
    hall.carrier.answer = None
    suggested = set()
    for n in range(3):
        reply = await hall.add(3074 + n, any_port=True, InternalPort=9000 + n)
        suggested.add(hall.carrier.asked[-1].external_port)
        assert reply["ReservedPort"] == str(hall.carrier.asked[-1].external_port)
    assert len(suggested) == 3
    assert suggested < set(range(GIVEN + 1, GIVEN + 9))


@virtual
async def test_iwf_185_a_port_of_the_block_that_no_host_may_have_is_not_suggested(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block", never_map=(range(GIVEN + 2, GIVEN + 9),))
    await learnt(hall)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=GIVEN + 9)
    await hall.add(GIVEN + 9, InternalPort=8001)
    hall.carrier.answer = None
    reply = await hall.add(3074, any_port=True, InternalPort=9000)
    assert (reply.code, hall.carrier.asked[-1].external_port) == (0, GIVEN + 1)


@virtual
async def test_where_no_port_of_the_block_is_known_to_be_free_the_carrier_chooses(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await learnt(hall)
    reply = await hall.add(3074, any_port=True, InternalPort=9000)
    assert hall.carrier.asked[-1].external_port == 0
    assert reply["ReservedPort"] == str(GIVEN + 1)


@pytest.mark.parametrize("loss", ["epoch", "address"])
def test_what_was_learnt_ends_with_the_carriers_state_and_address(tmp_path: Path, loss: str) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, port_policy="learn-block")
        hall.carrier.move(CARRIER)
        await learnt(hall)
        if loss == "epoch":
            hall.events.put_nowait(Reset())
        else:
            hall.carrier.move(CARRIER2)
        await settle()
        assert (await hall.add(3074)).code == 718
        assert [asked.external_port for asked in hall.carrier.asked] == [3074]

    run()


@virtual
async def test_a_carrier_that_gives_ports_from_everywhere_keeps_nobody_to_blocks(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    for n, port in enumerate(FAR_APART):
        gives(hall, port)
        await hall.add(0, any_port=True, InternalPort=9000 + n)
    hall.carrier.answer = None
    assert hall.port_policy.learnt() == {"": ["50000-50000"]}
    assert (await hall.add(3074)).code == 0


@virtual
async def test_without_nat_each_host_has_its_own_block(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block", routed=True)
    await learnt(hall)
    assert (await hall.add(3074, A, InternalPort=8001)).code == 718
    assert hall.carrier.asked == []
    assert (await hall.add(3074, B)).code == 718
    assert len(hall.carrier.asked) == 1


@virtual
async def test_iwf_114_a_query_for_a_port_outside_of_the_block_is_answered_without_a_packet(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await learnt(hall)
    assert [(await hall.specific(3074)).code for _ in range(20)] == [718] * 20
    assert hall.carrier.asked == []


@virtual
async def test_what_the_carrier_keeps_to_does_not_bind_the_router_that_serves_alone(tmp_path: Path) -> None:
    hall = Hall(tmp_path, port_policy="learn-block")
    await learnt(hall)
    hall.carrier.become(Activation.LOST)
    assert (await hall.add(3074)).code == 0


@virtual
async def test_by_default_nothing_is_learnt(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await learnt(hall)
    assert (await hall.add(3074)).code == 718
    assert len(hall.carrier.asked) == 1
