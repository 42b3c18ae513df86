# SPDX-License-Identifier: Apache-2.0
"""What breaks inside stays where it is: events go on being taken, and nothing is shown that is not open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.errors import OurFault
from igdpcp.model import Endpoint, Mapping, MappingRequest, MappingState, Owner, Protocol, Requester
from igdpcp.pcp.message import ResultCode
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual


@contextmanager
def broken_journal(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its notes raise what nobody expects of them."""

    def fail(mapping: Mapping) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(hall.journal, "note", fail)
        patch.setattr(hall.journal, "renewed", fail)
        yield


@virtual
async def test_an_exception_in_the_handler_of_one_event_is_logged_and_the_next_event_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    with broken_journal(hall, monkeypatch):
        hall.carrier.refuse(hall.only.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
        await settle()
    (failed,) = (record for record in caplog.records if "event=event_failed" in record.getMessage())
    assert failed.exc_info
    assert (await hall.add(8081, B)).code == 0


@virtual
async def test_an_exception_in_a_commit_is_logged_and_the_next_grant_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    with broken_journal(hall, monkeypatch):
        hall.carrier.grant(hall.only.id)
        await settle()
    (failed,) = (record for record in caplog.records if "event=event_failed" in record.getMessage())
    assert failed.exc_info
    hall.carrier.grant(hall.only.id, lifetime=600)
    await settle()
    assert hall.only.grant
    assert hall.only.grant.lifetime == 600


@virtual
async def test_an_upstream_that_raises_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise ValueError("another key has this internal tuple")

    with monkeypatch.context() as patch:
        patch.setattr(hall.carrier, "map", fail)
        with pytest.raises(ValueError, match="internal tuple"):
            await hall.add(8080)
    assert len(hall.table) == 0
    assert (await hall.add(8080, B)).code == 0


@virtual
async def test_text_that_has_no_encoding_is_an_error_and_leaves_no_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    operator = Requester(None, Owner.OPERATOR)
    request = MappingRequest(operator, Protocol.TCP, 8080, Endpoint(IPv4Address(A), 80), description="x\udcff")
    with pytest.raises(OurFault):
        await hall.interworking.add_port_mapping(request)
    assert (len(hall.table), hall.carrier.asked) == (0, [])
    assert [(await hall.add(port)).code for port in (8080, 8081)] == [0, 0]
    hall.kill()
    second = Hall(tmp_path)
    await second.restart.restore()
    assert await second.ports() == [8080, 8081]


@virtual
async def test_rules_that_are_ready_after_the_port_was_taken_away_are_not_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    hall.ruleset.slow, hall.carrier.silent = 0.05, True
    hall.lifecycle.wan_changed()
    await asyncio.sleep(0.01)
    hall.carrier.refuse(hall.only.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
    await asyncio.sleep(1)
    assert (hall.only.state, await hall.listed(), hall.ruleset.rules) == (MappingState.RETRYING, [], {})


@virtual
async def test_rules_that_are_ready_after_the_grant_was_lost_are_not_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=0)
    hall.ruleset.slow, hall.carrier.silent = 0.05, True
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(0.01)
    hall.carrier.lose(hall.only.id)
    await asyncio.sleep(1)
    assert (hall.only.state, await hall.listed(), hall.ruleset.rules) == (MappingState.RETRYING, [], {})
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(1)
    assert (await hall.ports(), len(hall.ruleset.rules)) == ([8080], 1)
