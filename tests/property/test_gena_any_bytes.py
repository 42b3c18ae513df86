# SPDX-License-Identifier: Apache-2.0
"""Whatever a subscriber puts into its headers is a subscription or a status, and whatever it answers is a status."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from igdpcp.daemon.event_publisher import EventPublisher
from igdpcp.daemon.http_server import Peer
from igdpcp.errors import MalformedRequest
from igdpcp.upnp.gena import PATH_LIMIT, TIMEOUT_MAX, TIMEOUT_MIN, Renew, Subscribe, parse_request, status_of
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.services import WAN_IP_CONNECTION

HOSTS = [ip_address("192.168.1.50"), ip_address("fe80::50"), ip_address("2001:db8::50")]
OURS = ip_address("192.168.1.1")
ANYTHING = st.text(st.characters(max_codepoint=255), max_size=80)
URLS = st.lists(
    st.sampled_from(["http://", "https://", "192.168.1.50", "[fe80::50]", "[fe80::50%25eth0]", "192.168.1.1", "a.b"])
    | st.sampled_from([":0", ":80", ":65535", ":99999", "/", "/cb", "/" * PATH_LIMIT])
    | st.sampled_from(list("?#@% <>[]\r\n")),
    max_size=6,
).map("".join)
GOOD_URLS = st.sampled_from(
    ["http://192.168.1.50/", "http://[fe80::50]:7/", "http://[2001:db8::50%25eth0]:65535/cb?a=b"]
)
CALLBACKS = st.lists((GOOD_URLS | URLS).map("<{}>".format) | URLS | ANYTHING, max_size=6).map("".join)
TIMEOUTS = st.integers().map("Second-{}".format) | st.just("Second-infinite") | ANYTHING
NEW_SUBSCRIPTIONS = st.fixed_dictionaries(
    {"callback": CALLBACKS, "nt": st.just("upnp:event")}, optional={"timeout": TIMEOUTS, "statevar": ANYTHING}
)
HEADERS = NEW_SUBSCRIPTIONS | st.fixed_dictionaries(
    {}, optional={"callback": CALLBACKS, "nt": ANYTHING, "sid": ANYTHING, "timeout": TIMEOUTS}
)
METHODS = st.sampled_from(["SUBSCRIBE", "UNSUBSCRIBE"])


def request(method, headers):
    return HttpRequest(method, "/evt/IPConn", headers, b"", "1.1")


@given(METHODS, HEADERS, st.sampled_from(HOSTS))
def test_any_headers_are_a_request_to_the_requesters_own_door_or_a_status(method, headers, host):
    try:
        wish = parse_request(request(method, headers), host, (OURS, 5000))
    except MalformedRequest as error:
        wish = error
    if isinstance(wish, MalformedRequest):
        assert wish.status in (400, 412)
    if isinstance(wish, Subscribe | Renew):
        assert TIMEOUT_MIN <= wish.timeout <= TIMEOUT_MAX
    if isinstance(wish, Subscribe):
        assert wish.callback.address == host
        assert 0 < wish.callback.port < 65536
        assert wish.callback.path.startswith("/")
        assert len(wish.callback.path) <= PATH_LIMIT
        assert all("!" <= character <= "~" for character in wish.callback.path)


@given(st.lists(st.tuples(METHODS, HEADERS, st.sampled_from(HOSTS)), max_size=8))
def test_any_requests_are_answered_and_events_go_to_who_asked(requests):
    sent = []

    async def take(peer, port, event):
        sent.append((peer.address, event))
        return 200

    async def scenario():
        publisher = EventPublisher(
            read=lambda service, tree, asker: {"ExternalIPAddress": str(asker)},
            http_port=5000,
            max_subscriptions=4,
            max_subscriptions_per_host=2,
            rng=random.Random(1),
            deliver=take,
        )
        for method, headers, host in requests:
            response = publisher.handle(request(method, headers), Peer(host, OURS, "br-lan"), WAN_IP_CONNECTION, 1)
            assert response.status in (200, 400, 412, 503)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert publisher.subscriptions <= 4
        await publisher.close()

    asyncio.run(scenario())
    for host, event in sent:
        assert b"<ExternalIPAddress>%s</ExternalIPAddress>" % str(host).encode() in event
        assert event.count(b"\r\n\r\n") == 1


@given(st.binary(max_size=60) | st.tuples(st.just(b"HTTP/1.1 "), st.binary(max_size=8)).map(b"".join))
def test_any_answer_of_a_subscriber_is_a_status_or_the_peers_error(answer):
    with suppress(MalformedRequest):
        assert 100 <= status_of(answer) <= 599
