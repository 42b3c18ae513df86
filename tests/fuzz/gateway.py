# SPDX-License-Identifier: Apache-2.0
"""The gateway that is fuzzed, from the HTTP server to the whole hall; and a neighbour who must notice nothing."""

from __future__ import annotations

import asyncio
import io
import itertools
import logging
import random
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from igdpcp import log
from igdpcp.daemon.connection_service import ConnectionService
from igdpcp.daemon.event_publisher import EventPublisher
from igdpcp.daemon.firewall_service import FirewallService
from igdpcp.daemon.http_server import HttpServer, Peer
from igdpcp.daemon.igd_handler import IgdHandler
from igdpcp.daemon.link_service import LinkService
from igdpcp.errors import MalformedRequest
from igdpcp.model import IPAddress, MappingState, UpstreamRequest
from igdpcp.pcp.message import ResultCode
from igdpcp.upnp.http import HttpRequest, HttpResponse
from tests.fuzz.doorway import HTTP_PORT, Doorway
from tests.fuzz.grammar import (
    GATEWAY,
    NEIGHBOURS_PINHOLE,
    NEIGHBOURS_PORT,
    NEIGHBOURS_SID,
    REFUSED_PORT,
    SEED,
    SILENT_PORT,
    message,
)
from tests.fuzz.judge import Answer, answers_in, fields_of
from tests.support.events import Event
from tests.support.hall import A6, B6, IDENTITY, A, B, Hall

MAPPINGS_PER_HOST = 6
MAPPINGS = 24
PINHOLES_PER_HOST = 3
SUBSCRIPTIONS_PER_HOST = 3
SUBSCRIPTIONS = 12
RECEIVE_SIZE = 65536
PIECE_SIZE, MOST_PIECES = 61, 50
MANY_LINES = 1_000_000
ALIVE = message("GET", "/rootDesc.xml", {"Connection": "close"})
NEIGHBOURS_EVENTS = message(
    "SUBSCRIBE", "/evt/IPConn", {"CALLBACK": f"<http://{B}:80/>", "NT": "upnp:event", "TIMEOUT": "Second-86400"}
)
OUTCOMES = (200, 200, 500, OSError, 200, TimeoutError, 412, MalformedRequest)


