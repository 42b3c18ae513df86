# SPDX-License-Identifier: Apache-2.0
"""The dialogues in tests/transcripts, held again with SSDP, HTTP and the whole hall: no answer may change unnoticed."""

from __future__ import annotations

import random
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.daemon.connection_service import ConnectionService
from igdpcp.daemon.event_publisher import EventPublisher
from igdpcp.daemon.firewall_service import FirewallService
from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.igd_handler import IgdHandler
from igdpcp.daemon.link_service import LinkService
from igdpcp.errors import MalformedRequest
from igdpcp.upnp.http import HttpConnection
from igdpcp.upnp.ssdp import Presence, answers, parse_search
from tests.support.hall import IDENTITY, A, Hall, settle
from tests.support.transcripts import (
    DIRECTORY,
    SSDP,
    Exchange,
    Transcript,
    Uuids,
    decisive_event,
    decisive_found,
    decisive_reply,
)
from tests.support.virtual_time import virtual

GATEWAY = IPv4Address("192.168.1.1")
HTTP_PORT = 5000
PEER = Peer(IPv4Address(A), GATEWAY, "br-lan")
CONTINUE = b"HTTP/1.1 100 "
TRANSCRIPTS = sorted(DIRECTORY.glob("*.json"))


class Gateway:
    """The gateway's side of a dialogue, from the bytes of a request to those of its answer."""

    def __init__(self, directory: Path, igd_version: str) -> None:
        self.hall = Hall(directory, igd_version=igd_version)
        self.uuids = Uuids()
        self._presence = Presence(IDENTITY, f"http://{GATEWAY}:{HTTP_PORT}", igd_version)
        self._events: list[bytes] = []
        publisher = EventPublisher(
            read=self.hall.variables.evented,
            http_port=HTTP_PORT,
            max_subscriptions=self.hall.main.max_subscriptions,
            max_subscriptions_per_host=self.hall.main.max_subscriptions_per_host,
            rng=random.Random(1),
            deliver=self._deliver,
        )
        self._handler = IgdHandler(
            identity=IDENTITY,
            igd_version=igd_version,
            variables=self.hall.variables,
            services=(
                ConnectionService(self.hall.interworking, self.hall.names),
                LinkService(self.hall.variables),
                FirewallService(self.hall.pinholes),
            ),
            subscriptions=publisher.handle,
        )

    async def answer(self, exchange: Exchange, recorded_uuids: list[str]) -> tuple[str, ...]:
        """What is decisive in the answer to a request of the transcript."""
        request = self.uuids.translated(exchange.request, recorded_uuids)
        if exchange.transport == SSDP:
            search = parse_search(request)
            return decisive_found(answers(search, self._presence) if search else (), self.uuids)
        reply = decisive_reply(await self._respond(request), self.uuids, request)
        await settle()
        events, self._events = self._events, []
        return reply + tuple(line for event in events for line in decisive_event(event, self.uuids))

    async def _respond(self, data: bytes) -> bytes:
        """The response to a request that comes on a connection of its own."""
        connection = HttpConnection()
        head, separator, body = data.partition(b"\r\n\r\n")
        try:
            request = connection.receive_data(head + separator)
            if b"\r\nexpect: 100-continue" in head.lower():
                assert connection.bytes_to_send().startswith(CONTINUE)
            request = request or connection.receive_data(body)
            assert request is not None
            return connection.send(await self._handler.handle(request, PEER))
        except MalformedRequest as error:
            return connection.refuse(error.status)

    async def _deliver(self, peer: Peer, port: int, message: bytes) -> int:
        self._events.append(message)
        return 200


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_gateway_still_answers_as_in_the_transcript(path: Path, tmp_path: Path) -> None:
    transcript = Transcript.load(path)

    @virtual
    async def replay() -> None:
        gateway = Gateway(tmp_path, transcript.igd_version)
        for number, exchange in enumerate(transcript.exchanges):
            answer = await gateway.answer(exchange, transcript.uuids)
            assert answer == exchange.answer, f"exchange {number}: {exchange.request.decode('latin-1')}"
        await gateway.hall.stop()

    replay()
