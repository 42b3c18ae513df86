# SPDX-License-Identifier: Apache-2.0
"""Mappings that control points ask for: what they get, what the carrier is asked, what the kernel holds."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.config import PermissionConfig
from igdpcp.iwf.router_leg import EXTEND_SECONDS, RESYNC_SECONDS
from igdpcp.model import Activation, Endpoint, MappingState, Mode, Protocol, UpstreamRequest
from igdpcp.openings import Surroundings
from tests.support.hall import A6, CARRIER, WAN, A, B, Hall, seconds_left, settle
from tests.support.virtual_time import virtual


@virtual
async def test_iwf_080_060_the_carrier_is_asked_for_that_port_and_no_other_from_the_wan_address(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.add(8080)).code == 0
    (asked,) = hall.carrier.asked
    assert asked.internal == Endpoint(WAN, 8080)
    assert (asked.external_port, asked.exact, asked.protocol) == (8080, True, Protocol.TCP)
    assert asked.until == hall.loop.time() + 3600


@virtual
async def test_iwf_087_068_040_every_addition_is_asked_upstream_and_listed_with_what_was_assigned(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    for port in (8080, 8081, 8082):
        assert (await hall.add(port, InternalPort=port)).code == 0
    assert [asked.external_port for asked in hall.carrier.asked] == [8080, 8081, 8082]
    assert await hall.ports() == [8080, 8081, 8082]


@virtual
async def test_iwf_061_listings_show_the_clients_own_address_and_port(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.router.used.add((Protocol.TCP, 8080))
    await hall.add(8080, InternalPort=8000)
    (row,) = await hall.listed()
    assert (row["InternalClient"], row["InternalPort"]) == (A, "8000")
    assert hall.carrier.asked[0].internal.port != 8080


@virtual
async def test_iwf_062_070_what_the_carrier_assigns_is_passed_unaltered(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=6598)
    reply = await hall.add(8080, any_port=True)
    assert reply["ReservedPort"] == "6598"
    assert await hall.ports() == [6598]
    assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == str(CARRIER)
    assert hall.only_rule.external == Endpoint(CARRIER, 6598)
    assert hall.only_rule.wan_port == 8080


@virtual
async def test_iwf_063_the_rule_exists_from_success_to_deletion_and_never_after_an_error(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(8)
    assert (await hall.add(8080)).code == 501
    await settle()
    assert hall.ruleset.puts == []
    hall.carrier.answer = None
    await hall.add(8081)
    assert hall.only_rule.client == Endpoint(IPv4Address(A), 8000)
    await hall.delete(8081)
    assert hall.ruleset.rules == {}


@virtual
async def test_iwf_064_the_rule_lives_as_long_as_the_grant_and_moves_with_each_renewal(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080, LeaseDuration=7200)
    assert seconds_left(hall.only_rule) == 600
    await asyncio.sleep(300)
    hall.carrier.grant(hall.only.id, lifetime=500)
    await asyncio.sleep(EXTEND_SECONDS)
    await settle()
    assert seconds_left(hall.only_rule) == 500 - EXTEND_SECONDS


@virtual
async def test_iwf_065_a_port_that_the_router_uses_itself_is_not_taken_on_the_wan(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.router.used |= {(Protocol.TCP, 8080), (Protocol.TCP, 8000)}
    assert (await hall.add(8080)).code == 0
    assert hall.carrier.asked[0].internal.port not in (8080, 8000)
    assert hall.carrier.asked[0].external_port == 8080


@virtual
async def test_iwf_065_the_same_request_finds_the_same_wan_port_after_any_crash(tmp_path: Path) -> None:
    ports = []
    for name in "one", "two":
        hall = Hall(tmp_path / name)
        hall.router.used |= {(Protocol.TCP, 8080), (Protocol.TCP, 8000)}
        await hall.add(8080)
        ports.append(hall.carrier.asked[0].internal.port)
    assert ports[0] == ports[1]


@virtual
async def test_iwf_067_two_external_ports_of_one_client_port_use_two_wan_ports(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.add(8080)).code == 0
    assert (await hall.add(8081)).code == 0
    assert len({asked.internal for asked in hall.carrier.asked}) == 2


@virtual
async def test_iwf_067_without_nat_the_second_external_port_of_a_client_port_is_a_conflict(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    assert (await hall.add(8080)).code == 0
    assert (await hall.add(8081)).code == 718
    assert len(hall.carrier.asked) == 1


@virtual
async def test_iwf_050_051_without_nat_the_carrier_is_asked_for_the_client_itself(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    assert (await hall.add(8080, InternalPort=8000)).code == 0
    assert hall.carrier.asked[0].internal == Endpoint(IPv4Address(A), 8000)
    (row,) = await hall.listed()
    assert (row["InternalClient"], row["InternalPort"]) == (A, "8000")


@virtual
async def test_iwf_053_without_nat_forwarding_to_the_client_is_open_while_the_entry_lives(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    await hall.add(8080)
    assert (hall.only_rule.mode, hall.only_rule.client) == (Mode.ROUTED, Endpoint(IPv4Address(A), 8000))
    await hall.delete(8080)
    assert hall.ruleset.rules == {}


@virtual
async def test_iwf_054_without_nat_an_untrusted_server_is_not_asked_for_others(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    hall.carrier.trusted = False
    assert (await hall.add(8080)).code == 501
    assert hall.carrier.asked == []
    assert hall.ruleset.puts == []


@virtual
async def test_iwf_081_070_any_port_is_a_wish_that_the_carrier_need_not_grant(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    (asked,) = hall.carrier.asked
    assert (asked.external_port, asked.exact) == (8080, False)


@virtual
async def test_iwf_074_any_port_without_a_wish_lets_the_carrier_choose(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    reply = await hall.add(0, any_port=True)
    assert hall.carrier.asked[0].external_port == 0
    assert await hall.ports() == [int(reply["ReservedPort"])]


@virtual
async def test_iwf_075_any_port_for_a_client_port_that_has_one_gives_that(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=6598)
    await hall.add(8080, any_port=True)
    reply = await hall.add(9000, any_port=True)
    assert reply["ReservedPort"] == "6598"
    assert await hall.ports() == [6598]


@virtual
async def test_iwf_075_without_nat_any_port_gives_the_one_that_the_client_port_can_have(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    await hall.add(8080)
    assert (await hall.add(9000, any_port=True))["ReservedPort"] == "8080"
    assert await hall.ports() == [8080]


@virtual
async def test_iwf_075_two_any_port_entries_that_differ_in_the_remote_host_are_each_refreshed(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    first = await hall.add(8080, any_port=True, RemoteHost="198.51.100.9")
    second = await hall.add(8080, any_port=True, RemoteHost="198.51.100.10")
    await hall.delete(int(second["ReservedPort"]))
    assert (await hall.add(8080, any_port=True, RemoteHost="198.51.100.9"))["ReservedPort"] == first["ReservedPort"]
    assert (await hall.add(8080, any_port=True))["ReservedPort"] != first["ReservedPort"]


@virtual
async def test_any_port_takes_another_one_when_the_wanted_one_is_another_clients(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, B)
    reply = await hall.add(8080, A, any_port=True)
    assert reply.code == 0
    assert reply["ReservedPort"] != "8080"


@virtual
async def test_any_port_whose_assigned_port_is_another_entrys_is_asked_for_elsewhere(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, B)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=8080 if request.id[-1] == "2" else 9090)
    assert (await hall.add(9000, A, any_port=True))["ReservedPort"] == "9090"
    await settle()
    assert await hall.ports() == [8080, 9090]
    assert hall.carrier.returned == [hall.carrier.asked[1].id]
    assert hall.carrier.asked[1].internal.port != hall.carrier.asked[2].internal.port


@virtual
async def test_any_port_whose_assigned_ports_are_all_another_entrys_is_given_back(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, B)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=8080)
    assert (await hall.add(9000, A, any_port=True)).code == 728
    await settle()
    assert await hall.ports() == [8080]
    assert hall.carrier.returned == [asked.id for asked in hall.carrier.asked[1:]]
    assert len(hall.carrier.returned) == 2
    assert hall.only_rule.client.address == IPv4Address(B)


@pytest.mark.parametrize("any_port", [False, True])
def test_a_wan_port_whose_nonce_is_lost_is_left_for_another(tmp_path: Path, any_port: bool) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        carrier = hall.carrier
        carrier.answer = lambda request: (
            carrier.refuse(request.id, 2) if request.internal.port == 8080 else carrier.grant(request.id)
        )
        assert (await hall.add(8080, any_port=any_port)).code == 0
        assert await hall.ports() == [8080]
        assert [request.internal.port == 8080 for request in carrier.asked] == [True, False]

    run()


@virtual
async def test_a_carrier_that_authorises_nothing_is_asked_twice_and_no_more(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(2)
    assert (await hall.add(8080, version=2)).code == 606
    assert len(hall.carrier.asked) == 2
    await settle()
    assert len(hall.table) == 0


@virtual
async def test_without_nat_a_carrier_that_refuses_the_host_is_asked_once(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    hall.carrier.refuses(2)
    assert (await hall.add(8080, version=2)).code == 606
    assert len(hall.carrier.asked) == 1


@virtual
async def test_without_nat_a_port_that_cannot_be_had_is_not_asked_for_twice(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    await hall.add(8080, B)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=8080)
    assert (await hall.add(9000, A, any_port=True)).code == 728
    assert len(hall.carrier.asked) == 2


@virtual
async def test_any_port_refused_for_its_wish_is_asked_again_without_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    id = hall.only.id
    hall.carrier.answer = lambda request: hall.carrier.grant(id, port=7777)
    hall.carrier.refuse(id, 11)
    await settle()
    assert hall.carrier.asked[-1].external_port == 0
    assert await hall.ports() == [7777]


@virtual
async def test_iwf_082_181_another_clients_port_is_a_conflict_without_asking(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    assert (await hall.add(8080, B)).code == 718
    assert (await hall.add(8081, A, InternalClient=B)).code == 718
    assert (await hall.add(8081, A, InternalClient=B, version=2)).code == 606
    assert len(hall.carrier.asked) == 1


@virtual
async def test_iwf_083_a_repeated_request_gets_its_new_lease_and_the_carrier_hears_of_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=200)
    await asyncio.sleep(100)
    assert (await hall.add(8080, LeaseDuration=600, PortMappingDescription="new")).code == 0
    assert hall.carrier.asked[-1].until == hall.loop.time() + 600
    (row,) = await hall.listed()
    assert (row["LeaseDuration"], row["PortMappingDescription"]) == ("600", "new")
    assert hall.carrier.returned == []


@virtual
async def test_iwf_093_another_client_port_leads_the_rule_there_before_the_answer(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, InternalPort=8000)
    hall.ruleset.slow = 0.5
    assert (await hall.add(8080, InternalPort=8001)).code == 0
    assert hall.only_rule.client.port == 8001
    assert {asked.internal for asked in hall.carrier.asked} == {Endpoint(WAN, 8080)}


@virtual
async def test_iwf_093_a_rule_that_cannot_be_led_elsewhere_is_no_success(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, InternalPort=8000)
    hall.ruleset.fails = 1
    assert (await hall.add(8080, InternalPort=8001)).code == 501
    (row,) = await hall.listed()
    assert row["InternalPort"] == "8000"
    await asyncio.sleep(11)
    assert hall.only_rule.client.port == 8000


@virtual
async def test_iwf_093_without_nat_another_client_port_is_deleted_and_made_anew(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    await hall.add(8080, InternalPort=8000)
    assert (await hall.add(8080, InternalPort=8001)).code == 0
    assert len(hall.carrier.returned) == 1
    assert hall.carrier.asked[-1].internal == Endpoint(IPv4Address(A), 8001)
    assert [row["InternalPort"] for row in await hall.listed()] == ["8001"]


@virtual
async def test_iwf_084_086_a_port_taken_at_the_carrier_is_a_conflict_at_once(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(11, lifetime=1800)
    before = hall.loop.time()
    assert (await hall.add(8080)).code == 718
    assert hall.loop.time() == before
    assert len(hall.table) == 0


@pytest.mark.parametrize("result", [8, 10, 11])
def test_iwf_071_any_port_refused_by_the_carrier_is_translated(tmp_path: Path, result: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.refuses(result)
        assert (await hall.add(8080, any_port=True)).code == 728

    run()


@virtual
async def test_iwf_073_088_136_a_silent_server_is_an_error_where_the_policy_says_so(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    for any_port in (False, True):
        before = hall.loop.time()
        assert (await hall.add(8080 + any_port, any_port=any_port)).code == 501
        assert hall.loop.time() - before <= hall.main.soap_deadline + 0.01


@virtual
async def test_iwf_175_the_gateway_answers_others_while_the_server_is_silent(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(1)
    before = hall.loop.time()
    assert (await hall.soap("GetStatusInfo"))["ConnectionStatus"] == "Connected"
    assert hall.loop.time() == before
    assert (await adding).code == 501


@virtual
async def test_iwf_175_a_call_that_waits_for_two_answers_is_done_in_time_too(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.silent, hall.carrier.releases = True, None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await settle()
    before = hall.loop.time()
    assert (await hall.add(8080)).code == 501
    assert hall.loop.time() - before <= hall.main.soap_deadline + 1.01
    assert (await deleting).code == 0


@virtual
async def test_iwf_184_one_mapping_too_many_is_refused_without_asking(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings_per_host=2, max_mappings=3)
    for port in (8080, 8081):
        await hall.add(port)
    assert (await hall.add(8082)).code == 501
    assert (await hall.add(8082, version=2)).code == 728
    assert (await hall.add(8082, any_port=True, InternalPort=9000)).code == 728
    assert (await hall.add(8083, B)).code == 0
    assert (await hall.add(8084, B, version=2)).code == 728
    assert len(hall.carrier.asked) == 3
    await hall.delete(8080)
    await hall.delete(8083, B)
    assert (await hall.add(8082)).code == 0


@virtual
async def test_iwf_184_mappings_on_their_way_count(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings_per_host=1)
    hall.carrier.silent = True
    first = asyncio.ensure_future(hall.add(8080))
    await settle()
    assert (await hall.add(8081, version=2)).code == 728
    await first


@virtual
async def test_iwf_185_low_ports_are_refused_unless_a_permission_allows_them(tmp_path: Path) -> None:
    hall = Hall(tmp_path / "default")
    assert (await hall.add(80, version=2)).code == 606
    assert (await hall.add(80)).code == 718
    assert (await hall.add(8080, InternalPort=80)).code == 718
    assert hall.carrier.asked == []
    allowed = Hall(tmp_path / "allowed", permissions=[PermissionConfig(name="all", action="allow")])
    assert (await allowed.add(80)).code == 0


@virtual
async def test_iwf_185_the_first_permission_that_matches_decides(tmp_path: Path) -> None:
    rules = [
        PermissionConfig(name="no", action="deny", external_ports=range(8080, 8081)),
        PermissionConfig(name="yes", action="allow"),
    ]
    hall = Hall(tmp_path, permissions=rules)
    assert (await hall.add(8080, version=2)).code == 606
    assert (await hall.add(8081, version=2)).code == 0


@virtual
async def test_iwf_180_182_without_secure_mode_a_host_maps_for_others_on_the_lan_only(tmp_path: Path) -> None:
    hall = Hall(tmp_path, secure_mode=False)
    assert (await hall.add(8080, A, InternalClient=B)).code == 0
    assert (await hall.add(80, A, InternalClient=B, version=2)).code == 606
    assert (await hall.add(8081, A, InternalClient="192.168.1.1", version=2)).code == 606
    assert (await hall.add(8081, A, InternalClient="8.8.8.8", version=2)).code == 606
    assert (await hall.delete(8080, A, version=2)).code == 0
    assert await hall.listed() == []


@virtual
async def test_a_control_point_that_asks_over_ipv6_maps_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.add(8080, A6, InternalClient=A)).code == 718
    assert (await hall.add(8080, A6, InternalClient=A, version=2)).code == 606
    assert (await hall.add(8080, A6, InternalClient="")).code == 715
    assert hall.carrier.asked == []


@virtual
async def test_iwf_171_a_network_failure_is_an_error(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.refuses(7)
    assert (await hall.add(8080)).code == 501


@virtual
async def test_the_same_port_wanted_by_two_hosts_at_once_goes_to_the_first(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    replies = await asyncio.gather(hall.add(8080, A), hall.add(8080, B))
    assert [reply.code for reply in replies] == [0, 718]
    (row,) = await hall.listed()
    assert row["InternalClient"] == A


@virtual
async def test_two_identical_requests_at_once_make_one_mapping_and_one_question(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = [asyncio.ensure_future(hall.add(8080)) for _ in range(2)]
    await asyncio.sleep(1)
    hall.carrier.grant(hall.only.id)
    assert [(await reply).code for reply in adding] == [0, 0]
    assert len(hall.carrier.asked) == 1
    assert await hall.ports() == [8080]


@virtual
async def test_a_refusal_is_told_to_all_who_joined(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = [asyncio.ensure_future(hall.add(8080)) for _ in range(2)]
    await asyncio.sleep(1)
    hall.carrier.refuse(hall.only.id, 11)
    assert [(await reply).code for reply in adding] == [718, 718]
    assert len(hall.table) == 0


@virtual
async def test_a_deletion_ends_the_creation_that_waits(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(1)
    id, before = hall.only.id, hall.loop.time()
    assert (await hall.delete(8080)).code == 0
    assert (await adding).code == 501
    assert hall.loop.time() == before
    assert hall.carrier.returned == [id]
    assert (len(hall.table), hall.ruleset.rules) == (0, {})


@virtual
async def test_a_control_point_that_hangs_up_leaves_its_request_to_the_retry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(1)
    adding.cancel()
    await asyncio.sleep(1)
    hall.carrier.grant(hall.only.id)
    await settle()
    assert hall.only.state is MappingState.HIDDEN
    assert (await hall.add(8080)).code == 0


@virtual
async def test_a_first_grant_that_the_kernel_refuses_is_given_back(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.fails = 1
    assert (await hall.add(8080)).code == 501
    await settle()
    assert hall.carrier.returned == [hall.carrier.asked[0].id]
    assert (len(hall.table), hall.ruleset.rules) == (0, {})


@virtual
async def test_a_commit_that_ends_after_the_control_point_was_told_501_shows_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 6.0
    assert (await hall.add(8080)).code == 501
    await asyncio.sleep(10)
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})
    hall.ruleset.slow = 0.0
    assert (await hall.add(8080)).code == 0
    assert len(hall.ruleset.rules) == 1


@virtual
async def test_a_deletion_while_the_kernel_is_slow_leaves_no_rule(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 1.0
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(0.5)
    assert (await hall.delete(8080)).code == 0
    assert (await adding).code == 501
    await asyncio.sleep(5)
    assert hall.ruleset.rules == {}


@virtual
async def test_a_repair_of_the_ruleset_keeps_the_rules_of_what_is_on_its_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.fails = 1
    await hall.add(8080)
    await asyncio.sleep(9.5)
    hall.ruleset.slow = 1.0
    assert (await hall.add(8081)).code == 0
    await asyncio.sleep(5)
    assert [rule.external.port for rule in hall.ruleset.rules.values()] == [8081]


@virtual
async def test_a_repair_of_the_ruleset_keeps_what_is_opened_while_it_begins(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.leg.surround(Surroundings(frozenset(["wan0"]), frozenset(["br-lan"]), frozenset()))
    hall.ruleset.fails = 1
    await hall.add(8080)
    await asyncio.sleep(RESYNC_SECONDS - 0.5)
    hall.ruleset.slow = 1.0
    await asyncio.sleep(1)
    assert (await hall.add(8081)).code == 0
    await asyncio.sleep(5)
    assert [rule.external.port for rule in hall.ruleset.rules.values()] == [8081]


@virtual
async def test_a_repair_of_the_ruleset_brings_nothing_back_that_was_deleted_on_its_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 1.0
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(0.1)
    assert (await hall.delete(8080)).code == 0
    await settle()
    await hall.leg.sync()
    assert ((await adding).code, hall.ruleset.rules) == (501, {})


@pytest.mark.parametrize("again", [False, True])
def test_a_repair_of_the_ruleset_brings_back_what_was_lost_on_its_way_only_if_it_is_granted_again(
    tmp_path: Path, again: bool
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(8080, LeaseDuration=0)
        hall.ruleset.slow, hall.carrier.silent = 1.0, True
        hall.carrier.grant(hall.only.id, address=IPv4Address("62.0.0.9"))
        await settle()
        hall.carrier.lose(hall.only.id)
        if again:
            hall.carrier.grant(hall.only.id)
        await settle()
        await hall.leg.sync()
        assert len(hall.ruleset.rules) == len(await hall.listed()) == int(again)

    run()


@virtual
async def test_a_stop_ends_the_repair_of_the_ruleset(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.fails = 1
    await hall.add(8080)
    hall.ruleset.slow = 1.0
    await asyncio.sleep(RESYNC_SECONDS + 0.5)
    await hall.leg.stop()
    await asyncio.sleep(5)
    assert hall.leg.problem


@virtual
async def test_a_grant_for_a_mapping_that_is_gone_opens_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    request = hall.carrier.asked[0]
    await hall.delete(8080)
    hall.carrier.wanted[request.id] = request
    hall.carrier.grant(request.id)
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_a_journal_that_cannot_be_written_is_an_error_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    hall = Hall(tmp_path)
    assert (await hall.add(8080)).code == 501
    assert (hall.carrier.asked, len(hall.table)) == ([], 0)


@virtual
async def test_iwf_007_a_late_grant_is_there_for_the_retry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    assert (await hall.add(8080)).code == 501
    await asyncio.sleep(5)
    hall.carrier.grant(hall.only.id)
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})
    assert (await hall.specific(8080)).code == 714
    assert (await hall.delete(8080)).code == 714
    await asyncio.sleep(5)
    before = hall.loop.time()
    assert (await hall.add(8080)).code == 0
    assert hall.loop.time() == before
    assert len(hall.ruleset.rules) == 1


@virtual
async def test_iwf_007_a_late_grant_that_nobody_asks_for_again_is_given_back(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    assert (await hall.add(8080)).code == 501
    id = hall.only.id
    hall.carrier.grant(id)
    await asyncio.sleep(29)
    assert hall.carrier.returned == []
    await asyncio.sleep(2)
    assert hall.carrier.returned == [id]
    assert (len(hall.table), hall.ruleset.puts) == (0, [])


@virtual
async def test_iwf_007_a_late_grant_that_is_lost_is_not_revealed(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    await hall.add(8080)
    hall.carrier.grant(hall.only.id)
    await settle()
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (await hall.add(8080)).code == 501
    assert hall.ruleset.rules == {}


@virtual
async def test_of_two_grants_in_one_moment_only_the_latter_has_rules(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path)

    def answer(request: UpstreamRequest) -> None:
        hall.carrier.grant(request.id, lifetime=600)
        hall.carrier.grant(request.id, lifetime=1200)

    hall.carrier.answer = answer
    assert (await hall.add(8080)).code == 0
    assert [seconds_left(rule) for rule in hall.ruleset.puts] == [1200]
    assert "task_failed" not in caplog.text


@virtual
async def test_requests_that_wait_are_answered_when_the_service_stops(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(1)
    before = hall.loop.time()
    await hall.stop()
    assert (await adding).code == 501
    assert hall.loop.time() == before


@virtual
async def test_iwf_003_012_without_a_carrier_the_router_alone_grants(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    hall.router.wan_address = IPv4Address("62.1.1.1")
    assert (await hall.add(8080)).code == 0
    assert hall.only_rule.external == Endpoint(IPv4Address("62.1.1.1"), 8080)
    assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == "62.1.1.1"


@virtual
async def test_iwf_003_without_a_wan_address_no_carrier_is_asked(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state, hall.router.wan_address = Activation.NO_WAN, None
    assert (await hall.add(8080)).code == 501
    assert hall.carrier.asked == []


@virtual
async def test_a_port_of_the_router_itself_is_refused_where_nothing_else_can_be_granted(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    hall.router.used.add((Protocol.TCP, 8080))
    assert (await hall.add(8080)).code == 718
    assert (await hall.add(8080, version=2)).code == 729


@virtual
async def test_any_port_of_the_router_alone_is_none_that_another_entry_shows(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.router.used.add((Protocol.TCP, 8080))
    await hall.add(8080, B)
    hall.router.used.clear()
    hall.carrier.state = Activation.NO_SERVER
    reply = await hall.add(8080, A, any_port=True)
    assert reply.code == 0
    assert reply["ReservedPort"] != "8080"


@virtual
async def test_of_a_long_user_agent_only_its_beginning_is_kept(tmp_path: Path) -> None:
    """A LAN host could fill the memory with it, a mapping at a time."""
    hall = Hall(tmp_path, agent="x" * 5000)
    await hall.add(8080)
    assert hall.only.request.requester.agent == "x" * 128
