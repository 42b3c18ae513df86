# SPDX-License-Identifier: Apache-2.0
"""A repeated request for what is open: its 200 waits where the path that was open need not be there any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.hall import Hall, Reply, settle
from tests.support.virtual_time import virtual
from tests.support.whole_path import OTHER_OWN, OWN, WholePath, path_of

Test = Callable[[WholePath], Awaitable[None]]
PROFILE = PROFILES["lifetime_86400"]


def on_a_path(**options: Any) -> Callable[[Test], Callable[..., None]]:
    """Runs the test on a path with an open mapping of port 8080; there is no probe, so each packet is for that."""

    def decorate(test: Test) -> Callable[..., None]:
        def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
            @virtual
            async def in_time() -> None:
                path = WholePath(tmp_path, PROFILE, monkeypatch, external_ip_probe=False, **options)
                await path.start()
                assert (await path.hall.add(8080)).code == 0
                await test(path)
                await path.stop()
                path.close()

            in_time()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


async def repeated(path: WholePath, **changes: object) -> tuple[Reply, float]:
    """The answer to the same request again, and how long it took."""
    began = path.loop.time()
    return await path.hall.add(8080, **changes), path.loop.time() - began


def move(path: WholePath, **link: float) -> None:
    """Another WAN address on such a link; the carrier forgets what the address before was granted."""
    path.link.switches.set(**link)
    path.server.lose_state()
    path.use_address(OTHER_OWN)


def is_open(path: WholePath) -> bool:
    """Both legs, for the address that the router has."""
    mapping = path.hall.only
    rule = path.ruleset.live.get(mapping.id)
    return rule is not None and rule.wan_address == path.own and path_of(mapping) in path.carrier_holds()


@on_a_path()
async def test_iwf_163_while_nothing_has_changed_it_is_answered_at_once_and_without_a_packet(path: WholePath) -> None:
    sent = path.pcp.counters["sent"]
    reply, took = await repeated(path)
    assert (reply.code, took, path.pcp.counters["sent"]) == (0, 0.0, sent)


@on_a_path()
async def test_with_another_wan_address_it_waits_until_that_is_granted_the_port(path: WholePath) -> None:
    move(path, delay=300.0)
    reply, took = await repeated(path)
    assert (reply.code, is_open(path)) == (0, True)
    assert 0.3 < took < path.hall.main.soap_deadline


@on_a_path(unreachable_policy="error")
async def test_with_another_wan_address_and_a_silent_carrier_it_is_refused_and_changes_nothing(path: WholePath) -> None:
    before = path.hall.only
    move(path, loss=1.0)
    reply, took = await repeated(path, LeaseDuration=7200, PortMappingDescription="new")
    assert (reply.code, took <= path.hall.main.soap_deadline + 1) == (501, True)
    assert (path.hall.only.request, path.hall.only.lease_ends) == (before.request, before.lease_ends)


@on_a_path()
async def test_with_another_wan_address_whose_port_is_taken_it_is_a_conflict(path: WholePath) -> None:
    move(path, delay=300.0)
    path.stranger_takes(8080)
    reply, _ = await repeated(path)
    assert (reply.code, list(path.hall.table)) == (718, [])


@on_a_path()
async def test_without_a_wan_it_is_refused_as_a_new_one_and_changes_nothing(path: WholePath) -> None:
    before = path.hall.only
    path.use_address(None)
    assert (await path.hall.add(8081)).code == 501
    reply, took = await repeated(path, LeaseDuration=7200)
    assert (reply.code, took, path.hall.only) == (501, 0.0, before)
    path.use_address(OWN)
    assert (await repeated(path))[0].code == 0
    assert is_open(path)


@on_a_path(routed=True)
async def test_without_a_wan_it_is_refused_where_the_router_does_no_nat(path: WholePath) -> None:
    path.use_address(None)
    reply, took = await repeated(path)
    assert (reply.code, took) == (501, 0.0)


@on_a_path()
async def test_iwf_198_after_a_loss_of_state_it_is_asked_for_at_once_and_waits_for_the_answer(path: WholePath) -> None:
    path.carrier_restarts(announce=True)
    await asyncio.sleep(0.05)
    assert path.carrier_holds() == set()
    reply, took = await repeated(path)
    assert (reply.code, is_open(path)) == (0, True)
    assert 0 < took < 0.1


@on_a_path(unreachable_policy="error")
async def test_while_the_carrier_is_only_silent_the_open_path_is_confirmed_at_once(path: WholePath) -> None:
    path.link.switches.set(loss=1.0)
    await path.hall.add(8081)
    await asyncio.sleep(120)
    assert path.pcp.state == "lost"
    reply, took = await repeated(path)
    assert (reply.code, took) == (0, 0.0)


@on_a_path()
async def test_a_restarted_daemon_confirms_what_still_runs_at_once(path: WholePath) -> None:
    await path.kill()
    path.link.switches.set(loss=1.0)
    await path.start()
    reply, took = await repeated(path)
    assert (reply.code, took) == (0, 0.0)


@on_a_path()
async def test_rules_that_the_kernel_refuses_for_the_new_address_are_no_success(path: WholePath) -> None:
    move(path, delay=300.0)
    repeating = asyncio.ensure_future(repeated(path))
    await asyncio.sleep(0.3)
    path.ruleset.fails = 100
    reply, _ = await repeating
    assert reply.code == 501


@on_a_path()
async def test_what_is_deleted_meanwhile_is_refused_at_once(path: WholePath) -> None:
    move(path, loss=1.0)
    repeating = asyncio.ensure_future(repeated(path))
    await asyncio.sleep(0.1)
    deleting = asyncio.ensure_future(path.hall.delete(8080))
    reply, took = await repeating
    assert (reply.code, round(took, 1)) == (501, 0.1)
    await deleting


@virtual
async def test_while_a_newer_grant_is_on_its_way_the_older_one_is_not_what_is_asked_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.ruleset.slow, other = 0.5, IPv4Address("62.0.0.2")
    hall.carrier.grant(hall.only.id, address=other)
    await settle()
    asked = len(hall.carrier.asked)
    hall.carrier.silent = True
    assert (await hall.add(8080)).code == 0
    wishes = [request.grant.external.address for request in hall.carrier.asked[asked:] if request.grant]
    assert wishes == [other]  # for as long as is wanted now
