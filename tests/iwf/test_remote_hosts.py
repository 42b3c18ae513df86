# SPDX-License-Identifier: Apache-2.0
"""Several RemoteHosts for one port of one client: one mapping at the carrier, an entry each for control points."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from igdpcp.iwf.interfaces import Granted, Released
from igdpcp.model import REMOTE_HOSTS_MAX, Activation, Owner, Requester
from igdpcp.pcp.message import MapRequest, ResultCode, decode_request
from igdpcp.pcp.options import CLEAR_PREFIX, Filter
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.hall import A, B, Hall, Reply, settle
from tests.support.virtual_time import virtual
from tests.support.whole_path import WholePath

X, Y, Z = "198.51.100.9", "198.51.100.10", "198.51.100.11"


async def opened(tmp_path: Path, *hosts: str, **options: Any) -> Hall:
    """With port 8080 open for these."""
    hall = Hall(tmp_path, **options)
    for host in hosts:
        assert (await hall.add(8080, RemoteHost=host)).code == 0
    return hall


async def removed(hall: Hall, host: str, **who: Any) -> int:
    requester = who.get("requester", A)
    reply = await hall.soap("DeletePortMapping", requester, 2, RemoteHost=host, ExternalPort=8080, Protocol="TCP")
    return reply.code


async def specific(hall: Hall, host: str) -> Reply:
    return await hall.soap("GetSpecificPortMappingEntry", RemoteHost=host, ExternalPort=8080, Protocol="TCP")


async def shown(hall: Hall) -> list[str]:
    return [row["RemoteHost"] for row in await hall.listed()]


def asked(hall: Hall) -> list[str]:
    """Whom the carrier was asked to let in last."""
    return [str(host) for host in hall.carrier.asked[-1].remote_hosts]


def let_in(hall: Hall) -> list[str]:
    """By the router."""
    return [str(host) for host in hall.only_rule.remote_hosts]


def test_iwf_097_one_map_clears_the_filters_and_has_one_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps: list[MapRequest] = []

    @virtual
    async def run() -> None:
        path = WholePath(tmp_path, PROFILES["lifetime_86400"], monkeypatch, external_ip_probe=False)
        post = path.post

        def seen(data: bytes, source: Any) -> None:
            request = decode_request(data)
            if isinstance(request, MapRequest):
                maps.append(request)
            post(data, source)

        monkeypatch.setattr(path, "post", seen)
        await path.start()
        for host in X, Y:
            assert (await path.hall.add(8080, RemoteHost=host)).code == 0
        assert await removed(path.hall, X) == 0
        assert len(path.carrier_holds()) == 1
        path.close()

    run()
    filters = [[each for each in request.options if isinstance(each, Filter)] for request in maps]
    assert all(each[0].prefix_length == CLEAR_PREFIX for each in filters)
    assert [[str(each.address) for each in some[1:]] for some in filters] == [[X], [X, Y], [Y]]
    assert len({(request.nonce, request.internal_port) for request in maps}) == 1


@virtual
async def test_iwf_097_a_second_remote_host_of_the_same_client_is_an_entry_of_the_same_mapping(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, Y)
    assert (asked(hall), let_in(hall), await shown(hall)) == ([X, Y], [X, Y], [X, Y])
    assert (hall.interworking.number_of_entries, len(hall.table)) == (2, 1)
    assert [(await specific(hall, host)).code for host in (X, Y, Z)] == [0, 0, 714]
    listing = await hall.soap(
        "GetListOfPortMappings", A, 2, StartPort=8080, EndPort=8080, Protocol="TCP", Manage=0, NumberOfPorts=0
    )
    assert [listing["PortListing"].count(f"<p:NewRemoteHost>{host}<") for host in (X, Y)] == [1, 1]


@virtual
async def test_iwf_097_another_client_or_another_internal_port_is_a_conflict_and_changes_nothing(
    tmp_path: Path,
) -> None:
    hall = await opened(tmp_path, X)
    assert (await hall.add(8080, B, RemoteHost=Y)).code == 718
    assert (await hall.add(8080, RemoteHost=Y, InternalPort=8001)).code == 718
    assert (len(hall.carrier.asked), let_in(hall)) == (1, [X])
    await hall.add(8080, RemoteHost=Y)
    assert (await hall.add(8080, RemoteHost=X, InternalPort=8001)).code == 718
    assert str(hall.only_rule.client) == f"{A}:8000"


@virtual
async def test_iwf_097_with_an_entry_for_everybody_there_is_no_filter(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, "")
    assert (asked(hall), let_in(hall), hall.only_rule.hairpins, await shown(hall)) == ([], [], True, [X, ""])
    assert (await hall.add(8080, RemoteHost=Y)).code == 0
    assert await shown(hall) == [X, "", Y]
    assert await removed(hall, "") == 0
    assert (asked(hall), let_in(hall), hall.only_rule.hairpins) == ([X, Y], [X, Y], False)


@virtual
async def test_iwf_097_the_answer_waits_for_carrier_and_kernel(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    assert (adding.done(), let_in(hall), await shown(hall)) == (False, [X], [X])
    assert (await hall.add(8080, RemoteHost=X)).code == 0
    hall.ruleset.slow = 0.5
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(0.4)
    assert (adding.done(), await shown(hall)) == (False, [X])
    assert ((await adding).code, let_in(hall), await shown(hall)) == (0, [X, Y], [X, Y])


@pytest.mark.parametrize("trouble", ["refused", "silent", "away", "kernel"])
def test_iwf_097_one_that_is_refused_leaves_the_others_as_they_were(tmp_path: Path, trouble: str) -> None:
    @virtual
    async def run() -> None:
        hall = await opened(tmp_path, X)
        update_id, grant = hall.interworking.system_update_id, hall.only.grant
        match trouble:
            case "refused":
                hall.carrier.refuses(ResultCode.EXCESSIVE_REMOTE_PEERS)
            case "silent":
                hall.carrier.silent = True
            case "away":
                hall.carrier.become(Activation.LOST)
            case "kernel":
                hall.ruleset.fails = 1
        began = hall.loop.time()
        assert (await hall.add(8080, RemoteHost=Y)).code == 501
        assert (hall.loop.time() > began) is (trouble == "silent")
        await asyncio.sleep(20)
        assert (asked(hall), let_in(hall), await shown(hall)) == ([X], [X], [X])
        assert hall.interworking.system_update_id == update_id
        assert hall.only.grant
        assert grant
        assert hall.only.grant.external == grant.external
        assert (hall.upstream_leg.joining, hall.table.counted, hall.table.held_by(IPv4Address(A))) == ({}, 1, 1)

    run()


@virtual
async def test_iwf_097_the_same_one_asked_for_twice_is_joined(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent = True
    both = [asyncio.ensure_future(hall.add(8080, RemoteHost=Y)) for _ in range(2)]
    await settle()
    hall.carrier.grant(hall.only.id)
    assert [(await each).code for each in both] == [0, 0]
    assert (asked(hall), await shown(hall), hall.table.counted) == ([X, Y], [X, Y], 2)


@virtual
async def test_iwf_097_each_is_refreshed_and_deleted_by_itself_and_the_last_one_ends_the_mapping(
    tmp_path: Path,
) -> None:
    hall = await opened(tmp_path, X, Y, Z)
    id = hall.only.id
    assert (await hall.add(8080, RemoteHost=Y, PortMappingDescription="new", LeaseDuration=7200)).code == 0
    rows = await hall.listed()
    assert [(row["RemoteHost"], row["PortMappingDescription"], row["LeaseDuration"]) for row in rows] == [
        (X, "test", "3600"), (Y, "new", "7200"), (Z, "test", "3600"),
    ]  # fmt: skip
    update_id = hall.interworking.system_update_id
    assert [await removed(hall, host) for host in (X, X)] == [0, 714]
    assert hall.interworking.system_update_id == update_id + 1
    assert (asked(hall), let_in(hall), await shown(hall), hall.only.id) == ([Y, Z], [Y, Z], [Y, Z], id)
    assert await removed(hall, Z) == 0
    assert (hall.carrier.returned, await shown(hall)) == ([], [Y])
    assert await removed(hall, Y) == 0
    assert (hall.carrier.returned, list(hall.table), hall.ruleset.rules) == ([id], [], {})


@virtual
async def test_iwf_097_each_lease_ends_by_itself_and_the_carrier_is_asked_until_the_longest(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for host, lease in ((X, 100), (Y, 1000), (Z, 10)):
        assert (await hall.add(8080, RemoteHost=host, LeaseDuration=lease)).code == 0
    assert hall.carrier.asked[-1].until == pytest.approx(hall.loop.time() + 1000, abs=1)
    await asyncio.sleep(11)
    assert (await shown(hall), let_in(hall), asked(hall)) == ([X, Y], [X, Y], [X, Y])
    await asyncio.sleep(90)
    assert (await shown(hall), let_in(hall), asked(hall)) == ([Y], [Y], [Y])
    await asyncio.sleep(900)
    assert (await shown(hall), hall.ruleset.rules, len(hall.carrier.returned)) == ([], {}, 1)


@virtual
async def test_iwf_097_only_those_without_end_are_asked_for_again_when_the_grant_is_lost(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    await hall.add(8080, RemoteHost=Y, LeaseDuration=0)
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (await shown(hall), asked(hall)) == ([], [Y])
    hall.carrier.grant(hall.only.id)
    await settle()
    assert (await shown(hall), let_in(hall)) == ([Y], [Y])


@virtual
async def test_iwf_097_the_listing_is_by_age_across_mappings(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    await hall.add(8081)
    for host in Y, Z:
        await hall.add(8080, RemoteHost=host)
    rows = [(row["ExternalPort"], row["RemoteHost"]) for row in await hall.listed()]
    assert rows == [("8080", X), ("8081", ""), ("8080", Y), ("8080", Z)]
    await removed(hall, Y)
    rows = [(row["ExternalPort"], row["RemoteHost"]) for row in await hall.listed()]
    assert rows == [("8080", X), ("8081", ""), ("8080", Z)]


@virtual
async def test_iwf_097_each_counts_for_the_quota_also_while_it_is_on_its_way(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, max_mappings_per_host=2)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    assert (await hall.add(8080, version=2, RemoteHost=Z)).code == 728
    assert (await hall.add(8081, version=2)).code == 728
    hall.carrier.grant(hall.only.id)
    assert (await adding).code == 0
    assert await removed(hall, X) == 0
    assert (await hall.add(8080, RemoteHost=Z, version=2)).code == 501  # there is room: it is asked


@virtual
async def test_iwf_097_as_many_as_one_request_holds(tmp_path: Path) -> None:
    hosts = [f"198.51.100.{n}" for n in range(1, REMOTE_HOSTS_MAX + 2)]
    hall = await opened(tmp_path, *hosts[:-1], adds_per_second=100)
    assert (await hall.add(8080, RemoteHost=hosts[-1])).code == 718
    assert await shown(hall) == asked(hall) == hosts[:-1]


@virtual
async def test_iwf_097_a_range_is_deleted_with_all_of_them_as_one_change(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, Y)
    update_id = hall.interworking.system_update_id
    reply = await hall.soap("DeletePortMappingRange", A, 2, StartPort=8000, EndPort=9000, Protocol="TCP", Manage=0)
    assert (reply.code, list(hall.table), hall.interworking.system_update_id) == (0, [], update_id + 1)


@pytest.mark.parametrize("killed", [True, False])
def test_iwf_097_all_of_them_survive_a_restart_but_those_whose_lease_is_over(tmp_path: Path, killed: bool) -> None:
    @virtual
    async def run() -> None:
        hall = await opened(tmp_path, X, Y)
        await hall.add(8080, RemoteHost=Z, LeaseDuration=20)
        hall.kill() if killed else await hall.stop()
        await asyncio.sleep(30)
        second = Hall(tmp_path)
        await second.restart.restore()
        await settle()
        assert (await shown(second), asked(second), let_in(second)) == ([X, Y], [X, Y], [X, Y])
        assert second.table.counted == second.table.listed == 2

    run()


@pytest.mark.parametrize("routed", [True, False])
def test_iwf_097_with_and_without_nat_in_the_router(tmp_path: Path, routed: bool) -> None:
    @virtual
    async def run() -> None:
        hall = await opened(tmp_path, X, Y, routed=routed)
        assert (asked(hall), let_in(hall), len(hall.table)) == ([X, Y], [X, Y], 1)

    run()


@virtual
async def test_iwf_097_without_nat_in_the_router_any_port_is_the_one_that_its_other_remote_hosts_have(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path, routed=True)
    ports = [(await hall.add(8080, any_port=True, RemoteHost=host))["ReservedPort"] for host in (X, Y, Y)]
    assert (ports, await shown(hall), len(hall.table)) == (["8080"] * 3, [X, Y], 1)


@virtual
async def test_iwf_097_where_only_the_router_checks_the_carrier_is_not_asked_again(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, Y, remote_host="local")
    assert (let_in(hall), [request.remote_hosts for request in hall.carrier.asked]) == ([X, Y], [(), ()])


@virtual
async def test_iwf_097_where_the_router_grants_alone(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    for host in X, Y:
        assert (await hall.add(8080, RemoteHost=host)).code == 0
    assert (let_in(hall), await shown(hall)) == ([X, Y], [X, Y])


@virtual
async def test_iwf_097_flows_of_a_remote_host_that_goes_are_cut_and_no_others(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, Y, cut_flows=True)
    assert await removed(hall, Y) == 0
    assert [(str(cut.remote_host), cut.spared) for cut in hall.flows.cuts] == [(Y, {IPv4Address(X)})]
    assert (await hall.add(8080, RemoteHost="")).code == 0
    assert await removed(hall, "") == 0
    assert [(cut.remote_host, cut.spared) for cut in hall.flows.cuts[1:]] == [(None, {IPv4Address(X)})]
    assert (await hall.add(8080, RemoteHost="")).code == 0
    assert await removed(hall, X) == 0
    assert len(hall.flows.cuts) == 2


@virtual
async def test_iwf_097_what_comes_meanwhile_takes_those_that_join_along(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    hall.router.wan_address = IPv4Address("100.64.12.99")
    hall.lifecycle.wan_changed()
    await settle()
    assert (asked(hall), let_in(hall), await shown(hall)) == ([X, Y], [X], [X])
    hall.carrier.grant(hall.only.id)
    assert ((await adding).code, let_in(hall)) == (0, [X, Y])


@virtual
async def test_iwf_097_what_is_renewed_meanwhile_for_the_others_lets_nobody_else_in(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    assert hall.only.grant
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    hall.carrier.emit(Granted(hall.only.id, hall.only.grant, (IPv4Address(X),)))
    await settle()
    assert (adding.done(), let_in(hall)) == (False, [X])
    assert (await adding).code == 501


@virtual
async def test_iwf_097_what_the_kernel_has_too_late_is_taken_away_again(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent, hall.ruleset.slow = True, 5.0
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    hall.carrier.grant(hall.only.id)
    assert (await adding).code == 501
    await asyncio.sleep(20)
    assert (let_in(hall), asked(hall), await shown(hall)) == ([X], [X], [X])


@virtual
async def test_iwf_097_a_late_grant_that_was_told_to_nobody_is_not_what_somebody_joins(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    assert (await hall.add(8080, RemoteHost=X)).code == 501
    hall.carrier.grant(id := hall.only.id)
    await settle()
    hall.carrier.silent, hall.carrier.releases = False, None
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    assert (asked(hall), hall.carrier.returned) == ([X], [id]), "the port is free there when it is given back"
    hall.carrier.emit(Released(id, 0))
    assert (await adding).code == 0
    assert (await shown(hall), asked(hall), hall.carrier.returned) == ([Y], [Y], [id])


@virtual
async def test_iwf_097_what_ends_meanwhile_ends_for_those_that_join(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    assert await removed(hall, X) == 0
    assert ((await adding).code, list(hall.table), hall.ruleset.rules) == (501, [], {})
    assert (hall.upstream_leg.joining, hall.table.counted) == ({}, 0)


@virtual
async def test_iwf_097_what_is_being_deleted_is_not_asked_for_again_when_nobody_joins_it_any_more(
    tmp_path: Path,
) -> None:
    hall = await opened(tmp_path, X)
    id, hall.carrier.silent, hall.carrier.releases = hall.only.id, True, None
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    asked = len(hall.carrier.asked)
    deleting = asyncio.ensure_future(removed(hall, X))
    assert (await adding).code == 501
    assert (len(hall.carrier.asked), hall.carrier.returned) == (asked, [id])
    hall.carrier.emit(Released(id, 0))
    assert await deleting == 0


@virtual
async def test_iwf_097_one_of_the_operators_is_the_operators_to_end(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    request = hall.only.request
    operators = replace(request, requester=Requester(None, Owner.OPERATOR), remote_host=IPv4Address(Y))
    await hall.interworking.add_port_mapping(operators)
    assert [await removed(hall, host) for host in (Y, X)] == [606, 0]
    assert (await shown(hall), hall.table.held_by(IPv4Address(A))) == ([Y], 0)
    hall.lifecycle.departures.dhcp_leases_ended([IPv4Address(A)])
    await settle()
    assert await shown(hall) == [Y]


@pytest.mark.parametrize(("switch", "code"), [("both", 0), ("filter", 501)])
def test_iwf_097_a_carrier_that_takes_one_filter_lets_everybody_in_where_the_router_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str, code: int
) -> None:
    @virtual
    async def run() -> None:
        profile = replace(PROFILES["lifetime_86400"], peers=1)
        path = WholePath(tmp_path, profile, monkeypatch, external_ip_probe=False, remote_host=switch)
        await path.start()
        assert (await path.hall.add(8080, RemoteHost=X)).code == 0
        assert (await path.hall.add(8080, RemoteHost=Y)).code == code
        await asyncio.sleep(5)
        (filters,) = path.carrier_filters().values()
        assert {str(host) for host in filters} == ({X} if code else set())
        assert await shown(path.hall) == ([X] if code else [X, Y])
        if switch == "both":
            assert let_in(path.hall) == [X, Y]
        assert (await path.hall.add(8080, RemoteHost=X)).code == 0
        path.close()

    run()


def test_iwf_097_a_late_word_about_those_before_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a renewal that was on its way when somebody joined, while what was asked then is lost."""

    @virtual
    async def run() -> None:
        path = WholePath(tmp_path, PROFILES["lifetime_86400"], monkeypatch, external_ip_probe=False)
        await path.start()
        await path.hall.add(8080, RemoteHost=X, LeaseDuration=100)
        await asyncio.sleep(10)
        path.link.switches.set(delay=400.0)
        await path.hall.add(8080, RemoteHost=X, LeaseDuration=200)
        path.link.switches.set(loss=1.0)
        assert (await path.hall.add(8080, RemoteHost=Y)).code == 501
        path.close()

    run()


