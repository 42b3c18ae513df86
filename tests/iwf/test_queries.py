# SPDX-License-Identifier: Apache-2.0
"""GetSpecificPortMappingEntry for ports that nobody holds: what the carrier is asked, and what becomes of it."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.config import PermissionConfig
from igdpcp.model import Activation, Endpoint, MappingState
from tests.support.hall import A6, WAN, A, B, Hall, settle
from tests.support.virtual_time import virtual

C = "192.168.1.70"


@virtual
async def test_iwf_113_115_an_unknown_port_is_asked_for_a_minute_exactly_and_is_no_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.specific(9000)).code == 714
    (asked,) = hall.carrier.asked
    assert (asked.internal, asked.external_port, asked.exact) == (Endpoint(WAN, 9000), 9000, True)
    assert asked.until == hall.loop.time() + 60


@virtual
async def test_iwf_113_without_nat_the_asking_host_is_the_third_party(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    assert (await hall.specific(9000, B)).code == 714
    assert str(hall.carrier.asked[0].internal) == f"{B}:9000"


@virtual
async def test_iwf_111_112_what_is_held_here_is_not_asked_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8081, A))
    await asyncio.sleep(0.1)
    assert [(await hall.specific(port, host)).code for port, host in ((8080, A), (8080, B), (8081, B))] == [0, 718, 714]
    assert len(hall.carrier.asked) == 2
    assert (await adding).code == 501


@virtual
async def test_iwf_114_a_port_that_the_carrier_refuses_is_in_use(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(11)
    assert (await hall.specific(9000)).code == 718
    assert (len(hall.table), hall.ruleset.puts) == (0, [])


@pytest.mark.parametrize(("policy", "code"), [("error", 501), ("local", 714)])
def test_iwf_116_a_carrier_that_does_not_answer_is_an_error_where_it_has_to(
    tmp_path: Path, policy: str, code: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, unreachable_policy=policy)
        hall.carrier.silent = True
        before = hall.loop.time()
        assert (await hall.specific(9000)).code == code
        assert hall.loop.time() == before + hall.main.soap_deadline
        await asyncio.sleep(61)
        assert (len(hall.table), len(hall.carrier.returned)) == (0, 1)

    run()


@virtual
async def test_iwf_116_a_carrier_known_to_be_away_is_not_waited_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    before = hall.loop.time()
    for state in (Activation.LOST, Activation.NO_SERVER, Activation.NO_WAN):
        hall.carrier.state = state
        assert (await hall.specific(9000)).code == 714
    assert (hall.carrier.asked, hall.loop.time(), len(hall.table)) == ([], before, 0)


@virtual
async def test_iwf_116_without_nat_and_without_a_carrier_there_is_no_answer(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True, carrier=False)
    assert (await hall.specific(9000)).code == 501
    assert len(hall.table) == 0


@virtual
async def test_without_a_carrier_the_local_table_is_the_answer(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    assert (await hall.specific(9000)).code == 714
    assert len(hall.table) == 0


@virtual
async def test_iwf_117_027_a_shadow_is_not_shown_has_no_rule_and_ends_with_its_lifetime(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, lifetime=120)
    update_id, changes = hall.table.system_update_id, hall.changes
    await hall.specific(9000)
    id = hall.only.id
    assert hall.only.state is MappingState.HIDDEN
    assert await hall.listed() == []
    assert (await hall.soap("GetListOfPortMappings", version=2, StartPort=1, EndPort=65535, Protocol="TCP", Manage=1,
                            NumberOfPorts=0)).code == 730  # fmt: skip
    assert (hall.interworking.number_of_entries, hall.table.system_update_id) == (0, update_id)
    assert (await hall.delete(9000)).code == 714
    await asyncio.sleep(119)
    assert (hall.carrier.returned, hall.ruleset.puts, len(hall.carrier.asked)) == ([], [], 1)
    await asyncio.sleep(2)
    assert (len(hall.table), hall.carrier.returned, hall.ruleset.puts) == (0, [id], [])
    assert hall.changes == changes


@virtual
async def test_iwf_117_a_short_grant_is_wanted_for_no_longer_so_that_nobody_renews_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, lifetime=20)
    start = hall.loop.time()
    await hall.specific(9000)
    await settle()
    assert hall.carrier.wanted[hall.only.id].until == start + 20
    await asyncio.sleep(21)
    assert len(hall.table) == 0


@virtual
async def test_iwf_117_a_carrier_that_grants_days_does_not_keep_it_for_days(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, lifetime=86400)
    await hall.specific(9000)
    await asyncio.sleep(121)
    assert (len(hall.table), len(hall.carrier.returned)) == (0, 1)


@virtual
async def test_iwf_117_a_second_query_finds_the_shadow_of_the_first(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    codes = await asyncio.gather(hall.specific(9000, A), hall.specific(9000, B))
    codes.append(await hall.specific(9000, C))
    assert ([reply.code for reply in codes], len(hall.carrier.asked)) == ([714] * 3, 1)


@virtual
async def test_iwf_117_a_new_wan_address_ends_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.specific(9000)
    id = hall.only.id
    hall.lifecycle.wan_changed()
    assert (len(hall.table), hall.carrier.returned, len(hall.carrier.asked)) == (0, [id], 1)


@virtual
async def test_iwf_117_the_next_process_gives_it_back(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.specific(9000)
    hall.kill()
    again = Hall(tmp_path)
    await again.restart.restore()
    await settle()
    assert (len(again.table), [each.external_port for each in again.carrier.given_back]) == (0, [9000])


@virtual
async def test_queries_are_not_worth_a_flash_write(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.journal.save()
    await hall.specific(9000)
    assert not hall.journal.dirty
    await hall.add(9000)
    assert hall.journal.dirty


@pytest.mark.parametrize("host", [A, B])
def test_iwf_118_the_next_add_port_mapping_has_the_shadow(tmp_path: Path, host: str) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.specific(9000, A)
        shadow = hall.only
        hall.carrier.silent = True  # so that only what is granted already serves
        before = hall.loop.time()
        assert (await hall.add(9000, host, InternalPort=8000)).code == 0
        assert hall.loop.time() == before
        assert (hall.only.id, hall.only.grant) == (shadow.id, shadow.grant)
        assert hall.carrier.wanted[shadow.id].internal == hall.carrier.asked[0].internal
        assert (hall.carrier.returned, hall.only_rule.client) == ([], Endpoint(hall.only.request.client.address, 8000))
        assert (await hall.specific(9000, host))["InternalClient"] == host
        assert hall.carrier.wanted[shadow.id].until == before + 3600
        await asyncio.sleep(30)
        assert len(hall.ruleset.rules) == 1

    run()


@virtual
async def test_iwf_118_no_second_map_where_the_grant_is_long_enough(tmp_path: Path) -> None:
    """On the wire that is the engine's to say (tests/upstreams): here, that the same id is wanted, not another."""
    hall = Hall(tmp_path)
    await hall.specific(9000)
    await hall.add(9000, LeaseDuration=30)
    assert {asked.id for asked in hall.carrier.asked} == {hall.only.id}
    await asyncio.sleep(31)
    assert (len(hall.table), hall.ruleset.rules) == (0, {})


