# SPDX-License-Identifier: Apache-2.0
"""What one LAN host can make the daemon write, and push out of the status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.errors import RulesetError
from igdpcp.iwf.mapping_log import WARNINGS_BURST
from igdpcp.log import LINES_BURST, RecentTroubles
from igdpcp.model import Activation
from igdpcp.openings import AnyOpening
from igdpcp.pcp.message import ResultCode
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual

MANY = 5 * LINES_BURST
SOME = 2  # more lines, should the test last seconds


@pytest.fixture(name="troubles")
def _troubles() -> Iterator[RecentTroubles]:
    handler = RecentTroubles()
    logging.getLogger("igdpcp").addHandler(handler)
    yield handler
    logging.getLogger("igdpcp").removeHandler(handler)


def lines(caplog: pytest.LogCaptureFixture, event: str) -> int:
    return sum(f"event={event} " in record.getMessage() for record in caplog.records)


@virtual
async def test_a_host_that_opens_and_closes_without_end_writes_few_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hall = Hall(tmp_path)
    for n in range(MANY):
        await hall.add(8080, InternalPort=8000 + n)
        await hall.delete(8080)
    assert LINES_BURST <= lines(caplog, "mapping_open") <= LINES_BURST + SOME
    await hall.add(8081, B)
    assert f"event=mapping_open client={B} client_port=8000 mapping=" in caplog.text


@virtual
async def test_leases_that_end_and_grants_that_come_too_late_are_told_sparingly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hall = Hall(tmp_path)
    for n in range(MANY):
        await hall.add(8080 + n, LeaseDuration=1)
    assert LINES_BURST <= lines(caplog, "mapping_open") <= LINES_BURST + SOME
    await asyncio.sleep(2)
    hall.carrier.silent = True
    for n in range(MANY):
        await hall.add(8080 + n, LeaseDuration=1000)
    await asyncio.sleep(100)
    assert len(hall.table) == 0
    for event in ("lease_ended", "late_grant_given_back"):
        assert LINES_BURST <= lines(caplog, event) <= LINES_BURST + SOME


@virtual
async def test_a_carrier_that_changes_its_address_or_state_all_the_time_writes_few_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hall = Hall(tmp_path)
    for n in range(MANY):
        hall.carrier.move(IPv4Address(f"62.0.0.{n}"))
        hall.carrier.become(Activation.ACTIVE if n % 2 else Activation.LOST)
    await settle()
    for event in ("external_address", "upstream_state"):
        assert LINES_BURST <= lines(caplog, event) <= LINES_BURST + SOME
    assert hall.changes == 2 * MANY


@virtual
async def test_a_lost_server_is_a_trouble_that_the_status_shows_and_one_that_is_back_is_none(
    tmp_path: Path, troubles: RecentTroubles
) -> None:
    hall = Hall(tmp_path)
    hall.carrier.become(Activation.LOST)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    assert [text for _, text in troubles.lines] == ["event=upstream_state upstream=pcp state=lost"]


@virtual
async def test_grants_that_are_refused_or_lost_leave_room_in_the_status_for_other_troubles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, troubles: RecentTroubles
) -> None:
    caplog.set_level(logging.INFO)
    hall = Hall(tmp_path)
    logging.getLogger("igdpcp.iwf").warning("event=something_else")
    for n in range(MANY):
        await hall.add(8080 + n, A if n % 2 else B, LeaseDuration=0)
    for mapping in list(hall.table):
        hall.carrier.refuse(mapping.id, ResultCode.NO_RESOURCES)
    hall.carrier.silent = True
    for mapping in list(hall.table):
        hall.carrier.lose(mapping.id)
    await settle()
    for event in ("grant_refused", "grant_lost"):
        assert WARNINGS_BURST < 2 * LINES_BURST <= lines(caplog, event) <= 2 * (LINES_BURST + SOME)
        told = [text for _, text in troubles.lines if f"event={event} " in text]
        assert 1 <= len(told) <= WARNINGS_BURST
    assert [text for _, text in troubles.lines if text == "event=something_else"]


@virtual
async def test_a_trouble_that_goes_on_is_shown_once_a_minute(tmp_path: Path, troubles: RecentTroubles) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=0)
    for _ in range(WARNINGS_BURST * 60 + 150):
        hall.carrier.refuse(hall.only.id, ResultCode.NO_RESOURCES)
        await asyncio.sleep(1)
    assert sum("event=grant_refused " in text for _, text in troubles.lines) == 2 * WARNINGS_BURST + 2


@virtual
async def test_a_host_that_asks_on_while_the_kernel_refuses_everything_writes_few_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall = Hall(tmp_path)

    async def refuse(opening: AnyOpening) -> None:
        raise RulesetError(f"rules of {opening.id}: no such table")

    monkeypatch.setattr(hall.ruleset, "put", refuse)
    for n in range(MANY):
        assert (await hall.add(8080 + n)).code == 501
    assert 1 <= lines(caplog, "ruleset_failed") <= WARNINGS_BURST
    assert "no such table" in str(hall.leg.problem)