@virtual
async def test_iwf_097_who_joins_keeps_its_rules_when_another_leaves_at_that_moment(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, Y)
    hall.ruleset.slow = 0.5
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Z))
    await settle()
    hall.carrier.silent = True
    assert await removed(hall, Y) == 0
    assert ((await adding).code, await shown(hall), let_in(hall)) == (0, [X, Z], [X, Z])


@virtual
async def test_iwf_097_what_nobody_waits_for_any_more_is_not_what_somebody_joins(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    assert (await hall.add(8080, LeaseDuration=0)).code == 501
    id = hall.only.id
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    hall.carrier.grant(hall.only.id)
    assert (await adding).code == 0
    assert (await shown(hall), asked(hall), let_in(hall), hall.carrier.returned) == ([Y], [Y], [Y], [id])


@virtual
async def test_iwf_097_what_is_not_waited_for_longer_is_not_opened_for_who_came_second(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    first = asyncio.ensure_future(hall.add(8080, RemoteHost=X))
    await asyncio.sleep(hall.main.soap_deadline / 2)
    second = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    assert (await first).code == 501
    await settle()
    hall.carrier.grant(hall.only.id)
    assert ((await second).code, await shown(hall), let_in(hall)) == (0, [Y], [Y])


@virtual
async def test_iwf_097_a_late_grant_that_is_being_opened_for_the_retry_is_joined(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    assert (await hall.add(8080, RemoteHost=X)).code == 501
    hall.carrier.grant(hall.only.id)
    await settle()
    hall.carrier.silent, hall.ruleset.slow = False, 0.5
    both = [asyncio.ensure_future(hall.add(8080, RemoteHost=host)) for host in (X, Y)]
    assert [(await each).code for each in both] == [0, 0]
    assert (await shown(hall), let_in(hall), hall.carrier.returned) == ([X, Y], [X, Y], [])


@virtual
async def test_iwf_097_without_nat_in_the_router_any_port_waits_for_the_one_on_its_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    hall.carrier.silent = True
    both = [asyncio.ensure_future(hall.add(8080, any_port=True, RemoteHost=host)) for host in (X, Y)]
    await settle()
    hall.carrier.silent = False
    hall.carrier.grant(hall.only.id)
    assert [(await each).code for each in both] == [0, 0]
    assert (await shown(hall), let_in(hall)) == ([X, Y], [X, Y])


@virtual
async def test_iwf_097_a_second_request_for_one_on_its_way_changes_it_as_it_would_later(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, max_mappings_per_host=2)
    hall.carrier.silent = True
    first = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    second = asyncio.ensure_future(
        hall.add(8080, version=2, RemoteHost=Y, LeaseDuration=7200, PortMappingDescription="new")
    )
    await settle()
    hall.carrier.grant(hall.only.id)
    assert [(await each).code for each in (first, second)] == [0, 0]
    rows = [(row["RemoteHost"], row["PortMappingDescription"], row["LeaseDuration"]) for row in await hall.listed()]
    assert rows == [(X, "test", "3600"), (Y, "new", "7200")]


@virtual
async def test_iwf_097_what_the_operator_asked_for_first_is_the_operators(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent = True
    operators = replace(hall.only.request, requester=Requester(None, Owner.OPERATOR), remote_host=IPv4Address(Y))
    first = asyncio.ensure_future(hall.interworking.add_port_mapping(operators))
    await settle()
    second = asyncio.ensure_future(hall.add(8080, version=2, RemoteHost=Y))
    await settle()
    hall.carrier.grant(hall.only.id)
    assert (await first).request == operators
    assert (await second).code != 0
    assert (await shown(hall), await removed(hall, Y)) == ([X, Y], 606)


@pytest.mark.parametrize("checked", ["by the router", "for everybody"])
def test_iwf_097_who_is_refused_while_the_grant_is_in_doubt_is_not_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: str
) -> None:
    @virtual
    async def run() -> None:
        host, switch = (X, "local") if checked == "by the router" else ("", "both")
        options = {"external_ip_probe": False, "remote_host": switch, "unreachable_policy": "error"}
        path = WholePath(tmp_path, PROFILES["lifetime_86400"], monkeypatch, **options)
        await path.start()
        assert (await path.hall.add(8080, RemoteHost=host)).code == 0
        path.carrier_restarts(announce=True)
        await asyncio.sleep(0.05)
        path.link.switches.set(loss=1.0)
        assert (await path.hall.add(8080, RemoteHost=Y)).code == 501
        assert (await shown(path.hall), path.hall.only_rule.remote_hosts) == (
            [host], (IPv4Address(X),) if host else (),
        )  # fmt: skip
        path.link.switches.set(loss=0.0)
        await asyncio.sleep(30)
        path.carrier_restarts(announce=True)
        await asyncio.sleep(0.05)
        assert (await path.hall.add(8080, RemoteHost=Y)).code == 0
        assert (await shown(path.hall), len(path.carrier_holds())) == ([host, Y], 1)
        path.close()

    run()
