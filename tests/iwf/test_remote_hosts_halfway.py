# SPDX-License-Identifier: Apache-2.0
"""Remote hosts that come and go while something else of their mapping is on its way, or goes wrong."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.model import Owner, Requester, UpstreamRequest
from tests.iwf.test_remote_hosts import X, Y, Z, let_in, opened, removed, shown
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.hall import A, Hall, settle
from tests.support.virtual_time import virtual
from tests.support.whole_path import WholePath

OPERATOR = Requester(None, Owner.OPERATOR)


async def granted_anew(tmp_path: Path, *hosts: str, **options: str) -> Hall:
    """With endless leases of these, whose grant was lost and the next one's rules are being laid."""
    hall = Hall(tmp_path, **options)
    for host in hosts:
        assert (await hall.add(8080, RemoteHost=host, LeaseDuration=0)).code == 0
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await settle()
    hall.ruleset.slow = 0.5
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(0.2)
    return hall


@virtual
async def test_iwf_097_who_leaves_while_the_rules_are_laid_anew_is_kept_out(tmp_path: Path) -> None:
    hall = await granted_anew(tmp_path, X, Y, remote_host="local")
    assert await removed(hall, Y) == 0
    await asyncio.sleep(5)
    assert (await shown(hall), let_in(hall)) == ([X], [X])


@virtual
async def test_iwf_093_another_client_port_while_the_rules_are_laid_anew_is_where_they_lead(tmp_path: Path) -> None:
    hall = await granted_anew(tmp_path, "")
    assert (await hall.add(8080, InternalPort=8001, LeaseDuration=0)).code == 0
    assert str(hall.only_rule.client) == f"{A}:8001"


@virtual
async def test_iwf_097_an_entry_of_what_is_being_deleted_goes_with_it_or_stays(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, unreachable_policy="error")
    request = replace(hall.only.request, requester=OPERATOR, remote_host=IPv4Address(Y))
    await hall.interworking.add_port_mapping(request)
    hall.carrier.releases = None
    closing = asyncio.ensure_future(hall.interworking.delete(OPERATOR, hall.only))
    await settle()
    reply = await hall.soap("DeletePortMappingRange", A, 2, StartPort=8000, EndPort=9000, Protocol="TCP", Manage=0)
    await asyncio.wait([closing])
    assert closing.exception()
    assert (reply.code, await shown(hall)) == (501, [X, Y])


@pytest.mark.parametrize("turns", range(8))
def test_iwf_097_who_joins_keeps_its_rules_whenever_another_leaves(tmp_path: Path, turns: int) -> None:
    @virtual
    async def run() -> None:
        hall = await opened(tmp_path, X, Y)
        hall.carrier.silent = True
        adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Z))
        await settle()
        hall.carrier.grant(hall.only.id)
        for _ in range(turns):
            await asyncio.sleep(0)
        left = hall.only.keeping(lambda each: str(each.request.remote_host) != Y)
        assert left
        hall.lifecycle.remote_hosts.narrow(hall.only, left)
        assert (await adding).code == 0
        await asyncio.sleep(5)
        assert (await shown(hall), let_in(hall)) == ([X, Z], [X, Z])

    run()


@virtual
async def test_iwf_097_who_is_on_its_way_does_not_join_what_leads_to_another_client_port_by_then(
    tmp_path: Path,
) -> None:
    hall = await opened(tmp_path, X)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    assert (await hall.add(8080, RemoteHost=X, InternalPort=8001)).code == 0
    hall.carrier.grant(hall.only.id)
    assert (await adding).code == 501
    await settle()
    assert (await shown(hall), let_in(hall), str(hall.only_rule.client)) == ([X], [X], f"{A}:8001")


@virtual
async def test_iwf_097_nobody_joins_by_a_grant_that_was_lost(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.add(8080, LeaseDuration=0)).code == 0
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (await hall.add(8080, RemoteHost=Y)).code == 501
    assert (await shown(hall), hall.ruleset.rules) == ([], {})


@virtual
async def test_iwf_097_who_cannot_be_asked_for_leaves_nothing_behind(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)

    def fail(request: UpstreamRequest) -> None:
        hall.carrier.answer = None
        raise OSError("once")

    hall.carrier.answer = fail
    with pytest.raises(OSError, match="once"):
        await hall.add(8080, RemoteHost=Y)
    assert (hall.upstream_leg.joining, hall.table.counted, hall.table.held_by(IPv4Address(A))) == ({}, 1, 1)
    assert ((await hall.add(8080, RemoteHost=Y)).code, await shown(hall)) == (0, [X, Y])


@virtual
async def test_iwf_097_who_was_about_to_join_when_the_service_ended_starts_nothing_more(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X)
    hall.ruleset.slow = 5
    adding = asyncio.ensure_future(hall.add(8080, RemoteHost=Y))
    await settle()
    before = asyncio.all_tasks()
    await hall.lifecycle.stop()
    assert (await adding).code == 501
    await settle()
    assert asyncio.all_tasks() <= before


@virtual
async def test_iwf_097_flows_of_all_are_cut_when_only_some_are_asked_for_again(tmp_path: Path) -> None:
    hall = await opened(tmp_path, X, cut_flows=True)
    await hall.add(8080, RemoteHost=Y, LeaseDuration=0)
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await settle()
    assert [str(cut.remote_host) for cut in hall.flows.cuts] == [X, Y]


def test_iwf_097_where_only_the_carrier_checks_nobody_gets_in_beside_those_who_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @virtual
    async def run() -> None:
        profile = replace(PROFILES["lifetime_86400"], peers=0)
        path = WholePath(tmp_path, profile, monkeypatch, external_ip_probe=False, remote_host="filter")
        await path.start()
        for host in "", X:
            assert (await path.hall.add(8080, RemoteHost=host)).code == 0
        assert await removed(path.hall, "") == 0
        await asyncio.sleep(5)
        assert (await shown(path.hall), path.carrier_filters(), path.hall.ruleset.rules) == ([], {}, {})
        path.close()

    run()


def test_iwf_097_who_is_refused_after_the_carrier_has_lost_its_state_does_not_cost_the_others_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @virtual
    async def run() -> None:
        profile = replace(PROFILES["lifetime_86400"], peers=1)
        path = WholePath(tmp_path, profile, monkeypatch, external_ip_probe=False, remote_host="filter")
        await path.start()
        assert (await path.hall.add(8080, RemoteHost=X)).code == 0
        path.carrier_restarts(announce=True)
        await asyncio.sleep(0.05)
        assert (await path.hall.add(8080, RemoteHost=Y)).code == 501
        await asyncio.sleep(5)
        (filters,) = path.carrier_filters().values()
        assert (await shown(path.hall), filters) == ([X], {IPv4Address(X)})
        path.close()

    run()