@virtual
async def test_iwf_118_an_add_port_mapping_joins_a_query_on_its_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    asking = asyncio.ensure_future(hall.specific(9000, A))
    await asyncio.sleep(0.1)
    adding = asyncio.ensure_future(hall.add(9000, B))
    await asyncio.sleep(0.1)
    hall.carrier.grant(hall.only.id)
    assert (await adding).code == 0
    assert (await asking).code == 718
    assert str(hall.only_rule.client.address) == B


@virtual
async def test_iwf_118_without_nat_only_the_same_client_and_port_have_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    await hall.specific(9000, A)
    shadow = hall.only
    assert (await hall.add(9000, A, InternalPort=9000)).code == 0
    assert (hall.only.id, hall.carrier.returned) == (shadow.id, [])


@pytest.mark.parametrize(
    ("port", "host", "internal"),
    [
        pytest.param(9000, B, 9000, id="another client"),
        pytest.param(9000, A, 8000, id="another internal port"),
        pytest.param(9001, A, 9000, id="another external port of that tuple"),
    ],
)
def test_iwf_118_without_nat_what_does_not_fit_is_deleted_first(
    tmp_path: Path, port: int, host: str, internal: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, routed=True)
        await hall.specific(9000, A)
        shadow = hall.only
        hall.carrier.releases = None
        adding = asyncio.ensure_future(hall.add(port, host, InternalPort=internal))
        await asyncio.sleep(1)
        assert (hall.carrier.urgently_returned, len(hall.carrier.asked)) == ([shadow.id], 1)
        hall.carrier.unmap(shadow.id)
        hall.upstream_leg.released(shadow.id, 0)
        assert (await adding).code == 0
        assert hall.only.id != shadow.id
        assert hall.only_rule.client.port == internal

    run()


