# SPDX-License-Identifier: Apache-2.0
"""Eventing in virtual time: who is told what and when, with subscribers that answer, lag and die as the test likes."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from igdpcp.daemon.delivery_turns import DELIVERIES_PER_HOST
from igdpcp.daemon.event_publisher import MODERATION
from igdpcp.errors import MalformedRequest
from igdpcp.upnp.gena import FAILURES_LIMIT
from igdpcp.upnp.services import WAN_COMMON_INTERFACE_CONFIG
from tests.support.subscribers import HANGS, ROUTER, A, B, gateway, moderated, sid, soon
from tests.support.virtual_time import virtual


@virtual
async def test_a_subscription_is_confirmed_and_then_told_everything():
    async with gateway() as gw:
        response = gw.subscribe(timeout="Second-3600")
        assert response.status == 200
        assert dict(response.headers)["TIMEOUT"] == "Second-3600"
        assert gw.net.events == [], "the response has to be written first"
        await soon()
        ((address, port, event),) = gw.net.events
        assert (str(address), port) == (A, 4000)
        assert (event.path, event.host, event.sid, event.seq) == ("/cb", f"{A}:4000", sid(response), 0)
        assert event.values == {
            "ExternalIPAddress": "203.0.113.7",
            "PortMappingNumberOfEntries": "0",
            "SystemUpdateID": "0",
        }
        assert (gw.publisher.subscriptions, gw.counters.subscribed, gw.counters.delivered) == (1, 1, 1)


@virtual
async def test_each_service_of_each_tree_tells_its_own_variables():
    async with gateway() as gw:
        gw.subscribe(4000, tree=1)
        gw.subscribe(4000, tree=2)
        gw.subscribe(4000, service=WAN_COMMON_INTERFACE_CONFIG)
        await soon()
        assert [sorted(values) for _, values in gw.net.told(4000)] == [
            ["ExternalIPAddress", "PortMappingNumberOfEntries"],
            ["ExternalIPAddress", "PortMappingNumberOfEntries", "SystemUpdateID"],
            ["PhysicalLinkStatus"],
        ]


@virtual
async def test_sids_are_version_4_uuids_that_differ():
    async with gateway() as gw:
        sids = {sid(gw.subscribe(port)) for port in range(4000, 4008)}
        assert len(sids) == 8
        assert all(len(text) == 41 and text.startswith("uuid:") and text[19] == "4" for text in sids)


@virtual
async def test_a_hundred_changes_make_one_event_with_all_that_changed():
    async with gateway() as gw:
        gw.subscribe()
        await soon()
        for _ in range(100):
            gw.change()
        await soon()
        assert len(gw.net.events) == 1
        await moderated()
        assert gw.net.told(4000)[1:] == [(1, {"PortMappingNumberOfEntries": "100", "SystemUpdateID": "100"})]


@virtual
async def test_changes_that_go_on_are_told_at_the_moderated_rate():
    async with gateway() as gw:
        gw.subscribe()
        await soon()
        for _ in range(1000):
            gw.change()
            await asyncio.sleep(0.003)
        await moderated()
        told = gw.net.told(4000)
        assert 3 / MODERATION - 1 <= len(told) - 1 <= 3 / MODERATION + 1
        assert [seq for seq, _ in told] == list(range(len(told)))
        assert told[-1][1] == {"PortMappingNumberOfEntries": "1000", "SystemUpdateID": "1000"}


@virtual
async def test_a_poke_without_a_change_makes_no_event():
    async with gateway() as gw:
        gw.subscribe()
        await soon()
        gw.publisher.poke()
        gw.change()
        gw.values["PortMappingNumberOfEntries"] -= 1
        gw.values["SystemUpdateID"] -= 1
        await moderated()
        assert len(gw.net.events) == 1


@virtual
async def test_each_subscriber_sees_its_own_external_address():
    async with gateway() as gw:
        gw.external = {A: "203.0.113.7", B: "203.0.113.8"}
        gw.subscribe(4000, A)
        gw.subscribe(4001, B)
        await soon()
        gw.external[B] = "203.0.113.9"
        gw.publisher.poke()
        await moderated()
        assert [values["ExternalIPAddress"] for _, values in gw.net.told(4000)] == ["203.0.113.7"]
        assert [values["ExternalIPAddress"] for _, values in gw.net.told(4001)] == ["203.0.113.8", "203.0.113.9"]


@virtual
async def test_one_event_is_on_its_way_at_a_time_and_the_next_one_tells_what_is_then_so():
    async with gateway() as gw:
        gw.net.answers[4000] = 5.0
        gw.subscribe()
        for _ in range(4):
            await asyncio.sleep(1)
            gw.change()
        assert len(gw.net.events) == 1
        gw.net.answers[4000] = 200
        await asyncio.sleep(2)
        assert gw.net.told(4000)[1:] == [(1, {"PortMappingNumberOfEntries": "4", "SystemUpdateID": "4"})]
        assert gw.net.most_open == 1


@virtual
async def test_a_subscriber_that_is_slow_does_not_hold_up_another():
    async with gateway() as gw:
        gw.net.answers[4000] = HANGS
        gw.subscribe(4000, A)
        gw.subscribe(4001, B)
        await soon()
        gw.change()
        await moderated()
        assert len(gw.net.told(4001)) == 2


@virtual
async def test_the_next_event_carries_what_was_lost_and_numbers_go_on():
    async with gateway() as gw:
        gw.subscribe()
        await soon()
        gw.net.answers[4000] = ConnectionRefusedError("refused")
        gw.change()
        await moderated()
        gw.net.answers[4000] = 200
        gw.external[A] = "203.0.113.9"
        gw.publisher.poke()
        await moderated()
        assert gw.net.told(4000)[2:] == [
            (2, {"ExternalIPAddress": "203.0.113.9", "PortMappingNumberOfEntries": "1", "SystemUpdateID": "1"})
        ]
        assert (gw.counters.failed, gw.counters.delivered, gw.counters.dropped) == (1, 2, 0)


@pytest.mark.parametrize("answer", [ConnectionRefusedError("refused"), MalformedRequest("not HTTP"), HANGS, 500, 302])
def test_three_lost_events_in_a_row_end_a_subscription(answer, caplog):
    caplog.set_level(logging.INFO, logger="igdpcp.events")

    @virtual
    async def run():
        async with gateway() as gw:
            response = gw.subscribe()
            await soon()
            gw.net.answers[4000] = answer
            for _ in range(FAILURES_LIMIT - 1):
                gw.change()
                await asyncio.sleep(HANGS + 1)
            assert gw.publisher.subscriptions == 1
            gw.change()
            await asyncio.sleep(HANGS + 1)
            assert gw.publisher.subscriptions == 0
            assert gw.renew(response).status == 412
            gw.change()
            await asyncio.sleep(HANGS + 1)
            assert len(gw.net.events) == 1 + FAILURES_LIMIT
            assert (gw.counters.dropped, gw.counters.failed) == (1, FAILURES_LIMIT)

    run()
    assert f"event=subscription_ended client={A} service=WANIPConnection" in caplog.text


@virtual
async def test_a_subscriber_that_answers_412_is_forgotten_at_once():
    async with gateway() as gw:
        gw.subscribe()
        await soon()
        gw.net.answers[4000] = 412
        gw.change()
        await moderated()
        assert (gw.publisher.subscriptions, gw.counters.dropped) == (0, 1)


@virtual
async def test_a_renewal_keeps_the_sid_and_sends_no_event():
    async with gateway() as gw:
        response = gw.subscribe()
        await asyncio.sleep(1000)
        renewed = gw.renew(response, "Second-3600")
        assert renewed.status == 200
        assert dict(renewed.headers) == {"SID": sid(response), "TIMEOUT": "Second-3600"}
        await asyncio.sleep(3599)
        assert gw.publisher.subscriptions == 1
        assert len(gw.net.events) == 1
        await asyncio.sleep(2)
        assert gw.publisher.subscriptions == 0
        assert (gw.counters.renewed, gw.counters.expired) == (1, 1)


@virtual
async def test_a_subscription_ends_at_its_time_whatever_the_others_have():
    async with gateway() as gw:
        gw.subscribe(4000, timeout="Second-86400")
        short = gw.subscribe(4001, timeout="Second-1800")
        await asyncio.sleep(1799)
        assert gw.publisher.subscriptions == 2
        await asyncio.sleep(2)
        assert gw.publisher.subscriptions == 1
        assert gw.renew(short).status == 412
        gw.change()
        await moderated()
        assert [len(gw.net.told(port)) for port in (4000, 4001)] == [2, 1]


@virtual
async def test_a_renewal_may_shorten_a_subscription():
    async with gateway() as gw:
        response = gw.subscribe(timeout="Second-86400")
        gw.renew(response, "Second-1800")
        await asyncio.sleep(1801)
        assert gw.publisher.subscriptions == 0


@virtual
async def test_an_unsubscribed_host_hears_no_more():
    async with gateway() as gw:
        response = gw.subscribe()
        await soon()
        assert gw.unsubscribe(response).status == 200
        assert gw.unsubscribe(response).status == 412
        assert gw.renew(response).status == 412
        gw.change()
        await moderated()
        assert len(gw.net.events) == 1
        assert (gw.publisher.subscriptions, gw.counters.unsubscribed, gw.counters.refused) == (0, 1, 2)


@virtual
async def test_who_unsubscribes_at_once_still_gets_the_initial_event():
    async with gateway() as gw:
        response = gw.subscribe()
        assert gw.unsubscribe(response).status == 200
        assert gw.renew(response).status == 412
        await soon()
        assert [seq for seq, _ in gw.net.told(4000)] == [0]
        assert gw.publisher.subscriptions == 0
        gw.change()
        await moderated()
        assert len(gw.net.events) == 1


@virtual
async def test_a_sid_serves_only_its_host_at_its_event_url():
    async with gateway() as gw:
        response = gw.subscribe()
        await soon()
        for where in ({"host": B}, {"tree": 1}, {"service": WAN_COMMON_INTERFACE_CONFIG}):
            assert gw.renew(response, **where).status == 412
            assert gw.unsubscribe(response, **where).status == 412
        assert gw.publisher.subscriptions == 1
        assert gw.ask("SUBSCRIBE", {"sid": "uuid:unknown"}).status == 412


@virtual
async def test_the_same_callback_again_replaces_the_subscription():
    async with gateway() as gw:
        first = gw.subscribe()
        second = gw.subscribe()
        await soon()
        third = gw.subscribe()
        await soon()
        assert len({sid(first), sid(second), sid(third)}) == 3
        assert gw.publisher.subscriptions == 1
        assert gw.renew(first).status == gw.renew(second).status == 412
        assert gw.renew(third).status == 200
        assert [event.sid for _, _, event in gw.net.events] == [sid(second), sid(third)]


@virtual
async def test_a_replaced_subscription_that_waits_is_not_told():
    async with gateway() as gw:
        for port in (4000, 4001):
            gw.net.answers[port] = HANGS
            gw.subscribe(port)
        gw.subscribe(4002)
        await soon()
        second = gw.subscribe(4002)
        await asyncio.sleep(HANGS + 1)
        assert [event.sid for _, to, event in gw.net.events if to == 4002] == [sid(second)]


@virtual
async def test_an_event_that_is_on_its_way_when_its_subscription_ends_changes_nothing():
    async with gateway() as gw:
        gw.net.answers[4000] = 412
        response = gw.subscribe()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert gw.net.open
        assert gw.unsubscribe(response).status == 200
        await soon()
        assert (gw.publisher.subscriptions, gw.counters.failed, gw.counters.dropped) == (0, 1, 0)


@virtual
async def test_a_link_local_address_of_another_lan_is_another_subscriber():
    async with gateway(per_host=1) as gw:
        at_home, guest = ({"host": "fe80::5", "device": device} for device in ("br-lan", "br-guest"))
        responses = [gw.subscribe(**where) for where in (at_home, guest)]
        assert [response.status for response in responses] == [200, 200]
        assert gw.publisher.subscriptions == 2
        assert gw.renew(responses[0], **guest).status == gw.unsubscribe(responses[0], **guest).status == 412
        assert gw.renew(responses[0], **at_home).status == 200


@virtual
async def test_a_subscription_for_whose_initial_event_nobody_listens_ends_at_once():
    async with gateway() as gw:
        gw.net.answers[4000] = ConnectionRefusedError("refused")
        response = gw.subscribe()
        await soon()
        assert (gw.publisher.subscriptions, gw.counters.dropped) == (0, 1)
        assert gw.renew(response).status == 412


def test_wrong_requests_are_refused_counted_and_logged(caplog):
    caplog.set_level(logging.INFO, logger="igdpcp.events")

    @virtual
    async def run():
        async with gateway() as gw:
            stranger = {"callback": "<http://198.51.100.1/\x1b[2J>", "nt": "upnp:event"}
            assert gw.ask("SUBSCRIBE", stranger).status == 412
            assert gw.ask("SUBSCRIBE", {**stranger, "sid": "uuid:1"}).status == 400
            own = {"callback": f"<http://{ROUTER}:5000/evt/x>", "nt": "upnp:event"}
            assert gw.ask("SUBSCRIBE", own, host=ROUTER).status == 412
            await moderated()
            assert gw.net.events == []
            assert (gw.counters.refused, gw.publisher.subscriptions) == (3, 0)

    run()
    assert caplog.text.count("event=subscription_refused") == 3
    assert "\x1b" not in caplog.text


@virtual
async def test_ten_thousand_pokes_leave_nothing_behind_for_a_dead_subscriber():
    async with gateway() as gw:
        gw.net.answers[4000] = HANGS
        gw.subscribe()
        await soon()
        for _ in range(10):
            for _ in range(1000):
                gw.change()
            assert len(asyncio.all_tasks()) <= 2, "this test and one delivery"
            await asyncio.sleep(0.5)
        assert len(gw.net.events) == 1
        assert gw.reads == 1
        await asyncio.sleep(2 * HANGS)
        assert gw.net.told(4000)[1][1]["SystemUpdateID"] == "10000"


@virtual
async def test_closing_ends_deliveries_at_once_and_begins_no_others():
    async with gateway() as gw:
        for port in range(4000, 4004):
            gw.net.answers[port] = HANGS
            gw.subscribe(port)
        await soon()
        gw.subscribe(4005)
        gw.change()
        before = asyncio.get_running_loop().time()
        await gw.publisher.close()
        assert asyncio.get_running_loop().time() == before
        assert gw.net.open == []
        await asyncio.sleep(100)
        assert len(gw.net.events) == DELIVERIES_PER_HOST
        assert gw.publisher.subscriptions == 0


@virtual
async def test_a_closed_publisher_is_kept_by_no_timer():
    """A reload makes another one in the same process, and a subscription may last a day."""
    async with gateway() as gw:
        response = gw.subscribe(timeout="Second-86400")
        gw.renew(response, "Second-1800")
        await soon()
        gw.change()
    closed = weakref.ref(gw.publisher)
    del gw
    gc.collect()
    assert closed() is None


def test_subscriptions_are_logged_sparingly_and_lost_events_only_for_debugging(caplog):
    caplog.set_level(logging.INFO, logger="igdpcp.events")

    @virtual
    async def run():
        async with gateway() as gw:
            gw.net.answers[4000] = HANGS
            for _ in range(100):
                gw.subscribe()
                await soon()
            await asyncio.sleep(HANGS)
            assert "event_lost" not in caplog.text
            caplog.set_level(logging.DEBUG, logger="igdpcp.events")
            gw.change()
            await asyncio.sleep(HANGS + 1)

    run()
    assert f"event=subscribed client={A} service=WANIPConnection tree=2 port=4000 seconds=1800" in caplog.text
    assert caplog.text.count("event=subscribed") < 20
    assert f'event=event_lost client={A} service=WANIPConnection reason="does not answer in time"' in caplog.text
