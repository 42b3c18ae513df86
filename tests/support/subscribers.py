# SPDX-License-Identifier: Apache-2.0
"""The event publisher with subscribers that answer, lag and die as a test likes, for virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from ipaddress import ip_address

from igdpcp.daemon.event_publisher import MODERATION, EventPublisher
from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.lan_hosts import by_address
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.services import WAN_COMMON_INTERFACE_CONFIG, WAN_IP_CONNECTION
from tests.support.events import Event

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
