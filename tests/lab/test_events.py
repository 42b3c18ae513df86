# SPDX-License-Identifier: Apache-2.0
"""Eventing end to end: control points that subscribed hear of mappings and addresses, and cannot harm anybody."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.lab import topology
from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.subscriber import Subscriber
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 8080
OTHER_EXTERNAL_ADDRESS = "62.0.0.77"
V2_EVENTS = "/v2/evt/IPConn"
EVERY_EVENT_PATH = ("/evt/L3F", "/evt/CmnIfCfg", "/evt/IPConn", "/v2/evt/L3F", "/v2/evt/CmnIfCfg", V2_EVENTS)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def carrier(lab: Lab) -> SimulatedCarrier:
    return SimulatedCarrier(lab)


@pytest.fixture
def daemon(lab: Lab, carrier: SimulatedCarrier) -> Igdpcpd:
    daemon = Igdpcpd(lab)
    daemon.wait_for_activation()
    return daemon


@pytest.fixture
def subscriber(lab: Lab) -> Iterator[Subscriber]:
    with Subscriber(lab.lan) as subscriber:
        yield subscriber


def test_a_subscriber_is_told_everything_at_first_and_then_every_change_of_the_table(
    lab: Lab, daemon: Igdpcpd, subscriber: Subscriber
) -> None:
    reply = subscriber.subscribe(V2_EVENTS)

    assert reply.status == 200
    assert reply.headers["timeout"] == "Second-1801"
    first = subscriber.wait_for(lambda event: True, "the initial event")
    assert (first.sid, first.seq) == (reply.headers["sid"], 0)
    assert first.values["ExternalIPAddress"] == topology.EXTERNAL_ADDRESS
    assert first.values["ConnectionStatus"] == "Connected"
    assert first.values["PortMappingNumberOfEntries"] == "0"
    assert subscriber.senders == {topology.ROUTER_LAN_ADDRESS}

    assert soap_client(lab.lan2).add("tcp", PORT, topology.LAN2_ADDRESS, PORT)

    second = subscriber.wait_for(lambda event: event.seq == 1, "the event of the new mapping")
    assert set(second.values) == {"PortMappingNumberOfEntries", "SystemUpdateID"}
    assert second.values["PortMappingNumberOfEntries"] == "1"
    assert second.values["SystemUpdateID"] != first.values["SystemUpdateID"]

    assert soap_client(lab.lan2).delete("tcp", PORT)

    third = subscriber.wait_for(lambda event: event.seq == 2, "the event of the deleted mapping")
    assert third.values["PortMappingNumberOfEntries"] == "0"


@pytest.mark.parametrize("path", EVERY_EVENT_PATH)
def test_every_service_has_an_initial_event(daemon: Igdpcpd, subscriber: Subscriber, path: str) -> None:
    assert subscriber.subscribe(path).status == 200
    values = subscriber.wait_for(lambda event: event.seq == 0, "the initial event").values
    assert values
    assert ("SystemUpdateID" in values) == (path == V2_EVENTS)


def test_iwf_193_197_a_changed_external_address_is_told(
    lab: Lab, carrier: SimulatedCarrier, daemon: Igdpcpd, subscriber: Subscriber
) -> None:
    """It is all that gupnp-igd has to notice a new address."""
    assert soap_client(lab.lan).add("udp", PORT, topology.LAN_ADDRESS, PORT)
    subscriber.subscribe()
    subscriber.wait_for(lambda event: event.seq == 0, "the initial event")

    carrier.use_addresses(OTHER_EXTERNAL_ADDRESS)

    subscriber.wait_for(
        lambda event: event.values.get("ExternalIPAddress") == OTHER_EXTERNAL_ADDRESS, "the event of the new address"
    )


def test_a_renewed_subscription_goes_on_and_an_ended_one_is_over(
    lab: Lab, daemon: Igdpcpd, subscriber: Subscriber
) -> None:
    sid = subscriber.subscribe().headers["sid"]
    subscriber.wait_for(lambda event: event.seq == 0, "the initial event")
    assert subscriber.renew(sid).headers["sid"] == sid
    assert subscriber.unsubscribe(sid).status == 200
    assert subscriber.renew(sid).status == subscriber.unsubscribe(sid).status == 412
    with Subscriber(lab.lan2) as other:
        other.subscribe()
        assert soap_client(lab.lan2).add("tcp", PORT, topology.LAN2_ADDRESS, PORT)
        other.wait_for(lambda event: event.seq == 1, "the event for who is still subscribed")
    assert [event.seq for event in subscriber.events] == [0]


@pytest.mark.parametrize(
    "callback",
    [
        f"http://{topology.LAN2_ADDRESS}:{PORT}/",
        f"http://{topology.ROUTER_LAN_ADDRESS}:5000/",
        f"http://{topology.INTERNET_ADDRESS}/",
        "http://printer.lan/",
    ],
)
def test_events_cannot_be_aimed_at_anybody_else(
    lab: Lab, daemon: Igdpcpd, subscriber: Subscriber, callback: str
) -> None:
    bystanders = [lab.listen(lab.lan2, "tcp", PORT), lab.listen(lab.internet, "tcp", 80)]

    assert subscriber.subscribe(callback=callback).status == 412

    assert subscriber.subscribe().status == 200
    subscriber.wait_for(lambda event: event.seq == 0, "the event of a subscription that is in order")
    assert [bystander.seen for bystander in bystanders] == [[], []]


def test_subscribers_that_never_answer_delay_nobody(lab: Lab, daemon: Igdpcpd, subscriber: Subscriber) -> None:
    with ExitStack() as dead:
        for _ in range(8):
            assert dead.enter_context(Subscriber(lab.lan2, answer=None)).subscribe().status == 200
        with Subscriber(lab.lan2, answer=None) as one_too_many:
            assert one_too_many.subscribe().status == 503
        subscriber.subscribe()
        subscriber.wait_for(lambda event: event.seq == 0, "the initial event")
        begun = time.monotonic()
        for port in range(PORT, PORT + 5):
            assert soap_client(lab.lan).add("tcp", port, topology.LAN_ADDRESS, port)
        assert time.monotonic() - begun < 5, "five mappings together, in less than one delivery may take"
        subscriber.wait_for(
            lambda event: event.values.get("PortMappingNumberOfEntries") == "5", "the event of the mappings"
        )


def test_the_daemon_ends_at_once_while_deliveries_hang(lab: Lab, daemon: Igdpcpd) -> None:
    with Subscriber(lab.lan, answer=None) as dead:
        dead.subscribe()
        poll(lambda: dead.senders, 5, "the connection that brings the initial event")
        assert daemon.stop() == 0, "else it had to be killed"


def test_a_subscription_that_comes_in_pieces_and_without_a_space_is_understood(
    lab: Lab, daemon: Igdpcpd, subscriber: Subscriber
) -> None:
    """As small devices write it."""
    request = (
        f"SUBSCRIBE /evt/IPConn HTTP/1.1\r\nHost:{topology.ROUTER_LAN_ADDRESS}:5000\r\n"
        f"Callback:<{subscriber.url}>\r\nNt:upnp:event\r\nTimeout:Second-infinite\r\n\r\n"
    ).encode()
    with lab.lan.socket(socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        connection.connect((topology.ROUTER_LAN_ADDRESS, 5000))
        for start in range(0, len(request), 40):
            connection.sendall(request[start : start + 40])
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nTIMEOUT: Second-1800\r\n" in answer
    subscriber.wait_for(lambda event: event.seq == 0, "the initial event")
