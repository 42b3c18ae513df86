# SPDX-License-Identifier: Apache-2.0
"""Whose event is delivered next, and how many subscriptions and connections one host and all of them may have."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from igdpcp.daemon.delivery_turns import DELIVERIES_AT_ONCE, DELIVERIES_PER_HOST, QUICK, UNPROVEN_AT_ONCE
from tests.support.subscribers import HANGS, PER_HOST, A, B, gateway, moderated, soon
from tests.support.virtual_time import virtual


@virtual
async def test_who_leaves_before_the_initial_event_could_be_sent_holds_its_place_until_then():
    async with gateway(per_host=3) as gw:
        for port in (4000, 4001):
            gw.net.answers[port] = HANGS
            gw.subscribe(port)
        await soon()
        gw.unsubscribe(gw.subscribe(4002))
        await soon()
        assert gw.subscribe(4003).status == 503
        await asyncio.sleep(HANGS)
        assert len(gw.net.told(4002)) == 1
        assert gw.subscribe(4003).status == 200


@virtual
async def test_one_host_cannot_take_the_places_of_the_others():
    async with gateway() as gw:
        answers = [gw.subscribe(port).status for port in range(4000, 4000 + 2 * PER_HOST)]
        assert answers == [200] * PER_HOST + [503] * PER_HOST
        assert gw.subscribe(4000).status == 200, "replacing needs no further place"
        assert gw.subscribe(4000, B).status == 200
        assert gw.counters.over_limit == PER_HOST


@virtual
async def test_the_addresses_of_one_host_have_its_places_and_its_connections_together():
    async with gateway(host_of=lambda address, device: "one") as gw:
        answers = [gw.subscribe(4000, f"192.168.1.{n}").status for n in range(100, 100 + PER_HOST + 1)]
        assert answers == [200] * PER_HOST + [503]
        gw.net.answers[4000] = HANGS
        await soon()
        assert len(gw.net.open) == DELIVERIES_PER_HOST


@virtual
async def test_all_hosts_together_have_a_ceiling_and_a_place_that_is_given_back_is_free():
    async with gateway(limit=10) as gw:
        responses = [gw.subscribe(4000, f"192.168.1.{n}") for n in range(10, 20)]
        assert {response.status for response in responses} == {200}
        assert gw.subscribe().status == 503
        await soon()
        gw.unsubscribe(responses[0], host="192.168.1.10")
        assert gw.subscribe().status == 200


@virtual
async def test_places_of_expired_subscriptions_are_free():
    async with gateway(limit=1) as gw:
        gw.subscribe()
        await asyncio.sleep(1801)
        assert gw.subscribe(4000, B).status == 200


@virtual
async def test_connections_have_a_ceiling_for_all_and_for_each_host():
    async with gateway() as gw:
        for n in range(DELIVERIES_AT_ONCE):
            for port in range(4000, 4003):
                gw.subscribe(port, f"192.168.1.{10 + n}")
        await soon()
        gw.net.answers = dict.fromkeys(range(4000, 4003), 1.0)
        gw.change()
        await moderated()
        assert len(gw.net.open) == DELIVERIES_AT_ONCE
        await asyncio.sleep(10)
        assert (gw.net.most_open, gw.net.most_open_of_a_host) == (DELIVERIES_AT_ONCE, DELIVERIES_PER_HOST)
        assert len(gw.net.events) == 2 * 3 * DELIVERIES_AT_ONCE, "and each got its event in the end"


@virtual
async def test_hosts_that_take_their_time_delay_nobody_who_does_not():
    slow = [f"192.168.1.{100 + n}" for n in range(DELIVERIES_AT_ONCE)]
    async with gateway() as gw:
        for port, host in enumerate(slow, 5000):
            gw.net.answers[port] = QUICK + 0.1
            gw.subscribe(port, host)
        gw.subscribe(4000, A)
        await asyncio.sleep(20)
        gw.change()
        await moderated()
        assert gw.net.open.count(ip_address(slow[0])) <= DELIVERIES_PER_HOST
        assert len(gw.net.open) == UNPROVEN_AT_ONCE
        assert len(gw.net.told(4000)) == 2
        await asyncio.sleep(20)
        assert all(len(gw.net.told(port)) == 2 for port in range(5000, 5000 + len(slow)))


@virtual
async def test_a_host_that_has_become_quick_counts_as_such_and_one_that_is_no_longer_does_not():
    hosts = [f"192.168.1.{100 + n}" for n in range(DELIVERIES_AT_ONCE)]
    async with gateway() as gw:
        for seconds, open_at_once in ((QUICK + 1, UNPROVEN_AT_ONCE), (1.0, UNPROVEN_AT_ONCE), (1.0, len(hosts))):
            gw.net.answers[4000] = seconds
            for host in hosts:
                gw.subscribe(4000, host)
            gw.change()
            await moderated()
            assert len(gw.net.open) == open_at_once
            await asyncio.sleep(30)
        gw.net.answers[4000] = QUICK + 1
        for open_at_once in (len(hosts), UNPROVEN_AT_ONCE):
            gw.change()
            await moderated()
            assert len(gw.net.open) == open_at_once
            await asyncio.sleep(30)


@virtual
async def test_hosts_take_turns_however_many_subscriptions_each_has():
    async with gateway() as gw:
        crowd = [f"192.168.1.{100 + n}" for n in range(UNPROVEN_AT_ONCE)]
        for n, host in enumerate(crowd):
            for port in range(5000 + 7 * n, 5007 + 7 * n):
                gw.net.answers[port] = HANGS - 0.1
                gw.subscribe(port, host)
        gw.subscribe(4000, A)
        await asyncio.sleep(HANGS)
        assert len(gw.net.told(4000)) == 1


@virtual
async def test_what_is_remembered_of_hosts_ends_with_their_subscriptions():
    async with gateway() as gw:
        for n in range(100):
            response = gw.subscribe(4000, host := f"192.168.1.{n}")
            await soon()
            gw.unsubscribe(response, host=host)
        gw.net.answers[4000] = 1.0
        response = gw.subscribe()
        await soon()
        gw.unsubscribe(response)
        await asyncio.sleep(2)
        turns = gw.publisher._turns
        assert (turns._turns, turns._quick, turns._open, turns._unproven) == ({}, set(), {}, 0)


@virtual
async def test_nothing_is_remembered_of_hosts_that_left_before_their_initial_events_were_sent():
    async with gateway() as gw:
        gw.net.answers = dict.fromkeys((4000, 4001), 1.0)
        for n in range(50):
            host = f"192.168.1.{n}"
            responses = [gw.subscribe(port, host) for port in (4000, 4001, 4002)]
            await soon()
            for response in responses:
                gw.unsubscribe(response, host=host)
            await asyncio.sleep(2)
        assert len(gw.net.told(4002)) == 50
        turns = gw.publisher._turns
        assert (turns._turns, turns._quick, turns._open, turns._unproven) == ({}, set(), {}, 0)


@virtual
async def test_who_waits_for_a_connection_is_not_overtaken_by_what_changes_meanwhile():
    async with gateway() as gw:
        gw.net.answers[4000] = 1.0
        for n in range(UNPROVEN_AT_ONCE):
            gw.subscribe(4000, f"192.168.1.{10 + n}")
        gw.subscribe(5000, B)
        for _ in range(10):
            gw.change()
            await asyncio.sleep(0.15)
        assert gw.net.told(5000)[0][0] == 0


@virtual
async def test_a_host_with_dead_subscriptions_delays_itself_only():
    async with gateway() as gw:
        for port in range(4000, 4000 + PER_HOST):
            gw.net.answers[port] = HANGS
            gw.subscribe(port, A)
        await soon()
        gw.subscribe(5000, B)
        await soon()
        assert len(gw.net.told(5000)) == 1
        assert len(gw.net.open) == DELIVERIES_PER_HOST
