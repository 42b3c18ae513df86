# SPDX-License-Identifier: Apache-2.0
"""Eventing in virtual time: who is told what and when, with subscribers that answer, lag and die as the test likes."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import weakref
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from igdpcp.daemon.delivery_turns import DELIVERIES_AT_ONCE, DELIVERIES_PER_HOST, QUICK, UNPROVEN_AT_ONCE
from igdpcp.daemon.event_publisher import MODERATION, EventPublisher
from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.lan_hosts import by_address
from igdpcp.errors import MalformedRequest
from igdpcp.upnp.gena import FAILURES_LIMIT
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.services import WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION
from tests.support.events import Event
from tests.support.virtual_time import virtual

ROUTER = "192.168.1.1"
A, B = "192.168.1.50", "192.168.1.51"
HANGS = 10.0  # seconds until the delivery to a subscriber that never answers is given up
LIMIT, PER_HOST = 64, 8


class Subscribers:
    """Every subscriber there is, in place of the network: ``answers`` by port, 200 where nothing is said.

    An answer is a status, an exception, or a number of seconds to wait for a 200.
    """

    def __init__(self):
        self.events = []
        self.answers = {}
        self.open = []
        self.most_open = self.most_open_of_a_host = 0

    async def __call__(self, peer, port, event):
        self.events.append((peer.address, port, Event.parse(event)))
        self.open.append(peer.address)
        self.most_open = max(self.most_open, len(self.open))
        self.most_open_of_a_host = max(self.most_open_of_a_host, max(map(self.open.count, self.open)))
        try:
            await asyncio.sleep(0)
            answer = self.answers.get(port, 200)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                if answer >= HANGS:
                    raise TimeoutError
                return 200
            return answer
        finally:
            self.open.remove(peer.address)

    def told(self, port):
        """Sequence numbers and variables of the events that went to a port."""
        return [(event.seq, event.values) for _, to, event in self.events if to == port]


class Gateway:
    """The publisher and what it reads; ``external`` by control point."""

    def __init__(self, limit=LIMIT, per_host=PER_HOST, host_of=by_address):
        self.net = Subscribers()
        self.values = {"PortMappingNumberOfEntries": 0, "SystemUpdateID": 0}
        self.external = {}
        self.reads = 0
        self.publisher = EventPublisher(
            read=self._read,
            http_port=5000,
            max_subscriptions=limit,
            max_subscriptions_per_host=per_host,
            rng=random.Random(1),
            host_of=host_of,
            deliver=self.net,
        )

    @property
    def counters(self):
        return self.publisher.counters

    def _read(self, service, tree, asker):
        self.reads += 1
        if service is WAN_COMMON_INTERFACE_CONFIG:
            return {"PhysicalLinkStatus": "Up"}
        values = {"ExternalIPAddress": self.external.get(str(asker), "203.0.113.7"), **self.values}
        if tree == 1:
            del values["SystemUpdateID"]
        return values

    def ask(self, method, headers, host=A, service=WAN_IP_CONNECTION, tree=2, device="br-lan"):
        peer = Peer(ip_address(host), ip_address(ROUTER), device)
        return self.publisher.handle(HttpRequest(method, "/evt/x", headers, b"", "1.1"), peer, service, tree)

    def subscribe(self, port=4000, host=A, timeout="Second-1800", **where):
        literal = f"[{host}]" if ":" in host else host
        headers = {"callback": f"<http://{literal}:{port}/cb>", "nt": "upnp:event", "timeout": timeout}
        return self.ask("SUBSCRIBE", headers, host, **where)

    def renew(self, response, timeout="Second-1800", **where):
        return self.ask("SUBSCRIBE", {"sid": sid(response), "timeout": timeout}, **where)

    def unsubscribe(self, response, **where):
        return self.ask("UNSUBSCRIBE", {"sid": sid(response)}, **where)

    def change(self):
        """One more mapping, as the interworking function would tell."""
        self.values["PortMappingNumberOfEntries"] += 1
        self.values["SystemUpdateID"] += 1
        self.publisher.poke()


@asynccontextmanager
async def gateway(**options):
    gateway = Gateway(**options)
    try:
        yield gateway
    finally:
        await gateway.publisher.close()


def sid(response):
    return dict(response.headers)["SID"]


async def soon():
    """Long enough for what is to be sent at once."""
    await asyncio.sleep(0.01)


async def moderated():
    """Long enough for a change to be told."""
    await asyncio.sleep(MODERATION + 0.01)


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
