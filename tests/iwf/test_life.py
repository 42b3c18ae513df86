# SPDX-License-Identifier: Apache-2.0
"""What becomes of a mapping as time passes: renewals, ends, losses, and a carrier that comes and goes."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.iwf.interfaces import Released
from igdpcp.model import Activation, Endpoint, MappingState, Protocol
from igdpcp.upnp.services import WAN_IP_CONNECTION
from tests.support.hall import CARRIER, WAN, A, Hall, seconds_left, settle
from tests.support.virtual_time import virtual


def evented(hall: Hall) -> tuple[int, int]:
    """PortMappingNumberOfEntries and SystemUpdateID as a subscriber is told them."""
    values = hall.variables.evented(WAN_IP_CONNECTION, 2, IPv4Address(A))
    return int(values["PortMappingNumberOfEntries"]), int(values["SystemUpdateID"])


@virtual
async def test_iwf_150_151_152_the_carrier_is_asked_for_the_lease_or_for_as_long_as_possible(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    now = hall.loop.time()
    await hall.add(8080, LeaseDuration=3600)
    await hall.add(8081, LeaseDuration=0)
    await hall.add(8082, LeaseDuration=0, version=2)
    assert [asked.until for asked in hall.carrier.asked] == [now + 3600, None, now + 604800]
    assert [row["LeaseDuration"] for row in await hall.listed()] == ["3600", "0", "604800"]


@virtual
async def test_iwf_154_159_the_lease_ends_on_time_although_the_carrier_grants_longer(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, lifetime=7200)
    await hall.add(8080, LeaseDuration=3600)
    id = hall.only.id
    await asyncio.sleep(3599)
    assert hall.carrier.returned == []
    await asyncio.sleep(1.1)
    assert hall.carrier.returned == [id]
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_iwf_155_a_control_point_sees_the_lease_that_it_asked_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080, LeaseDuration=3600)
    await asyncio.sleep(100)
    assert (await hall.specific(8080))["LeaseDuration"] == "3500"


@virtual
async def test_iwf_156_163_renewals_change_nothing_that_is_shown_and_ask_for_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080)
    asked, shown, changes = len(hall.carrier.asked), hall.table.system_update_id, hall.changes
    hall.carrier.grant(hall.only.id)
    await settle()
    assert (len(hall.carrier.asked), hall.table.system_update_id, hall.changes) == (asked, shown, changes)


@virtual
async def test_iwf_163_a_refresh_wants_what_was_wanted_with_a_later_end(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=60)
    await asyncio.sleep(20)
    await hall.add(8080, LeaseDuration=60)
    first, again = hall.carrier.asked
    assert (again.internal, again.external_port, again.exact, again.remote_hosts) == (
        first.internal, first.external_port, first.exact, first.remote_hosts,
    )  # fmt: skip
    assert hall.carrier.returned == []


@virtual
async def test_iwf_041_a_grant_with_another_port_is_shown_with_it(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    hall.carrier.grant(hall.only.id, port=7000, address=IPv4Address("62.0.0.9"))
    await settle()
    assert await hall.ports() == [7000]
    assert hall.only_rule.external == Endpoint(IPv4Address("62.0.0.9"), 7000)


@virtual
async def test_iwf_045_a_finite_entry_whose_grant_is_lost_is_gone(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})
    assert len(hall.carrier.returned) == 1


@virtual
async def test_iwf_045_an_infinite_entry_whose_grant_is_lost_retries_unseen(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})
    assert hall.only.state is MappingState.RETRYING
    hall.carrier.grant(hall.only.id)
    await settle()
    assert await hall.ports() == [8080]
    assert len(hall.ruleset.rules) == 1


@virtual
async def test_iwf_045_a_repeated_request_waits_for_the_grant_of_a_retrying_entry(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await settle()
    adding = asyncio.ensure_future(hall.add(8080, LeaseDuration=0))
    await asyncio.sleep(1)
    hall.carrier.grant(hall.only.id)
    assert (await adding).code == 0
    assert (await hall.delete(8080)).code == 0


@pytest.mark.parametrize(("lease", "kept"), [(3600, 0), (0, 1)], ids=["finite", "infinite"])
def test_iwf_161_renewals_that_are_refused_to_the_end_close_the_entry_and_are_evented(
    tmp_path: Path, lease: int, kept: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.longest = 600
        await hall.add(8080, LeaseDuration=lease)
        id, changes, before = hall.only.id, hall.changes, evented(hall)
        hall.carrier.refuses(8)
        hall.carrier.refuse(id, 8)
        await asyncio.sleep(599)
        assert (await hall.ports(), len(hall.ruleset.rules), hall.changes) == ([8080], 1, changes)
        hall.carrier.lose(id)
        await settle()
        assert (await hall.listed(), hall.ruleset.rules, len(hall.carrier.wanted)) == ([], {}, kept)
        assert hall.changes > changes
        number, update = evented(hall)
        assert (before[0], number) == (1, 0)
        assert update > before[1]

    run()


@virtual
async def test_iwf_197_a_mapping_update_is_shown_in_the_entry_the_variable_and_the_event(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    shown, changes = hall.table.system_update_id, hall.changes
    new = IPv4Address("62.0.0.9")
    hall.carrier.grant(hall.only.id, port=7000, address=new)
    hall.carrier.move(new)
    await settle()
    assert await hall.ports() == [7000]
    assert hall.only_rule.external == Endpoint(new, 7000)
    assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == "62.0.0.9"
    values = hall.variables.evented(WAN_IP_CONNECTION, 2, IPv4Address(A))
    assert values["ExternalIPAddress"] == "62.0.0.9"
    assert int(values["SystemUpdateID"]) == shown + 1
    assert hall.changes > changes


@virtual
async def test_a_grant_that_nobody_renews_or_reports_lost_does_not_stay_listed(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 120
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.silent = True
    await asyncio.sleep(121)
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_iwf_196_an_entry_refused_on_recovery_is_dropped(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.refuse(hall.only.id, 11)
    hall.carrier.lose(hall.only.id)
    await settle()
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})


@virtual
async def test_iwf_196_an_any_port_entry_refused_on_recovery_gets_another_port(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, any_port=True)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, port=7777)
    hall.carrier.refuse(hall.only.id, 11)
    hall.carrier.lose(hall.only.id)
    await settle()
    assert await hall.ports() == [7777]


@virtual
async def test_a_refused_renewal_leaves_the_entry_open_while_its_grant_runs(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.refuse(hall.only.id, 8)
    await settle()
    assert await hall.ports() == [8080]


@virtual
async def test_a_renewal_that_the_kernel_refuses_is_laid_down_later_with_the_new_end(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080)
    await asyncio.sleep(300)
    hall.ruleset.fails = 1
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(13)
    assert seconds_left(hall.only_rule) == 587
    await asyncio.sleep(320)
    assert await hall.ports() == [8080]


@virtual
async def test_renewals_of_a_moment_share_a_change_and_none_comes_too_late(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 2
    for port in (8080, 8081):
        await hall.add(port)
    await asyncio.sleep(1)
    laid = len(hall.ruleset.puts)
    for mapping in hall.table:
        hall.carrier.grant(mapping.id, lifetime=600)
    await settle()
    assert len(hall.ruleset.puts) == laid
    await asyncio.sleep(0.6)
    assert [seconds_left(rule) for rule in hall.ruleset.rules.values()] == [599, 599]


@virtual
async def test_what_is_deleted_before_its_renewal_reaches_the_kernel_stays_away(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.grant(hall.only.id)
    await settle()
    await hall.delete(8080)
    await asyncio.sleep(5)
    assert hall.ruleset.rules == {}


@virtual
async def test_iwf_006_what_the_router_alone_granted_is_asked_for_when_the_server_appears(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    assert (await hall.add(8080)).code == 0
    assert (hall.carrier.asked, hall.only_rule.external) == ([], Endpoint(WAN, 8080))
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    (asked,) = hall.carrier.asked
    assert (asked.external_port, asked.exact) == (8080, True)
    assert hall.only_rule.external.address != WAN


@virtual
async def test_iwf_006_a_refused_promotion_leaves_the_entry_as_it_is(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    await hall.add(8080)
    hall.carrier.refuses(11)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    assert await hall.ports() == [8080]
    assert hall.only_rule.external == Endpoint(WAN, 8080)


@virtual
async def test_iwf_006_the_port_that_a_control_point_was_told_is_the_one_that_is_promoted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    reply = await hall.add(0, any_port=True)
    hall.router.wan_address = IPv4Address("100.64.99.1")
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    (asked,) = hall.carrier.asked
    assert asked.external_port == int(reply["ReservedPort"])
    assert asked.internal.address == IPv4Address("100.64.99.1")


@virtual
async def test_iwf_004_005_a_guessed_server_that_never_answered_is_not_waited_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    before = hall.loop.time()
    assert (await hall.add(8080)).code == 0
    assert hall.loop.time() - before < 0.01


@virtual
async def test_iwf_005_a_lost_server_leaves_the_router_alone_where_it_may(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state, hall.carrier.silent = Activation.LOST, True
    assert (await hall.add(8080)).code == 0
    assert hall.only_rule.external == Endpoint(WAN, 8080)


@pytest.mark.parametrize("options", [{"unreachable_policy": "error"}, {"routed": True}])
def test_iwf_005_a_lost_server_is_an_error_otherwise(tmp_path: Path, options: dict[str, object]) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, **options)  # type: ignore[arg-type]
        hall.carrier.state, hall.carrier.silent = Activation.LOST, True
        assert (await hall.add(8080)).code == 501
        assert hall.ruleset.rules == {}

    run()


@virtual
async def test_a_server_that_is_lost_while_a_request_waits_leaves_it_to_the_router(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.silent = True
    adding = asyncio.ensure_future(hall.add(8080))
    await asyncio.sleep(1)
    hall.carrier.become(Activation.LOST)
    assert (await adding).code == 0
    assert hall.only_rule.external == Endpoint(WAN, 8080)


@virtual
async def test_a_server_that_never_answered_is_waited_for_and_then_does_without(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state, hall.carrier.silent = Activation.PROBING, True
    before = hall.loop.time()
    assert (await hall.add(8080)).code == 0
    assert hall.loop.time() - before == pytest.approx(hall.main.soap_deadline)
    hall.carrier.become(Activation.ACTIVE)
    hall.carrier.grant(hall.only.id)
    await settle()
    assert hall.only_rule.external.address != WAN


@virtual
async def test_the_router_alone_cannot_grant_another_port_than_its_own(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.router.used.add((Protocol.TCP, 8080))
    hall.carrier.state, hall.carrier.silent = Activation.LOST, True
    assert (await hall.add(8080)).code == 718
    assert (len(hall.table), hall.ruleset.puts) == (0, [])


@virtual
async def test_a_lost_server_does_not_end_what_it_still_grants_when_a_control_point_asks_again(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.router.used.add((Protocol.TCP, 8080))
    await hall.add(8080)
    hall.carrier.silent = True
    hall.carrier.become(Activation.LOST)
    await settle()
    assert (await hall.add(8080, LeaseDuration=9000)).code == 0
    await settle()
    assert await hall.ports() == [8080]
    assert hall.only_rule.external.address != WAN
    assert hall.carrier.asked[-1].until == pytest.approx(hall.loop.time() + 9000, abs=0.1)


@virtual
async def test_a_lost_grant_is_served_by_the_router_alone_while_the_server_is_gone(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.silent, hall.carrier.state = True, Activation.LOST
    hall.carrier.lose(hall.only.id)
    await settle()
    assert await hall.ports() == [8080]
    assert hall.only_rule.external == Endpoint(WAN, 8080)


@virtual
async def test_a_lost_grant_that_the_router_alone_cannot_replace_retries_when_the_lease_is_infinite(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    hall.router.used.add((Protocol.TCP, 8080))
    hall.carrier.longest = 120
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.silent, hall.carrier.state = True, Activation.LOST
    await asyncio.sleep(121)
    assert (await hall.listed(), hall.ruleset.rules) == ([], {})
    assert hall.only.state is MappingState.RETRYING
    hall.carrier.silent = False
    hall.carrier.become(Activation.ACTIVE)
    hall.carrier.grant(hall.only.id)
    await settle()
    assert await hall.ports() == [8080]


@virtual
async def test_rules_that_are_being_laid_when_the_wan_address_changes_are_for_the_new_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path, routed=True)
    hall.ruleset.slow = 0.02
    adding = asyncio.create_task(hall.add())
    await settle()
    hall.carrier.silent = True  # without NAT it is asked for nothing else than before
    hall.router.wan_address = IPv4Address("100.64.99.1")
    hall.lifecycle.wan_changed()
    assert (await adding).code == 0
    assert hall.only_rule.wan_address == IPv4Address("100.64.99.1")


@virtual
async def test_another_wan_address_moves_the_rules_and_is_told_upstream(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.router.wan_address = IPv4Address("100.64.99.1")
    hall.lifecycle.wan_changed()
    await settle()
    assert hall.only_rule.wan_address == IPv4Address("100.64.99.1")
    assert hall.carrier.asked[-1].internal == Endpoint(IPv4Address("100.64.99.1"), 8080)


@virtual
async def test_the_router_alone_keeps_its_own_grants_alive_for_days(tmp_path: Path) -> None:
    hall = Hall(tmp_path, carrier=False)
    await hall.add(8080, LeaseDuration=0)
    await asyncio.sleep(3 * 86400)
    assert await hall.ports() == [8080]
    assert seconds_left(hall.only_rule) > 1700
    await hall.add(8081, LeaseDuration=5000)
    await asyncio.sleep(4999)
    assert await hall.ports() == [8080, 8081]
    await asyncio.sleep(2)
    assert await hall.ports() == [8080]


@virtual
async def test_a_release_of_what_is_gone_changes_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.fallback.receive(Released("ffffffff", 0))
    hall.fallback.receive(Released(hall.only.id, 0))
    await settle()
    assert (await hall.specific(8080))["InternalClient"] == A


@virtual
async def test_what_the_carrier_refuses_to_promote_is_refreshed_by_the_router_alone(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    await hall.add(8080, LeaseDuration=600)
    hall.carrier.refuses(11)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    hall.carrier.lose(hall.only.id)
    assert (await hall.add(8080, LeaseDuration=6000)).code == 0
    await asyncio.sleep(5000)
    assert await hall.ports() == [8080]
    assert hall.only_rule.external == Endpoint(WAN, 8080)


@virtual
async def test_what_the_router_serves_alone_is_asked_of_the_carrier_when_its_control_point_repeats_itself(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.refuses(11)
    hall.carrier.become(Activation.ACTIVE)
    await settle()
    assert hall.only_rule.external == Endpoint(WAN, 8080)
    hall.carrier.answer = None
    assert (await hall.add(8080, LeaseDuration=0)).code == 0
    await settle()
    assert hall.only_rule.external != Endpoint(WAN, 8080)


@virtual
async def test_the_router_alone_lets_go_of_what_the_carrier_has_taken_over(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.become(Activation.ACTIVE)
    await asyncio.sleep(4000)
    assert hall.only_rule.external.address != WAN


@virtual
async def test_a_renewal_outlives_a_change_of_the_ruleset_that_is_on_its_way(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080)
    await asyncio.sleep(300)
    hall.ruleset.slow, hall.carrier.silent = 0.05, True
    hall.lifecycle.wan_changed()
    await asyncio.sleep(0.01)
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(1)
    assert seconds_left(hall.only_rule) == 599
    await asyncio.sleep(500)
    assert await hall.ports() == [8080]
    (stored,) = Hall(tmp_path).journal.load().mappings
    assert (stored.grant, hall.only.grant and hall.only.grant.lifetime) == (hall.only.grant, 600)


@virtual
async def test_a_renewal_that_the_kernel_takes_after_the_old_end_is_no_loss(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest = 600
    await hall.add(8080)
    await asyncio.sleep(599)
    hall.ruleset.slow, hall.carrier.silent = 2, True
    hall.carrier.grant(hall.only.id, address=IPv4Address("62.0.0.9"))
    await asyncio.sleep(500)
    assert await hall.ports() == [8080]


@pytest.mark.parametrize("wan_changes", [False, True])
def test_of_grants_that_follow_at_once_the_last_one_stays(tmp_path: Path, wan_changes: bool) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(8080)
        hall.ruleset.slow, hall.carrier.silent = 0.05, True
        other = IPv4Address("62.0.0.9")
        for address in (other, CARRIER) if not wan_changes else (CARRIER, other):
            hall.carrier.grant(hall.only.id, address=address)
            await asyncio.sleep(0.01)
        if wan_changes:
            hall.lifecycle.wan_changed()
        await asyncio.sleep(5)
        assert hall.only.grant
        assert (
            hall.only.grant.external.address == hall.only_rule.external.address == (other if wan_changes else CARRIER)
        )

    run()


@virtual
async def test_a_wan_that_goes_while_the_kernel_is_slow_leaves_the_last_grant(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    other = IPv4Address("62.0.0.9")
    hall.ruleset.slow, hall.carrier.silent = 0.05, True
    hall.carrier.grant(hall.only.id, address=IPv4Address("62.0.0.8"))
    await asyncio.sleep(0.01)
    hall.router.wan_address = None
    hall.carrier.grant(hall.only.id, address=other)
    await asyncio.sleep(1)
    assert hall.only.grant
    assert hall.only.grant.external.address == other


@virtual
async def test_rules_that_are_laid_again_for_longer_are_those_of_the_last_grant(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.grant(hall.only.id)
    await asyncio.sleep(1.99)
    hall.ruleset.slow = 0.05
    other = IPv4Address("62.0.0.9")
    hall.carrier.grant(hall.only.id, address=other)
    await asyncio.sleep(5)
    assert hall.only_rule.external.address == other


@virtual
async def test_a_mapping_that_is_lost_before_its_rules_are_laid_again_gets_none(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, LeaseDuration=0)
    hall.carrier.grant(hall.only.id)
    await settle()
    hall.carrier.silent = True
    hall.carrier.lose(hall.only.id)
    await asyncio.sleep(5)
    assert (hall.only.state, hall.ruleset.rules) == (MappingState.RETRYING, {})


@pytest.mark.parametrize("soon", [0, 1], ids=["the first", "the second"])
def test_of_two_renewals_the_one_whose_rules_end_soon_decides_when_they_are_laid(tmp_path: Path, soon: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for each in range(2):
            hall.carrier.longest = 2 if each == soon else 600
            await hall.add(8080 + each, LeaseDuration=0)
        await asyncio.sleep(1)
        for mapping in hall.table:
            hall.carrier.grant(mapping.id, lifetime=600)
            await settle()
        await asyncio.sleep(0.6)
        assert [round(seconds_left(rule), -1) for rule in hall.ruleset.rules.values()] == [600, 600]

    run()


@virtual
async def test_rules_that_are_laid_down_anew_when_their_grant_has_just_ended_are_still_laid(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.longest, hall.carrier.releases = 2, None
    await hall.add(8080)
    deletion = asyncio.ensure_future(hall.delete(8080))
    await asyncio.sleep(3)
    await hall.leg.sync()
    assert seconds_left(hall.only_rule) == 1
    await deletion
