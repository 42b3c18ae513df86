# SPDX-License-Identifier: Apache-2.0
"""The DHCP lease of a LAN host ends (RFC 6970 section 5.10): its mappings do too, here and upstream."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.model import Endpoint, MappingRequest, Owner, Protocol, Requester
from igdpcp.net.leases import GRACE_SECONDS, LOOK_SECONDS, DhcpLeases
from tests.support.hall import A, B, Hall, settle
from tests.support.virtual_time import virtual

WITHIN = GRACE_SECONDS + 2 * LOOK_SECONDS


class Lan:
    """A hall that hears of leases, and the mark by which it does."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.directory = directory
        self.hall = Hall(directory, **options)  # type: ignore[arg-type]
        leases = DhcpLeases(directory / "leases", directory, self.hall.loop.time)
        departures = self.hall.lifecycle.departures
        self.following = asyncio.ensure_future(leases.follow(self.hall.table.clients, departures.dhcp_leases_ended))

    async def release(self, host: str = A) -> None:
        self.mark(host).touch()
        await asyncio.sleep(WITHIN)

    def mark(self, host: str = A) -> Path:
        return self.directory / f"ended.{host}"


@virtual
async def test_iwf_190_two_entries_of_a_released_lease_are_deleted_here_and_upstream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lan = Lan(tmp_path)
    hall = lan.hall
    await hall.add(8080)
    await hall.add(8081, LeaseDuration=0)
    await hall.add(8082, B)
    ours = [mapping.id for mapping in hall.table if str(mapping.request.client.address) == A]
    await lan.release()
    assert (await hall.ports(), len(hall.ruleset.rules), hall.carrier.returned) == ([8082], 1, ours)
    assert caplog.text.count("event=dhcp_lease_ended") == 2
    assert not lan.mark().exists()
    await lan.release(B)
    assert await hall.ports() == []


@virtual
async def test_iwf_190_a_mapping_that_waits_for_the_carrier_ends_too(tmp_path: Path) -> None:
    lan = Lan(tmp_path, soap_deadline=18)
    lan.hall.carrier.silent = True
    adding = asyncio.ensure_future(lan.hall.add(8080))
    await lan.release()
    assert (await adding).code == 501
    assert (len(lan.hall.table), len(lan.hall.carrier.returned)) == (0, 1)


@virtual
async def test_iwf_190_what_a_silent_carrier_was_not_told_is_told_at_the_next_start(tmp_path: Path) -> None:
    lan = Lan(tmp_path)
    await lan.hall.add(8080)
    lan.hall.carrier.releases = None
    await lan.release()
    lan.hall.kill()
    second = Hall(tmp_path)
    await second.restart.restore()
    assert [request.external_port for request in second.carrier.given_back] == [8080]
    assert await second.listed() == []


@virtual
async def test_iwf_190_the_operators_mapping_stays(tmp_path: Path) -> None:
    lan = Lan(tmp_path)
    operator = Requester(None, Owner.OPERATOR)
    request = MappingRequest(operator, Protocol.TCP, 8443, Endpoint(IPv4Address(A), 443), None, 0, "")
    await lan.hall.interworking.add_port_mapping(request)
    await lan.hall.add(8080)
    await lan.release()
    assert await lan.hall.ports() == [8443]


@virtual
async def test_iwf_191_a_renewed_or_reacquired_lease_deletes_nothing(tmp_path: Path) -> None:
    lan = Lan(tmp_path)
    await lan.hall.add(8080)
    lan.mark().touch()
    await asyncio.sleep(GRACE_SECONDS - LOOK_SECONDS)
    lan.mark().unlink()
    await asyncio.sleep(WITHIN)
    assert (await lan.hall.ports(), lan.hall.carrier.returned) == ([8080], [])


@virtual
async def test_iwf_190_a_deletion_on_its_way_is_answered_though_the_lease_ends(tmp_path: Path) -> None:
    lan = Lan(tmp_path, soap_deadline=18)
    await lan.hall.add(8080)
    lan.hall.carrier.releases = None
    deleting = asyncio.ensure_future(lan.hall.delete(8080))
    await lan.release()
    assert (await deleting).code == 0
    assert len(lan.hall.carrier.returned) == 1


@virtual
async def test_iwf_190_a_deletion_that_the_carrier_does_not_answer_keeps_nothing_open_past_the_lease(
    tmp_path: Path,
) -> None:
    lan = Lan(tmp_path, unreachable_policy="error", soap_deadline=18)
    hall = lan.hall
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.releases = None
    deleting = asyncio.ensure_future(hall.delete(8080))
    await lan.release()
    await deleting
    await asyncio.sleep(18)
    assert (len(hall.table), hall.ruleset.rules, len(hall.carrier.wanted)) == (0, {}, 0)


@virtual
async def test_iwf_190_a_look_that_fails_is_not_the_last_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lan = Lan(tmp_path)
    await lan.hall.add(8080)
    with monkeypatch.context() as broken:
        broken.setattr(DhcpLeases, "ended", lambda *_: 1 / 0)
        await lan.release()
    assert await lan.hall.ports() == [8080]
    await asyncio.sleep(WITHIN)
    await settle()
    assert await lan.hall.ports() == []
    assert "event=leases_look_failed" in caplog.text
