# SPDX-License-Identifier: Apache-2.0
"""GENA without a network: what subscribers may ask for, and what they are told."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.gena import (
    FAILURES_LIMIT,
    PATH_LIMIT,
    Callback,
    Renew,
    Subscribe,
    Subscription,
    Unsubscribe,
    notify_message,
    parse_request,
    propertyset,
    status_of,
)
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.services import WAN_IP_CONNECTION
from tests.support.events import Event

REQUESTER = ip_address("192.168.1.50")
LINK_LOCAL = ip_address("fe80::1:2")
OURS = (ip_address("192.168.1.1"), 5000)
SID = "uuid:11111111-2222-4333-8444-555555555555"
NEW = {"callback": "<http://192.168.1.50:49200/cb>", "nt": "upnp:event"}
CALLBACK = Callback(REQUESTER, 49200, "/cb")


def parse(headers, method="SUBSCRIBE", requester=REQUESTER, ours=OURS):
    return parse_request(HttpRequest(method, "/evt/IPConn", headers, b"", "1.1"), requester, ours)


def refused(headers, **options):
    with pytest.raises(MalformedRequest) as caught:
        parse(headers, **options)
    return caught.value.status


def callback_of(header, **options):
    return parse({**NEW, "callback": header}, **options).callback


def test_a_subscription_names_where_its_events_go():
    assert parse({**NEW, "timeout": "Second-3600"}) == Subscribe(CALLBACK, 3600)
    assert parse({"sid": SID, "timeout": "Second-3600"}) == Renew(SID, 3600)
    assert parse({"sid": SID}, method="UNSUBSCRIBE") == Unsubscribe(SID)


def test_the_variables_that_a_subscriber_would_like_are_no_reason_to_refuse():
    assert parse({**NEW, "statevar": "ExternalIPAddress"}) == Subscribe(CALLBACK, 1800)


@pytest.mark.parametrize(
    ("wanted", "granted"),
    [
        ("Second-1801", 1801),
        ("second-86400", 86400),
        ("Second-86401", 86400),
        ("Second-999999999999999999", 86400),
        ("Second-0", 1800),
        ("Second-infinite", 1800),
        ("infinite", 1800),
        ("Second--5", 1800),
        ("", 1800),
        ("Second-" + "9" * 5000, 1800),
    ],
)
def test_a_subscription_lives_from_half_an_hour_to_a_day(wanted, granted):
    assert parse({**NEW, "timeout": wanted}).timeout == granted
    assert parse({"sid": SID, "timeout": wanted}).timeout == granted


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("SUBSCRIBE", {**NEW, "sid": SID}, 400),
        ("SUBSCRIBE", {"nt": "upnp:event", "sid": SID}, 400),
        ("SUBSCRIBE", {"callback": NEW["callback"], "sid": SID}, 400),
        ("UNSUBSCRIBE", {"nt": "upnp:event", "sid": SID}, 400),
        ("UNSUBSCRIBE", {"callback": NEW["callback"], "sid": SID}, 400),
        ("SUBSCRIBE", {}, 412),
        ("SUBSCRIBE", {"nt": "upnp:event"}, 412),
        ("SUBSCRIBE", {"callback": NEW["callback"]}, 412),
        ("SUBSCRIBE", {**NEW, "nt": "upnp:propchange"}, 412),
        ("SUBSCRIBE", {**NEW, "callback": ""}, 412),
        ("UNSUBSCRIBE", {}, 412),
        ("UNSUBSCRIBE", NEW, 412),
    ],
)
def test_wrong_combinations_of_headers_have_their_status(method, headers, status):
    assert refused(headers, method=method) == status


@pytest.mark.parametrize(
    "url",
    [
        "http://192.168.1.51:49200/cb",
        "http://192.168.1.1:5000/ctl/IPConn",
        "http://192.168.1.500:80/",
        "http://192.168.1.050:80/",
        "http://desktop.lan:49200/cb",
        "http://localhost/",
        "http://192.168.1.50@192.168.1.51/",
        "http://192.168.1.51@192.168.1.50/",
        "http://192.168.1.50.evil.example/",
        "http://3232235826/",
        "http://[::ffff:192.168.1.50]/",
        "https://192.168.1.50:49200/cb",
        "ftp://192.168.1.50/",
        "//192.168.1.50/cb",
        "http://192.168.1.50:0/cb",
        "http://192.168.1.50:65536/cb",
        "http://192.168.1.50:-1/cb",
        "http://192.168.1.50:/cb",
        "http://192.168.1.50:٤٩/cb",
        "http://192.168.1.50:49200cb",
        "http://192.168.1.50:49200/a b",
        "http://192.168.1.50:49200/cb\r\nX-Injected: 1",
        "http://192.168.1.50:49200/cb\nX-Injected: 1",
        "http://192.168.1.50:49200/cb\r",
        "http://192.168.1.50:49200/\x00",
        "http://192.168.1.50:49200/caf\xe9",
        "http://192.168.1.50:49200/cb#fragment",
        "http://192.168.1.50:49200/" + "a" * PATH_LIMIT,
        "",
    ],
)
def test_events_go_nowhere_but_to_the_subscriber_itself(url):
    assert refused({**NEW, "callback": f"<{url}>"}) == 412


def test_events_never_come_to_our_own_server():
    ours = (REQUESTER, 5000)
    assert refused({**NEW, "callback": "<http://192.168.1.50:5000/evt/IPConn>"}, ours=ours) == 412
    assert callback_of("<http://192.168.1.50:5001/>", ours=ours).port == 5001


@pytest.mark.parametrize(
    ("header", "port", "path"),
    [
        ("<http://192.168.1.50/>", 80, "/"),
        ("<http://192.168.1.50>", 80, "/"),
        ("<HTTP://192.168.1.50:1>", 1, "/"),
        ("<http://192.168.1.50:65535/a/b?c=d&e=%20>", 65535, "/a/b?c=d&e=%20"),
        ("<http://192.168.1.50:80/" + "a" * (PATH_LIMIT - 1) + ">", 80, "/" + "a" * (PATH_LIMIT - 1)),
        ("<http://10.0.0.1:7/><http://192.168.1.50:8/x>", 8, "/x"),
        ("<http://[fe80::1]:7/> <http://192.168.1.50:8/x>, <http://192.168.1.50:9/y>", 8, "/x"),
        (" <http://192.168.1.50:8/x>", 8, "/x"),
    ],
)
def test_of_several_urls_the_first_that_leads_to_the_subscriber_is_taken(header, port, path):
    assert callback_of(header) == Callback(REQUESTER, port, path)


@pytest.mark.parametrize("url", ["http://[fe80::1:2]:49200/cb", "http://[FE80:0:0:0:0:0:1:2%25eth0]:49200/cb"])
def test_an_ipv6_subscriber_is_known_by_its_address_however_it_is_written(url):
    callback = callback_of(f"<{url}>", requester=LINK_LOCAL, ours=(ip_address("fe80::1"), 5000))
    assert callback == Callback(LINK_LOCAL, 49200, "/cb")
    assert b"\r\nHOST: [fe80::1:2]:49200\r\n" in notify_message(callback, "uuid:1", 0, b"")


def test_another_ipv6_address_is_refused():
    assert refused({**NEW, "callback": "<http://[fe80::1:3]:49200/cb>"}, requester=LINK_LOCAL) == 412
    assert refused({**NEW, "callback": "<http://[fe80::1::2]:49200/cb>"}, requester=LINK_LOCAL) == 412


def test_an_event_is_what_the_standard_shows():
    body = propertyset({"ConnectionStatus": "Connected", "PortMappingNumberOfEntries": 3, "FirewallEnabled": True})
    assert body == (
        b'<?xml version="1.0"?>\n<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0">'
        b"<e:property><ConnectionStatus>Connected</ConnectionStatus></e:property>"
        b"<e:property><PortMappingNumberOfEntries>3</PortMappingNumberOfEntries></e:property>"
        b"<e:property><FirewallEnabled>1</FirewallEnabled></e:property></e:propertyset>\n"
    )
    assert notify_message(CALLBACK, SID, 7, body) == (
        b"NOTIFY /cb HTTP/1.1\r\nHOST: 192.168.1.50:49200\r\n"
        b'CONTENT-TYPE: text/xml; charset="utf-8"\r\nCONTENT-LENGTH: %d\r\nCONNECTION: close\r\n'
        b"NT: upnp:event\r\nNTS: upnp:propchange\r\nSID: %s\r\nSEQ: 7\r\n\r\n%s" % (len(body), SID.encode(), body)
    )


def test_values_are_escaped_and_false_is_zero():
    body = propertyset({"DefaultConnectionService": "a<b>&c", "InboundPinholeAllowed": False})
    assert b"<DefaultConnectionService>a&lt;b&gt;&amp;c</DefaultConnectionService>" in body
    assert b"<InboundPinholeAllowed>0</InboundPinholeAllowed>" in body


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"HTTP/1.1 200 OK\r\n", 200), (b"HTTP/1.0 412 Precondition Failed\r\n", 412), (b"HTTP/1.1 200", 200)],
)
def test_the_first_line_tells_how_an_event_was_received(answer, status):
    assert status_of(answer) == status


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 20", b"HTTP/1.1 2000 OK", b"ICY 200 OK\r\n", b"\r\nHTTP/1.1 200 OK"]
)
def test_what_is_no_http_answer_is_refused(answer):
    with pytest.raises(MalformedRequest):
        status_of(answer)


def subscription(next_seq=0):
    return Subscription(SID, WAN_IP_CONNECTION, 2, CALLBACK, 9e9, next_seq)


def told(subscription, **current):
    """The sequence number and the variables of the next event, None when there is none."""
    message = subscription.next_event(current)
    if message is None:
        return None
    event = Event.parse(message)
    return event.seq, event.values


def test_the_first_event_tells_everything_and_the_next_ones_what_differs():
    one = subscription()
    assert not one.begun
    assert told(one, ConnectionStatus="Connected", PortMappingNumberOfEntries=0) == (
        0,
        {"ConnectionStatus": "Connected", "PortMappingNumberOfEntries": "0"},
    )
    assert one.begun
    one.delivered()
    assert told(one, ConnectionStatus="Connected", PortMappingNumberOfEntries=0) is None
    assert told(one, ConnectionStatus="Connected", PortMappingNumberOfEntries=1) == (
        1,
        {"PortMappingNumberOfEntries": "1"},
    )


def test_the_first_event_leaves_even_when_there_is_nothing_to_tell():
    one = subscription()
    assert told(one) == (0, {})
    one.delivered()
    assert told(one) is None


def test_a_lost_event_uses_up_its_number_and_the_next_one_carries_its_values():
    one = subscription()
    told(one, A=1, B=1)
    one.delivered()
    assert told(one, A=2, B=1) == (1, {"A": "2"})
    assert one.failed(None) is False
    assert told(one, A=2, B=2) == (2, {"A": "2", "B": "2"})


def test_a_value_that_went_back_after_a_lost_event_is_told():
    """The subscriber may have read the event and not answered."""
    one = subscription()
    told(one, A=1)
    one.delivered()
    told(one, A=2)
    one.failed(500)
    assert told(one, A=1) == (2, {"A": "1"})


def test_sequence_numbers_wrap_to_one():
    one = subscription(next_seq=0xFFFFFFFF)
    assert told(one, A=1) == (0xFFFFFFFF, {"A": "1"})
    one.delivered()
    assert told(one, A=2) == (1, {"A": "2"})


def test_only_failures_in_a_row_end_a_subscription():
    one = subscription()
    for number in range(1, FAILURES_LIMIT):
        told(one, A=number)
        assert one.failed(None) is False
    told(one, A=0)
    one.delivered()
    for number in range(1, FAILURES_LIMIT):
        told(one, A=number)
        assert one.failed(None) is False
    told(one, A=100)
    assert one.failed(None) is True


def test_a_subscriber_that_does_not_know_the_sid_ends_it_at_once():
    one = subscription()
    told(one, A=1)
    assert one.failed(412) is True
