# SPDX-License-Identifier: Apache-2.0
"""What the configuration wants open: opened at the start, kept so, and the configuration's alone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from igdpcp.config import PermissionConfig, StaticMappingConfig
from igdpcp.daemon.operator import Operator
from igdpcp.errors import Refusal
from igdpcp.iwf.absences import LAN_GRACE_SECONDS
from igdpcp.iwf.static_mappings import FIRST_PAUSE, LONGEST_PAUSE, LOOK_SECONDS
from igdpcp.model import Activation, Endpoint, MappingState, Owner, Protocol
from igdpcp.pcp.message import ResultCode
from tests.cli.test_status import status_of
from tests.support.hall import WAN, A, B, Hall, settle
from tests.support.virtual_time import virtual

WEB = StaticMappingConfig("web", (Protocol.TCP,), 443, Endpoint(IPv4Address(A), 8443), None, "web server")
ALL = PermissionConfig("all", "allow")
A_DAY = 86400.0


async def started(directory: Path, *sections: StaticMappingConfig, **options: Any) -> Hall:
    hall = Hall(directory, static=sections or (WEB,), **options)
    await hall.restart.restore()
    await settle()
    return hall


async def again(hall: Hall, directory: Path, *sections: StaticMappingConfig) -> Hall:
    """The next life, with these sections."""
    await hall.stop()
    second = Hall(directory, static=sections)
    await second.restart.restore()
    await settle()
    return second


def operator_of(hall: Hall) -> Operator:
    return Operator(hall.interworking, hall.table, status_of(hall), hall.restart.release, hall.leg, hall.pinholes)


@virtual
async def test_it_is_open_from_the_start_without_an_end_and_listed(tmp_path: Path) -> None:
    hall = await started(tmp_path)
    (row,) = await hall.listed()
    assert (row["ExternalPort"], row["InternalClient"], row["InternalPort"]) == ("443", A, "8443")
    assert (row["LeaseDuration"], row["PortMappingDescription"]) == ("0", "web server")
    assert (hall.only_rule.client, hall.only.request.requester.owner) == (WEB.client, Owner.STATIC)
    assert (hall.static.wanted, hall.static.open, hall.static.problems) == (1, 1, [])


@virtual
async def test_both_protocols_and_the_remote_host_are_as_written(tmp_path: Path) -> None:
    far = IPv4Address("62.0.0.200")
    hall = await started(tmp_path, replace(WEB, protocols=tuple(Protocol), remote_host=far))
    assert sorted((rule.protocol, *rule.remote_hosts) for rule in hall.ruleset.rules.values()) == [
        (Protocol.TCP, far), (Protocol.UDP, far)
    ]  # fmt: skip


@pytest.mark.parametrize("secure_mode", [True, False])
def test_iwf_185_nobody_else_changes_it_deletes_it_or_has_its_port(tmp_path: Path, secure_mode: bool) -> None:
    @virtual
    async def test() -> None:
        hall = await started(tmp_path, secure_mode=secure_mode, permissions=[ALL])
        for host in (A, B):
            assert (await hall.add(443, host)).code == 718
            assert (await hall.add(443, host, version=2)).code == 729
            assert (await hall.delete(443, host)).code == 714
            assert (await hall.delete(443, host, version=2)).code == 606
        port = {"protocol": "tcp", "external_port": 443}
        for command, asked in (
            ("delete", port), ("delete", {"id": hall.only.id}), ("add", {**port, "client": B, "client_port": 80})
        ):  # fmt: skip
            with pytest.raises(Refusal, match="section 'web' of the configuration"):
                await operator_of(hall).commands()[command](asked)
        assert (hall.only.state, hall.only.request.client) == (MappingState.ACTIVE, WEB.client)

    test()


@virtual
async def test_iwf_185_any_port_is_another_one_also_while_it_is_not_open(tmp_path: Path) -> None:
    hall = Hall(tmp_path, static=[WEB, replace(WEB, name="game", external_port=8080)])
    hall.carrier.refuses(ResultCode.NO_RESOURCES)
    await hall.restart.restore()
    await settle()
    ports = iter([8080, 40000])
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, next(ports))
    assert (await hall.add(0, any_port=True))["ReservedPort"] == "40000"
    assert (await hall.add(8080, version=2)).code == 729
    hall.carrier.answer = None
    asked = len(hall.carrier.asked)
    assert int((await hall.add(8080, B, any_port=True))["ReservedPort"]) not in (0, 8080)
    assert [request.external_port for request in hall.carrier.asked[asked:]] == [0], "it would be granted in vain"


@virtual
async def test_another_port_that_the_carrier_gives_in_its_place_is_the_configurations_too(tmp_path: Path) -> None:
    other = replace(WEB, name="other", external_port=4443)

    def give(hall: Hall) -> None:
        real = {443: 40000, 4443: 443}  # the second is offered what the first one wants
        hall.carrier.answer = lambda request: hall.carrier.grant(request.id, real[request.external_port])

    first = Hall(tmp_path, static=[WEB, other], port_policy="alias")
    give(first)
    await first.restart.restore()
    await settle()
    assert await first.ports() == [443]
    assert [problem.startswith("mapping 'other' (tcp 4443)") for problem in first.static.problems] == [True]
    await first.stop()
    second = Hall(tmp_path, static=[WEB, other], port_policy="alias")
    give(second)
    await second.restart.restore()
    await settle()
    assert (await second.ports(), second.only_rule.external.port, second.carrier.given_back) == ([443], 40000, [])


@virtual
async def test_iwf_184_it_counts_for_no_quota_of_its_host(tmp_path: Path) -> None:
    hall = await started(tmp_path, max_mappings_per_host=1, max_mappings=1)
    assert hall.static.open == 1
    assert (await hall.add(8080, version=2)).code == 728, "all there may be is taken"
    hall = await started(tmp_path / "more", max_mappings_per_host=1)
    assert (await hall.add(8080)).code == 0
    assert (await hall.add(8081)).code == 501


@virtual
async def test_what_is_refused_is_asked_for_again_with_growing_pauses_for_ever_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path, static=[WEB])
    asked: list[float] = []

    def refuse(request: Any) -> None:
        asked.append(hall.loop.time())
        hall.carrier.refuse(request.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)

    hall.carrier.answer = refuse
    await hall.restart.restore()
    await asyncio.sleep(A_DAY)
    pauses = [round(later - earlier) for earlier, later in pairwise(asked)]
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert set(pauses[12:]) == {LONGEST_PAUSE}
    assert (len(hall.table), hall.static.open) == (0, 0)
    assert ["CANNOT_PROVIDE_EXTERNAL" in problem for problem in hall.static.problems] == [True]
    assert hall.static.problems[0].startswith("mapping 'web' (tcp 443) is not open")
    assert caplog.text.count("event=static_mapping_not_open") == 1
    hall.carrier.answer = None
    hall.static.look_again()
    await asyncio.sleep(FIRST_PAUSE + 1)
    assert (await hall.ports(), hall.static.problems) == ([443], [])


@virtual
async def test_without_a_wan_it_waits_for_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path, static=[WEB], carrier=False)
    hall.router.wan_address = None
    await hall.restart.restore()
    await asyncio.sleep(A_DAY)
    hall.router.wan_address = WAN
    hall.local.network_changed()
    hall.static.look_again()
    await asyncio.sleep(FIRST_PAUSE + 1)
    assert (await hall.ports(), len(hall.ruleset.rules)) == ([443], 1)


@virtual
async def test_the_answer_of_a_silent_server_opens_it_whenever_it_comes(tmp_path: Path) -> None:
    hall = Hall(tmp_path, static=[WEB], unreachable_policy="error")
    hall.carrier.silent = True
    await hall.restart.restore()
    await asyncio.sleep(600)
    assert (len(hall.carrier.asked), hall.only.state) == (1, MappingState.PLANNED)
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(2 * FIRST_PAUSE)
    assert (await hall.ports(), hall.static.problems) == ([443], [])


@virtual
async def test_what_the_carrier_takes_away_is_asked_for_again(tmp_path: Path) -> None:
    hall = await started(tmp_path)
    hall.carrier.refuse(hall.only.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
    await settle()
    assert await hall.ports() == []
    await asyncio.sleep(LOOK_SECONDS)
    assert await hall.ports() == [443]


@virtual
async def test_a_lost_grant_is_told_until_it_is_back(tmp_path: Path) -> None:
    hall = await started(tmp_path, unreachable_policy="error")
    hall.carrier.silent = True
    hall.carrier.become(Activation.LOST)
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (hall.only.state, hall.static.open) == (MappingState.RETRYING, 0)
    assert [problem.startswith("mapping 'web' (tcp 443) is not open") for problem in hall.static.problems] == [True]
    await asyncio.sleep(A_DAY)
    hall.carrier.become(Activation.ACTIVE)
    hall.carrier.grant(hall.only.id)
    await settle()
    assert (await hall.ports(), hall.static.open, hall.static.problems) == ([443], 1, [])


@virtual
async def test_a_restart_while_its_grant_is_lost_asks_once_and_leaves_the_rest_to_the_upstream(tmp_path: Path) -> None:
    first = await started(tmp_path, unreachable_policy="error")
    first.carrier.silent = True
    first.carrier.lose(first.only.id)
    await first.stop()
    second = Hall(tmp_path, static=[WEB], unreachable_policy="error")
    second.carrier.silent = True
    await second.restart.restore()
    await asyncio.sleep(A_DAY)
    assert (len(second.carrier.asked), second.only.state, len(second.static.problems)) == (1, MappingState.RETRYING, 1)
    second.carrier.grant(second.only.id)
    await settle()
    assert (await second.ports(), second.static.problems) == ([443], [])


@virtual
async def test_iwf_190_it_outlives_its_host_its_dhcp_lease_and_its_lan(tmp_path: Path) -> None:
    hall = await started(tmp_path)
    hall.router.on_lan = lambda address: False  # type: ignore[method-assign]
    hall.lifecycle.departures.lans_changed()
    hall.lifecycle.departures.dhcp_leases_ended([WEB.client.address])
    await asyncio.sleep(2 * LAN_GRACE_SECONDS)
    assert await hall.ports() == [443]


@virtual
async def test_iwf_042_a_restart_keeps_its_rule_and_its_grant(tmp_path: Path) -> None:
    first = await started(tmp_path)
    id = first.only.id
    second = await again(first, tmp_path, WEB)
    assert (second.only.id, await second.ports(), second.carrier.given_back) == (id, [443], [])


@virtual
async def test_what_a_reload_finds_removed_is_closed_here_and_at_the_carrier(tmp_path: Path) -> None:
    second = await again(await started(tmp_path), tmp_path)
    assert (await second.listed(), second.ruleset.rules) == ([], {})
    assert [request.external_port for request in second.carrier.given_back] == [443]


@virtual
async def test_a_reload_with_another_port_closes_the_one_and_opens_the_other(tmp_path: Path) -> None:
    second = await again(await started(tmp_path), tmp_path, replace(WEB, external_port=4443))
    assert await second.ports() == [4443]
    assert [request.external_port for request in second.carrier.given_back] == [443]


@virtual
async def test_a_reload_with_another_client_keeps_the_port_at_the_carrier(tmp_path: Path) -> None:
    other = Endpoint(IPv4Address(B), 80)
    second = await again(await started(tmp_path), tmp_path, replace(WEB, client=other))
    assert (await second.ports(), second.only_rule.client) == ([443], other)
    assert second.carrier.given_back == [], "the same tuple there: to delete it would close what was just opened"


@virtual
async def test_a_reload_with_another_description_shows_that(tmp_path: Path) -> None:
    second = await again(await started(tmp_path), tmp_path, replace(WEB, description="shop"))
    assert [row["PortMappingDescription"] for row in await second.listed()] == ["shop"]


@virtual
async def test_a_reload_takes_its_port_from_a_host_that_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = Hall(tmp_path)
    await first.add(8080, B, LeaseDuration=0)
    second = await again(first, tmp_path, replace(WEB, external_port=8080))
    assert (await second.ports(), second.only_rule.client) == ([8080], WEB.client)
    assert "section 'web' of the configuration has it" in caplog.text


@virtual
async def test_a_host_that_has_the_port_when_the_configuration_wants_it_gets_it_no_more(tmp_path: Path) -> None:
    hall = await started(tmp_path, replace(WEB, external_port=8080), carrier=False)
    assert (await hall.add(8080, any_port=True, InternalPort=8080))["ReservedPort"] != "8080"


@virtual
async def test_a_release_closes_it_and_asks_no_more(tmp_path: Path) -> None:
    hall = await started(tmp_path)
    await hall.restart.release()
    await asyncio.sleep(A_DAY)
    assert (len(hall.table), hall.ruleset.rules, len(hall.carrier.returned), len(hall.carrier.asked)) == (0, {}, 1, 1)


@virtual
async def test_the_status_tells_how_many_are_open_and_the_rows_whose_they_are(tmp_path: Path) -> None:
    hall = await started(tmp_path, WEB, replace(WEB, name="ssh", external_port=22))
    status = status_of(hall)
    assert status._static_mappings() == {"wanted": 2, "open": 2, "problems": []}
    rows = await status.mappings()
    assert [(row["owner"], row["agent"], row["external_port"]) for row in rows] == [
        ("static", "web", 443), ("static", "ssh", 22)
    ]  # fmt: skip