class Gateway:
    """Made by ``open_gateway``."""

    def __init__(self, directory: Path, log_text: io.StringIO) -> None:
        self.hall = Hall(
            directory, max_mappings=MAPPINGS, max_mappings_per_host=MAPPINGS_PER_HOST,
            max_pinholes_per_host=PINHOLES_PER_HOST,
        )  # fmt: skip
        self.hall.carrier.answer = self._grant
        self.hall.pinhole_table._last = NEIGHBOURS_PINHOLE - 1
        self.publisher = EventPublisher(
            read=self.hall.variables.evented, http_port=HTTP_PORT, max_subscriptions=SUBSCRIPTIONS,
            max_subscriptions_per_host=SUBSCRIPTIONS_PER_HOST, rng=random.Random(SEED), deliver=self._deliver,
        )  # fmt: skip
        self.igd_handler = IgdHandler(
            identity=IDENTITY, igd_version="auto", variables=self.hall.variables,
            services=(
                ConnectionService(self.hall.interworking, self.hall.names),
                LinkService(self.hall.variables),
                FirewallService(self.hall.pinholes),
            ),
            subscriptions=self.publisher.handle,
        )  # fmt: skip
        self.server = HttpServer(
            self._handle, lambda address, device: self.hall.router.on_lan(address), IDENTITY.server
        )
        self.doorway = Doorway(GATEWAY)
        self._log_text = log_text
        self._requests: defaultdict[IPAddress, list[str]] = defaultdict(list)  # their methods
        self._outcomes = itertools.cycle(OUTCOMES)

    async def start(self) -> None:
        """Open the door; the neighbour comes first."""
        await self.server.start([(self.doorway, "br-lan")])
        assert (await self.hall.add(NEIGHBOURS_PORT, B, LeaseDuration=0)).code == 0
        pinhole = await self.hall.firewall(
            "AddPinhole", B6, RemoteHost="", RemotePort=0, InternalClient=B6, InternalPort=8000, Protocol=17,
            LeaseTime=86400,
        )  # fmt: skip
        assert pinhole["UniqueID"] == str(NEIGHBOURS_PINHOLE)
        (subscribed,) = await self.say(NEIGHBOURS_EVENTS, B)
        assert subscribed.fields["sid"] == NEIGHBOURS_SID
        [self._mapping], [self._rule] = self.hall.table, self.hall.ruleset.rules.values()
        [self._pinhole], [self._pinhole_rule] = self.hall.pinhole_table, self.hall.ruleset.pinhole_rules.values()

    async def stop(self) -> None:
        """End everything but the loop."""
        await self.server.close()
        await self.publisher.close()
        self.hall.kill()

    # -- what hosts do -------------------------------------------------------------------------------------------

    async def say(self, data: bytes, host: str = A, *, cuts: Sequence[int] = (), end: bool = False) -> list[Answer]:
        """Send these bytes on a connection, cut at these places, and judge what comes until the gateway closes it.

        ``end``: close our side behind them. A host has one such connection at a time.
        """
        self._requests.pop(ip_address(host), None)
        edges = [0, *sorted(cut for cut in set(cuts) if 0 < cut < len(data)), len(data)]
        with self.doorway.dial(host) as connection:
            await self._send(connection, [data[start:stop] for start, stop in itertools.pairwise(edges)], end)
            received = await self._receive(connection)
        self.publisher.poke()
        return answers_in(received, self._requests.pop(ip_address(host), []))

    async def hear_out(self, data: bytes) -> list[Answer]:
        """Take these bytes whole from one host, and in pieces from another, which then ends its side; judge it all."""
        answers = await self.say(data, A)
        pieces = range(0, len(data), max(PIECE_SIZE, len(data) // MOST_PIECES))
        await self.say(data, A6, cuts=pieces, end=True)
        await self.judge()
        return answers

    async def _send(self, connection: socket.socket, pieces: Sequence[bytes], end: bool) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            for piece in pieces:
                await loop.sock_sendall(connection, piece)
                for _ in range(3 if len(pieces) > 1 else 0):  # turns in which the server accepts and reads it
                    await asyncio.sleep(0)
            if end:
                connection.shutdown(socket.SHUT_WR)

    async def _receive(self, connection: socket.socket) -> bytes:
        received = bytearray()
        with suppress(ConnectionError):
            while piece := await asyncio.get_running_loop().sock_recv(connection, RECEIVE_SIZE):
                received += piece
        return bytes(received)

    # -- what must hold ------------------------------------------------------------------------------------------

    async def judge(self) -> None:
        """AssertionError when anybody but the requesters themselves has got or lost something, or a part has failed."""
        assert self.server.counters.failures == 0, self._log_text.getvalue()
        assert asyncio.get_running_loop().troubles == []
        self.judge_log()
        self._judge_openings()
        self._judge_ceilings()
        (answer,) = await self.say(ALIVE)
        assert answer.status == 200

    def judge_log(self) -> list[dict[str, str]]:
        """The fields of the lines since the last time."""
        lines = self._log_text.getvalue().split("\n")[:-1]
        self._log_text.seek(0)
        self._log_text.truncate()
        return [fields_of(line) for line in lines]

    def _judge_openings(self) -> None:
        hall = self.hall
        mine = hall.table.get(self._mapping.id)
        assert mine is not None
        assert (mine.request, mine.state) == (self._mapping.request, MappingState.ACTIVE)
        rule = hall.ruleset.rules[self._mapping.id]
        assert replace(rule, ends=self._rule.ends) == self._rule
        assert hall.pinhole_table.get(NEIGHBOURS_PINHOLE) == self._pinhole
        assert hall.ruleset.pinhole_rules[self._pinhole.name] == self._pinhole_rule
        for mapping in hall.table:
            assert mapping.request.client.address == mapping.request.requester.address
            assert (mapping.request.requester.address == ip_address(B)) == (mapping.id == mine.id)
        for id, opening in hall.ruleset.rules.items():
            held = hall.table.get(id)
            assert held is None or held.request.client == opening.client
            assert (opening.client.address == ip_address(B)) == (id == mine.id)
        for pinhole in hall.pinhole_table:
            assert pinhole.request.client == pinhole.request.requester.address
            assert (pinhole.request.client == ip_address(B6)) == (pinhole.id == NEIGHBOURS_PINHOLE)

    def _judge_ceilings(self) -> None:
        hall = self.hall
        hosts = [mapping.request.client.address for mapping in hall.table]
        assert len(hosts) <= MAPPINGS
        assert all(hosts.count(host) <= MAPPINGS_PER_HOST for host in set(hosts))
        clients = [pinhole.request.client for pinhole in hall.pinhole_table]
        assert all(clients.count(client) <= PINHOLES_PER_HOST for client in set(clients))
        subscribers = [each.peer.address for each in self.publisher._subscribers.values()]
        assert len(subscribers) <= SUBSCRIPTIONS
        assert all(subscribers.count(host) <= SUBSCRIPTIONS_PER_HOST for host in set(subscribers))
        assert self.server.unsent == 0

    async def neighbour_still_hears(self) -> bool:
        """Whether the neighbour's subscription is there; it is renewed."""
        renewal = {"SID": NEIGHBOURS_SID, "TIMEOUT": "Second-86400", "Connection": "close"}
        (answer,) = await self.say(message("SUBSCRIBE", "/evt/IPConn", renewal), B)
        return answer.status == 200

    def forget_what_it_did(self) -> None:
        """Empty what the stand-ins for carrier and kernel remember, which is nothing of the gateway."""
        carrier = self.hall.carrier
        for remembered in (carrier.asked, carrier.returned, carrier.urgently_returned, carrier.given_back):
            remembered.clear()
        self.hall.ruleset.puts.clear()

    # -- the gateway's surroundings ------------------------------------------------------------------------------

    def _handle(self, request: HttpRequest, peer: Peer) -> Awaitable[HttpResponse]:
        self._requests[peer.address].append(request.method)
        return self.igd_handler.handle(request, peer)

    def _grant(self, request: UpstreamRequest) -> None:
        if request.external_port == REFUSED_PORT:
            self.hall.carrier.refuse(request.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
        elif request.external_port != SILENT_PORT:
            self.hall.carrier.grant(request.id)

    async def _deliver(self, peer: Peer, port: int, event: bytes) -> int:
        told = Event.parse(event)
        literal = f"[{peer.address}]" if peer.address.version == 6 else f"{peer.address}"
        assert told.host == f"{literal}:{port}"
        assert (told.sid == NEIGHBOURS_SID) == (peer.address == ip_address(B))
        await asyncio.sleep(0)
        outcome = 200 if peer.address == ip_address(B) else next(self._outcomes)
        if not isinstance(outcome, int):
            raise outcome("no answer")
        return outcome


def other_tasks() -> set[asyncio.Task[Any]]:
    """Everything that runs beside the caller."""
    return asyncio.all_tasks() - {asyncio.current_task()}


@contextmanager
def daemons_log(*, every_line: bool) -> Iterator[io.StringIO]:
    """What the daemon logs at any level, as it would stand on its stderr.

    ``every_line``: parts that are made meanwhile write also those that are one too many of a host.
    """
    logger = logging.getLogger("igdpcp")
    before = logger.handlers[:], logger.level, logger.propagate, log.LINES_BURST
    log.setup("debug")
    text = io.StringIO()
    handler = logger.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(text)
    if every_line:
        log.LINES_BURST = MANY_LINES
    try:
        yield text
    finally:
        logger.handlers[:], level, logger.propagate, log.LINES_BURST = before
        logger.setLevel(level)


@asynccontextmanager
async def open_gateway(directory: Path, *, every_line: bool = True) -> AsyncIterator[Gateway]:
    """A gateway that serves; in the end nothing of it may be left."""
    tasks = other_tasks()
    with daemons_log(every_line=every_line) as text:
        gateway = Gateway(directory, text)
        await gateway.start()
        try:
            yield gateway
        finally:
            await gateway.stop()
        await asyncio.sleep(0)
        gateway.judge_log()
    assert gateway.server.open_connections == 0
    assert other_tasks() <= tasks
