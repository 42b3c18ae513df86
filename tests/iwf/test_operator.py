# SPDX-License-Identifier: Apache-2.0
"""The operator's commands at the interworking function: what they name is what they change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from igdpcp.daemon.operator import Operator
from igdpcp.daemon.status import Status
from igdpcp.errors import Reason, Refusal
from igdpcp.model import Mapping, MappingState
from igdpcp.pcp.message import ResultCode
from igdpcp.upnp.soap import DESCRIPTION_LIMIT
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual


class Rows:
    """As much of the status as commands that change something use."""

    def row(self, mapping: Mapping) -> dict[str, Any]:
        return {"id": mapping.id, "external_port": mapping.external_port, "description": mapping.request.description}


async def ask(hall: Hall, command: str, **arguments: object) -> dict[str, Any]:
    status = cast(Status, Rows())
    operator = Operator(hall.interworking, hall.table, status, hall.restart.release, hall.leg, hall.pinholes)
    answer = await operator.commands()[command]({"command": command, **arguments})
    assert isinstance(answer, dict)
    return answer


@virtual
async def test_a_deletion_by_id_of_what_waits_for_its_port_spares_who_holds_that_port(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    waiting = asyncio.ensure_future(hall.add(8080, any_port=True))
    await settle()
    planned = hall.only.id
    hall.carrier.silent = False
    await hall.add(8080, B)
    assert (await ask(hall, "delete", id=planned))["id"] == planned
    assert (await waiting).code == 501
    assert [row["InternalClient"] for row in await hall.listed()] == [B]
    assert hall.carrier.returned == [planned]


@virtual
async def test_what_retries_without_a_port_can_be_deleted_by_id(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    await hall.add(8081, B)
    retrying = next(mapping.id for mapping in hall.table if str(mapping.request.client.address) == A)
    hall.carrier.silent = True
    hall.carrier.refuse(retrying, ResultCode.CANNOT_PROVIDE_EXTERNAL)
    await settle()
    assert hall.table.get(retrying).state is MappingState.RETRYING  # type: ignore[union-attr]
    assert (await ask(hall, "delete", id=retrying))["id"] == retrying
    assert hall.carrier.returned == [retrying]
    assert await hall.ports() == [8081]


@virtual
async def test_a_deletion_by_an_id_that_nobody_has_is_refused(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    with pytest.raises(Refusal) as refused:
        await ask(hall, "delete", id="ffffffff")
    assert refused.value.reason is Reason.NO_SUCH_ENTRY
    assert await hall.ports() == [8080]


@pytest.mark.parametrize("secure_mode", [True, False])
def test_iwf_185_what_the_operator_made_nobody_else_changes_or_deletes(tmp_path: Path, secure_mode: bool) -> None:
    @virtual
    async def test() -> None:
        hall = Hall(tmp_path, secure_mode=secure_mode)
        await ask(hall, "add", protocol="tcp", external_port=8080, client=A, client_port=80, description="door")
        for host in (A, B):
            assert (await hall.add(8080, host, InternalPort=9000, LeaseDuration=1)).code == 718
            assert (await hall.add(8080, host, version=2, InternalPort=9000)).code == 729
            assert (await hall.delete(8080, host)).code == 714
            assert (await hall.delete(8080, host, version=2)).code == 606
        row = await hall.specific(8080)
        assert (row["InternalPort"], row["PortMappingDescription"], row["LeaseDuration"]) == ("80", "door", "0")
        assert (await ask(hall, "delete", protocol="tcp", external_port=8080))["external_port"] == 8080

    test()


@virtual
async def test_iwf_185_any_port_is_another_than_the_operators_for_the_same_client(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    made = await ask(hall, "add", protocol="tcp", external_port=8080, client=A, client_port=8000, any=True)
    reply = await hall.add(8080, any_port=True, InternalPort=8000)
    assert reply.code == 0
    assert int(reply["ReservedPort"]) != made["external_port"] == 8080


@virtual
async def test_iwf_185_what_the_operator_takes_over_while_its_host_waits_is_the_operators(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    first = asyncio.ensure_future(hall.add(8080))
    await settle()
    operators = asyncio.ensure_future(ask(hall, "add", protocol="tcp", external_port=8080, client=A, client_port=80))
    await settle()
    second = asyncio.ensure_future(hall.add(8080, InternalPort=9000))
    await settle()
    hall.carrier.grant(hall.only.id)
    assert ((await first).code, (await operators)["external_port"], (await second).code) == (0, 8080, 718)
    assert hall.only.request.client.port == 80


@virtual
async def test_a_description_is_kept_as_a_control_points_is(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    text = "a\u2028b\udcff\x85\u3000c" + "d" * DESCRIPTION_LIMIT
    row = await ask(hall, "add", protocol="tcp", external_port=8080, client=A, client_port=80, description=text)
    kept = ("ab\u3000c" + "d" * DESCRIPTION_LIMIT)[:DESCRIPTION_LIMIT]
    assert (row["description"], (await hall.specific(8080))["PortMappingDescription"]) == (kept, kept)


@virtual
async def test_nothing_is_added_once_everything_is_being_given_back(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.releases = None
    releasing = asyncio.ensure_future(ask(hall, "release"))
    await settle()
    with pytest.raises(Refusal):
        await ask(hall, "add", protocol="tcp", external_port=8081, client=A, client_port=81)
    await releasing
    assert (len(hall.table), len(hall.carrier.asked), hall.ruleset.rules) == (0, 1, {})