@virtual
async def test_iwf_118_add_any_port_mapping_has_it_too_once_it_is_granted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.specific(9000, A)
    shadow = hall.only
    assert (await hall.add(9000, B, any_port=True))["ReservedPort"] == "9000"
    assert hall.only.id == shadow.id


@virtual
async def test_iwf_118_a_refused_query_is_not_the_answer_to_add_any_port_mapping(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    asking = asyncio.ensure_future(hall.specific(9000, A))
    await asyncio.sleep(0.1)
    hall.carrier.silent = False
    assert (await hall.add(9000, A, any_port=True)).code == 0
    assert (await asking).code == 714
    assert len(hall.table) == 1


@virtual
async def test_iwf_118_add_any_port_mapping_does_not_wait_for_a_query_that_nobody_answers(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent, hall.carrier.releases = True, None
    hall.carrier.become(Activation.PROBING)
    asking = asyncio.ensure_future(hall.specific(9000, A))
    await asyncio.sleep(0.1)
    assert (await hall.add(9000, A, any_port=True)).code == 0, "granted by the router alone"
    assert (await asking).code == 714
    assert len(hall.ruleset.rules) == 1


@virtual
async def test_iwf_119_a_query_whose_place_is_needed_is_answered_from_the_table(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    asking = asyncio.ensure_future(hall.specific(9000, A))
    await asyncio.sleep(0.1)
    hall.carrier.silent = False
    assert (await hall.add(9000, B, any_port=True)).code == 0
    assert (await asking).code == 714


@pytest.mark.parametrize("answered", [True, False], ids=["granted", "on_its_way"])
def test_iwf_095_118_what_lets_everybody_in_is_not_handed_to_a_request_for_one_host(
    tmp_path: Path, answered: bool
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, remote_host="filter")
        hall.carrier.silent = not answered
        asking = asyncio.ensure_future(hall.specific(9000, A))
        await settle()
        (shadow,) = hall.table
        hall.carrier.silent = False
        assert (await hall.add(9000, A, RemoteHost="62.0.0.9")).code == 0
        assert (await asking).code == 714
        assert (hall.carrier.returned, hall.only.id == shadow.id) == ([shadow.id], False)
        assert hall.carrier.wanted[hall.only.id].remote_hosts == (IPv4Address("62.0.0.9"),)

    run()


@virtual
async def test_iwf_118_what_the_carrier_does_not_prolong_is_refused_and_not_open(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.specific(9000, A)
    hall.ruleset.slow = 0.1
    hall.carrier.refuses(8)
    assert (await hall.add(9000, A, version=2)).code == 728
    await asyncio.sleep(1)
    assert (len(hall.table), hall.ruleset.rules, len(hall.carrier.returned)) == (0, {}, 1)


@virtual
async def test_iwf_119_of_twenty_queries_in_a_second_four_are_sent(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(11)
    codes = []
    for step in range(20):
        codes.append((await hall.specific(9000 + step, (A, B, C)[step % 3])).code)
        await asyncio.sleep(0.05)
    assert (codes.count(718), codes.count(714), len(hall.carrier.asked)) == (4, 16, 4)
    await asyncio.sleep(0.001)
    assert [(await hall.specific(9100 + n)).code for n in range(2)] == [718, 714]
    await asyncio.sleep(1)
    assert (await hall.specific(9100)).code == 718


@virtual
async def test_iwf_119_one_host_has_one_shadow_and_all_together_two(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for port, host in ((9000, A), (9001, A), (9002, B), (9003, C)):
        assert (await hall.specific(port, host)).code == 714
        await asyncio.sleep(1)
    assert [asked.external_port for asked in hall.carrier.asked] == [9000, 9002]
    assert (await hall.add(9000, A)).code == 0
    assert (await hall.specific(9001, A)).code == 714
    assert [asked.external_port for asked in hall.carrier.asked[-2:]] == [9000, 9001]


@virtual
async def test_iwf_119_the_probe_for_the_external_address_counts_as_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.spare = 1
    for port, host in ((9000, A), (9001, B)):
        assert (await hall.specific(port, host)).code == 714
    assert [asked.external_port for asked in hall.carrier.asked] == [9000]


@virtual
async def test_iwf_184_a_shadow_is_in_nobodys_quota(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings=1, max_mappings_per_host=1)
    await hall.specific(9000, A)
    assert (await hall.add(8080, A)).code == 0
    assert (await hall.add(9000, B, version=2)).code == 728
    assert (await hall.add(9000, A, version=2)).code == 728


@virtual
async def test_iwf_119_who_may_have_no_more_mappings_is_not_told_what_could_be_had(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings_per_host=1)
    await hall.add(8080, A)
    assert (await hall.specific(9000, A)).code == 714
    assert len(hall.carrier.asked) == 1


@virtual
async def test_shadows_go_first_when_the_carrier_has_no_more_slots(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    slots = 2

    def answer(request: object) -> None:
        id = request.id  # type: ignore[attr-defined]
        if len(hall.carrier.running | {id}) > slots:
            hall.carrier.refuse(id, 10)
        else:
            hall.carrier.grant(id)

    hall.carrier.answer = answer
    await hall.specific(9000, A)
    await hall.specific(9001, B)
    shadows = {mapping.id for mapping in hall.table}
    assert [(await hall.add(port, A, version=2)).code for port in (8080, 8081, 8082)] == [0, 0, 728]
    assert set(hall.carrier.urgently_returned) == shadows
    assert [mapping.external_port for mapping in hall.table] == [8080, 8081]


@virtual
async def test_a_query_that_the_carriers_quota_refuses_costs_nobody_anything(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.specific(9000, A)
    hall.carrier.refuses(10)
    assert (await hall.specific(9001, B)).code == 501
    assert [mapping.external_port for mapping in hall.table] == [9000]


@pytest.mark.parametrize(
    ("port", "host", "options"),
    [
        pytest.param(9000, A, {"specific_query": "local"}, id="option"),
        pytest.param(80, A, {}, id="no_permission"),
        pytest.param(9000, "192.168.1.1", {}, id="not_a_lan_host"),
        pytest.param(9000, A6, {}, id="over_ipv6"),
        pytest.param(0, A, {}, id="no_port"),
    ],
)
def test_queries_that_the_carrier_is_not_to_be_asked(
    tmp_path: Path, port: int, host: str, options: dict[str, str]
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, permissions=[PermissionConfig("p", "allow", range(1024, 65536))], **options)  # type: ignore[arg-type]
        assert (await hall.specific(port, host)).code == 714
        assert (hall.carrier.asked, len(hall.table)) == ([], 0)

    run()


@virtual
async def test_queries_leave_nothing_when_everything_is_given_back(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.specific(9000, A)
    await hall.restart.release()
    assert (await hall.specific(9001, B)).code == 501
    assert (len(hall.table), len(hall.carrier.asked), len(hall.carrier.returned)) == (0, 1, 1)
