# SPDX-License-Identifier: Apache-2.0
"""What the hall's port policies need of the carrier: requests that may be given another port, and word of ports."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from igdpcp.iwf.interfaces import Granted, PortSeen, Reset
from igdpcp.model import UpstreamRequest
from tests.support.pcp_script import PREFER_FAILURE
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, OTHER, OTHER_SERVER, SERVER, Line, request

WANTED, GIVEN = 8080, 20100


def alias(**changes: object) -> UpstreamRequest:
    return request(exact=True, aliased=True, **changes)


@virtual
async def test_an_aliased_request_prefers_its_port_and_renewals_the_one_that_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.carrier.script.port = GIVEN
        line.carrier.script.longest = 120
        await line.up()
        line.upstream.map(alias())
        await asyncio.sleep(100)
        first, *renewals = line.carrier.maps
        assert first.suggested_port == WANTED
        assert {sent.suggested_port for sent in renewals} == {GIVEN}
        assert all(sent.lifetime and PREFER_FAILURE not in sent.codes for sent in line.carrier.maps)
        assert {event.grant.external.port for event in line.of(Granted)} == {GIVEN}
        line.upstream.map(alias(description="another"))
        line.upstream.unmap("1")
        await asyncio.sleep(ANSWERED)
        assert line.carrier.maps[-1].lifetime == 0


@pytest.mark.parametrize(("server", "own", "suggested"), [(0, None, GIVEN), (0, OTHER, GIVEN), (1, None, WANTED)])
def test_after_a_restart_the_given_port_is_asked_for_unless_another_server_gave_it(
    monkeypatch: pytest.MonkeyPatch, server: int, own: object, suggested: int
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch) as line:
            line.carrier.script.port = GIVEN
            await line.up()
            line.upstream.map(alias())
            await asyncio.sleep(ANSWERED)
            (granted,) = line.of(Granted)
        with Line(monkeypatch) as line:
            await line.up(router=(SERVER, OTHER_SERVER)[server], **({"own": own} if own else {}))  # type: ignore[arg-type]
            line.upstream.map(replace(alias(), grant=granted.grant))
            await asyncio.sleep(ANSWERED)
            sent = line.carriers[server].maps[0]
            assert (sent.suggested_port, PREFER_FAILURE in sent.codes) == (suggested, False)

    run()


@virtual
async def test_recovery_asks_for_the_port_that_an_aliased_request_was_given_and_tells_of_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.carrier.script.port = GIVEN
        await line.up()
        line.upstream.map(alias())
        await asyncio.sleep(600)
        assert line.of(Reset) == []
        line.carrier.script.restart(asyncio.get_running_loop().time())
        line.upstream.announce()
        await asyncio.sleep(10)
        assert len(line.of(Reset)) == 1
        assert line.carrier.maps[-1].suggested_port == GIVEN
        assert PREFER_FAILURE not in line.carrier.maps[-1].codes


@virtual
async def test_the_port_that_the_probe_was_given_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        line.carrier.script.port = GIVEN
        await line.up()
        assert line.of(PortSeen) == [PortSeen(GIVEN)]
