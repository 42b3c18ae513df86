# SPDX-License-Identifier: Apache-2.0
"""The switches in which the interworking documents differ, each at each of its values, as control points see them."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from igdpcp.iwf.hidden import HIDDEN_SECONDS
from igdpcp.model import Activation, Endpoint, MappingState
from igdpcp.pcp.message import ResultCode
from igdpcp.profiles import PROFILES
from tests.support.hall import CARRIER, A, B, Hall, settle
from tests.support.virtual_time import virtual

REMOTE = "198.51.100.9"
DRAFT01, RFC6970 = PROFILES["draft01"], PROFILES["rfc6970"]


# RemoteHost


@virtual
async def test_iwf_095_reject_refuses_every_remote_host_and_asks_nobody(tmp_path: Path) -> None:
    hall = Hall(tmp_path, **DRAFT01)
    assert [(await hall.add(8080, RemoteHost=REMOTE, version=v)).code for v in (1, 2)] == [726, 501]
    assert (await hall.add(8080, RemoteHost=REMOTE, any_port=True)).code == 501
    assert hall.carrier.asked == []
    assert (await hall.add(8080)).code == 0


@pytest.mark.parametrize(
    ("switch", "upstream", "router"),
    [("filter", True, False), ("local", False, True), ("both", True, True)],
)
def test_iwf_095_who_keeps_other_hosts_out_is_the_carrier_the_router_or_both(
    tmp_path: Path, switch: str, upstream: bool, router: bool
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, remote_host=switch)
        assert (await hall.add(8080, RemoteHost=REMOTE)).code == 0
        assert hall.carrier.asked[0].remote_hosts == ((IPv4Address(REMOTE),) if upstream else ())
        assert hall.only_rule.remote_hosts == ((IPv4Address(REMOTE),) if router else ())
        assert not hall.only_rule.hairpins
        (row,) = await hall.listed()
        assert row["RemoteHost"] == REMOTE
        assert (await hall.add(8081, InternalPort=8100)).code == 0
        assert hall.ruleset.puts[-1].hairpins

    run()


@virtual
async def test_iwf_095_what_the_router_grants_alone_is_checked_by_the_router(tmp_path: Path) -> None:
    hall = Hall(tmp_path, remote_host="filter")
    hall.carrier.state = Activation.LOST
    assert (await hall.add(8080, RemoteHost=REMOTE)).code == 0
    assert hall.only_rule.remote_hosts == (IPv4Address(REMOTE),)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    assert (hall.only_rule.remote_hosts, hall.only_rule.external.address) == ((), CARRIER)


# Another client's port


@virtual
async def test_iwf_082_another_clients_port_is_refused_without_the_carrier(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    assert (await hall.add(8080, B)).code == 718
    assert len(hall.carrier.asked) == 1


@pytest.mark.parametrize("routed", [False, True])
def test_iwf_082_without_the_check_the_carrier_is_asked_and_decides(tmp_path: Path, routed: bool) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, routed=routed, **RFC6970)
        await hall.add(8080, A)
        hall.carrier.refuses(ResultCode.CANNOT_PROVIDE_EXTERNAL)
        assert (await hall.add(8080, B)).code == 718
        first, second = hall.carrier.asked
        assert (second.external_port, second.exact) == (8080, True)
        assert second.internal != first.internal
        await settle()
        (row,) = await hall.listed()
        assert row["InternalClient"] == A
        assert len(hall.ruleset.rules) == 1

    run()


@virtual
async def test_iwf_082_a_port_that_the_carrier_grants_twice_stays_the_first_clients(tmp_path: Path) -> None:
    hall = Hall(tmp_path, local_conflict_check=False)
    await hall.add(8080, A)
    assert (await hall.add(8080, B)).code == 718
    await settle()
    assert hall.only.request.client.address == IPv4Address(A)
    assert hall.only_rule.client == Endpoint(IPv4Address(A), 8000)
    assert len(hall.carrier.returned) == 1
    assert (await hall.delete(8080, A)).code == 0
    assert (await hall.add(8080, B)).code == 0


@virtual
async def test_iwf_082_a_port_that_its_first_client_gives_up_meanwhile_is_the_seconds(tmp_path: Path) -> None:
    hall = Hall(tmp_path, local_conflict_check=False)
    await hall.add(8080, A)
    hall.carrier.silent = True
    second = asyncio.create_task(hall.add(8080, B))
    await settle()
    assert (await hall.delete(8080, A)).code == 0
    hall.carrier.grant(hall.carrier.asked[-1].id)
    assert (await second).code == 0
    (row,) = await hall.listed()
    assert row["InternalClient"] == B
    assert (await hall.delete(8080, B)).code == 0
    assert len(hall.table) == 0


@virtual
async def test_iwf_082_one_client_at_a_time_contends_for_a_port_and_its_repetitions_join(tmp_path: Path) -> None:
    hall = Hall(tmp_path, local_conflict_check=False)
    await hall.add(8080, A)
    hall.carrier.silent = True
    contending = [asyncio.create_task(hall.add(8080, B)) for _ in range(5)]
    await settle()
    assert (await hall.add(8080, "192.168.1.70")).code == 718
    assert len(hall.carrier.asked) == 2
    hall.carrier.refuse(hall.carrier.asked[-1].id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
    assert [(await each).code for each in contending] == [718] * 5


@pytest.mark.parametrize("options", [{}, {"carrier": False}])
def test_iwf_082_while_no_carrier_answers_the_router_decides(tmp_path: Path, options: dict[str, Any]) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, local_conflict_check=False, **options)
        await hall.add(8080, A)
        asked = len(hall.carrier.asked)
        hall.carrier.state = Activation.LOST
        assert [(await hall.add(8080, B, version=version)).code for version in (1, 2)] == [718, 718]
        assert len(hall.carrier.asked) == asked

    run()


@pytest.mark.parametrize(
    ("options", "code"),
    [({}, 718), ({"specific_inuse_error": 714}, 714), ({"specific_other_cp": "show"}, 0)],
)
def test_iwf_112_another_clients_entry_is_refused_or_shown(tmp_path: Path, options: dict[str, Any], code: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, **options)
        await hall.add(8080, A)
        reply = await hall.specific(8080, B)
        assert reply.code == code
        if not code:
            assert (reply["InternalClient"], reply["InternalPort"]) == (A, "8000")
        assert len(hall.carrier.asked) == 1

    run()


@pytest.mark.parametrize(
    ("options", "code"), [({}, 718), ({"specific_inuse_error": 714}, 714), ({"routed": True}, 718)]
)
def test_iwf_112_with_relay_the_carrier_is_asked_for_another_clients_port(
    tmp_path: Path, options: dict[str, Any], code: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, specific_other_cp="relay", **options)
        await hall.add(8080, A)
        hall.carrier.refuses(ResultCode.CANNOT_PROVIDE_EXTERNAL)
        assert (await hall.specific(8080, B)).code == code
        first, second = hall.carrier.asked
        assert (second.external_port, second.exact) == (8080, True)
        assert second.until == pytest.approx(hall.loop.time() + 60, abs=1)
        assert second.internal != first.internal
        assert (await hall.specific(8080, A))["InternalClient"] == A
        assert len(hall.table) == 1

    run()


@virtual
async def test_iwf_112_a_relayed_query_that_the_carrier_grants_or_does_not_get_leaves_the_port_with_its_client(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path, **RFC6970 | {"soap_deadline": 3.8})
    await hall.add(8080, A)
    assert (await hall.specific(8080, B)).code == 718
    await settle()
    assert (len(hall.table), len(hall.carrier.returned)) == (1, 1)
    hall.carrier.silent = True
    began = hall.loop.time()
    assert (await hall.specific(8080, B)).code == 501
    assert hall.loop.time() - began == pytest.approx(3.8, abs=0.1)
    await asyncio.sleep(200)
    assert hall.only.request.client.address == IPv4Address(A)
    assert len(hall.ruleset.rules) == 1


@pytest.mark.parametrize("code", [718, 714])
def test_iwf_114_a_port_that_the_carrier_refuses_to_a_query_is_in_use(tmp_path: Path, code: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, specific_inuse_error=code)
        hall.carrier.refuses(ResultCode.CANNOT_PROVIDE_EXTERNAL)
        assert (await hall.specific(9000, A)).code == code

    run()


@virtual
async def test_iwf_112_what_is_hidden_from_other_hosts_is_not_shown_either(tmp_path: Path) -> None:
    hall = Hall(tmp_path, specific_other_cp="show", private_list=True)
    await hall.add(8080, A)
    assert (await hall.specific(8080, B)).code == 714


# Errors that may be over soon


@pytest.mark.parametrize(
    ("result", "lifetime", "options", "sent_at"),
    [
        pytest.param(11, 30, {}, [0, 30, 60], id="rfc6970"),
        pytest.param(11, 30, {"short_error_resends": 1}, [0, 30], id="draft01"),
        pytest.param(11, 30, {"short_error_resends": 0}, [0], id="none"),
        pytest.param(11, 5, {}, [0, 30, 60], id="not_before_the_wait_is_over"),
        pytest.param(11, 31, {}, [0], id="a_long_one_at_once"),
        pytest.param(10, 40, {}, [0, 40, 80], id="not_before_the_carrier_says_so"),
        pytest.param(10, 50, {}, [0, 50], id="only_while_the_answer_fits"),
        pytest.param(8, 1800, {}, [0], id="what_does_not_fit_is_told_at_once"),
        pytest.param(2, 5, {}, [0], id="what_does_not_pass_is_told_at_once"),
        pytest.param(11, 30, {"soap_deadline": 3.8}, [0], id="default_deadline"),
        pytest.param(11, 5, {"soap_deadline": 18.0, "short_error_wait": 5}, [0, 5, 10], id="own_wait"),
    ],
)
def test_iwf_085_086_a_short_error_is_asked_again_while_there_is_time(
    tmp_path: Path, result: int, lifetime: int, options: dict[str, Any], sent_at: list[int]
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, **{"soap_deadline": 90.0, **options})
        began = hall.loop.time()
        times: list[float] = []

        def refuse(request: Any) -> None:
            times.append(hall.loop.time() - began)
            hall.carrier.refuse(request.id, result, lifetime)

        hall.carrier.answer = refuse
        expected = {11: 718, 2: 718}.get(result, 501)
        assert (await hall.add(8080)).code == expected
        once = len(sent_at)
        if result == 2:  # from another WAN port
            once, sent_at[:] = 2, [0, 0]
        assert times == pytest.approx(sent_at, abs=0.1)
        assert hall.loop.time() - began == pytest.approx(sent_at[-1], abs=0.1)
        assert len(hall.table) == 0
        await asyncio.sleep(200)
        assert len(times) == once

    run()


@pytest.mark.parametrize("any_port", [True, False])
def test_iwf_072_what_is_granted_the_second_time_is_a_success(tmp_path: Path, any_port: bool) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, soap_deadline=90.0)
        began = hall.loop.time()
        hall.carrier.refuses(ResultCode.NO_RESOURCES, 30)
        adding = asyncio.create_task(hall.add(8080, any_port=any_port))
        await asyncio.sleep(29)
        hall.carrier.answer = None
        assert not hall.ruleset.rules
        assert (await adding).code == 0
        assert hall.loop.time() - began == pytest.approx(30, abs=0.1)
        assert len(hall.carrier.asked) == 2
        assert await hall.ports() == [8080]

    run()


@virtual
async def test_iwf_175_a_second_request_that_is_not_answered_is_501_at_the_deadline(tmp_path: Path) -> None:
    hall = Hall(tmp_path, soap_deadline=50.0)
    began = hall.loop.time()
    hall.carrier.refuses(ResultCode.CANNOT_PROVIDE_EXTERNAL, 30)
    adding = asyncio.create_task(hall.add(8080))
    await settle()
    hall.carrier.answer, hall.carrier.silent = None, True
    assert (await adding).code == 501
    assert hall.loop.time() - began == pytest.approx(50, abs=0.1)
    await asyncio.sleep(HIDDEN_SECONDS + 1)
    assert (len(hall.table), hall.ruleset.rules, hall.carrier.wanted) == (0, {}, {})


@virtual
async def test_iwf_085_what_is_deleted_while_it_waits_to_be_sent_again_is_not(tmp_path: Path) -> None:
    hall = Hall(tmp_path, soap_deadline=90.0)
    hall.carrier.refuses(ResultCode.CANNOT_PROVIDE_EXTERNAL, 30)
    adding = asyncio.create_task(hall.add(8080))
    await asyncio.sleep(10)
    assert hall.only.state is MappingState.PLANNED
    assert hall.carrier.wanted == {}, "what is wanted is asked for again when the server allows it, which may be sooner"
    assert (await hall.delete(8080)).code == 0
    assert (await adding).code == 501
    await asyncio.sleep(60)
    assert len(hall.carrier.asked) == 1


# The external address


@virtual
async def test_iwf_025_who_asks_for_the_address_is_answered_when_the_carrier_has_told_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.external_address = None

    async def learn() -> None:
        await asyncio.sleep(1)
        hall.carrier.move(CARRIER)

    hall.carrier.learns = learn
    assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == str(CARRIER)


@virtual
async def test_iwf_023_175_a_carrier_that_does_not_tell_its_address_is_waited_for_up_to_the_deadline(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    hall.carrier.external_address, began = None, hall.loop.time()
    hall.carrier.learns = lambda: asyncio.sleep(1000)
    asked = asyncio.create_task(hall.soap("GetExternalIPAddress"))
    await settle()
    before = hall.loop.time()
    assert (await hall.soap("GetStatusInfo")).code == 0
    assert hall.loop.time() == before
    assert (await asked)["ExternalIPAddress"] == ""
    assert hall.loop.time() - began == pytest.approx(hall.main.soap_deadline, abs=0.1)


# What outlives the process


def stored(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file()}


@virtual
async def test_iwf_042_with_persist_none_nothing_is_written_and_the_next_start_is_empty(tmp_path: Path) -> None:
    hall = Hall(tmp_path, persist="none")
    await hall.add(8080)
    assert (await hall.add(8081, InternalPort=8100)).code == 0
    hall.carrier.grant(hall.carrier.asked[0].id, lifetime=600)
    await hall.delete(8081)
    await settle()
    assert await hall.ports() == [8080]
    await hall.stop()
    assert stored(tmp_path) == set()
    after = Hall(tmp_path, persist="none")
    await after.restart.restore()
    assert (await after.ports(), after.ruleset.syncs) == ([], 1)
    assert (await after.add(8080)).code == 0


@virtual
async def test_iwf_042_what_was_stored_before_persistence_ended_is_adopted_once(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    await hall.stop()
    assert {"journal", "mappings"} <= stored(tmp_path)
    for expected in [8080], []:
        hall = Hall(tmp_path, persist="none")
        await hall.restart.restore()
        await settle()
        assert await hall.ports() == expected
        await hall.stop()
        assert stored(tmp_path) == set()


@virtual
async def test_iwf_042_043_persist_all_keeps_every_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path, persist="all")
    await hall.add(8080)
    await hall.stop()
    after = Hall(tmp_path, persist="all")
    await after.restart.restore()
    await settle()
    assert await after.ports() == [8080]
