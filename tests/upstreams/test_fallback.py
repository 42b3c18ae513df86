# SPDX-License-Identifier: Apache-2.0
"""The router alone and the real PCP upstream under one roof: what a server holds is given back, whatever is down."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from igdpcp.iwf.interfaces import Granted, Refused, Released, UpstreamEvent
from igdpcp.model import Activation, Endpoint, Mode
from igdpcp.pcp.discovery import Origin, Server
from igdpcp.pcp.message import ResultCode
from igdpcp.upstreams import debts
from igdpcp.upstreams.debts import DEBTS_MAX, Debts
from igdpcp.upstreams.fallback import FallbackUpstream
from igdpcp.upstreams.local import LocalUpstream
from tests.support.hall import FakeRouter
from tests.support.pcp_script import Sent, answer
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, NONCE, OWN, SERVER, Line, granted, request

SERVERS = Server("isp", (SERVER,), Origin.CONFIGURED)
CLIENT = Endpoint(IPv4Address("192.168.1.50"), 81)


class Roof:
    """A line with its fallback, the router's WAN address, and what the hall is told."""

    def __init__(self, line: Line, *, routed: bool, fall_back: bool) -> None:
        self.line = line
        self.router = FakeRouter()
        self.events: list[UpstreamEvent] = []
        self.local = LocalUpstream(self.router, self.events.append)
        self.fallback = FallbackUpstream(self.local, routed=routed, fall_back=fall_back, emit=self.events.append)
        self.fallback.attach(line.upstream)

    def of(self, kind: type) -> list[UpstreamEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    def wan(self, address: IPv4Address | None, *servers: Server) -> None:
        self.router.wan_address = address
        self.line.upstream.network_changed("wan0", address, servers)


@contextmanager
def roof(monkeypatch: pytest.MonkeyPatch, *, routed: bool = False, fall_back: bool = True) -> Iterator[Roof]:
    over: list[Roof] = []
    with Line(monkeypatch, emit=lambda event: over[0].fallback.receive(event)) as line:
        over.append(Roof(line, routed=routed, fall_back=fall_back))
        yield over[0]
        over[0].local.close()


@pytest.mark.parametrize("routed", [False, True], ids=["cascaded", "routed"])
def test_iwf_042_what_is_adopted_and_deleted_without_a_wan_is_given_back_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, routed: bool
) -> None:
    @virtual
    async def run() -> None:
        with roof(monkeypatch, routed=routed) as over:
            over.wan(None)  # nor has DHCP named a server yet
            internal = CLIENT if routed else request().internal
            grant = granted(SERVERS.mark, address=CLIENT.address if routed else OWN)
            over.fallback.map(request(internal=internal, grant=grant), urgent=False)
            over.fallback.map(request(internal=internal))  # the hall has only the router's own grant by now
            over.fallback.unmap("1")
            assert over.of(Released) == []
            over.wan(OWN, SERVERS)
            await asyncio.sleep(1)
            assert [(sent.lifetime, sent.nonce) for sent in over.line.carrier.maps] == [(0, NONCE)]
            assert over.of(Released) == [Released("1", 0)]

    run()


@virtual
async def test_iwf_141_what_the_router_granted_alone_is_deleted_without_a_packet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with roof(monkeypatch) as over:
        over.wan(OWN)
        over.fallback.map(request())
        over.fallback.unmap("1")
        over.wan(OWN, SERVERS)
        await asyncio.sleep(1)
        assert over.of(Released) == [Released("1", 0)]
        assert over.line.carrier.maps == []


@virtual
async def test_what_the_router_granted_alone_is_promoted_for_the_address_that_the_server_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with roof(monkeypatch) as over:
        over.wan(OWN)
        over.fallback.map(request())
        over.wan(OWN, SERVERS)
        await asyncio.sleep(ANSWERED)
        grants = [event.grant for event in over.of(Granted) if isinstance(event, Granted)]
        assert [(grant.upstream, grant.internal) for grant in grants] == [
            (Mode.LOCAL, OWN), ("pcp", OWN),
        ]  # fmt: skip


@virtual
async def test_iwf_005_policy_error_holds_at_a_default_router_that_refuses_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with roof(monkeypatch, fall_back=False) as over:
        loop = asyncio.get_running_loop()

        def refuse(sent: Sent) -> list[bytes]:
            return [answer(sent.octets, epoch=int(loop.time()), result=ResultCode.ADDRESS_MISMATCH, lifetime=1800)]

        over.line.carrier.script.scripted = refuse
        over.wan(OWN, Server(f"wan0/{SERVER}", (SERVER,), Origin.ROUTER))
        await asyncio.sleep(1)
        assert (over.fallback.state, over.fallback.may_fall_back) == (Activation.LOST, False)
        over.fallback.map(request())
        await asyncio.sleep(1)
        assert over.of(Granted) == []
        assert [event.id for event in over.of(Refused) if isinstance(event, Refused)] == ["1"]


def test_debts_beyond_the_ceiling_are_left_to_their_lifetime_and_counted() -> None:
    owing = Debts()
    for n in range(DEBTS_MAX + 2):
        owing.add(request(str(n)))
    assert (len(owing), owing.dropped) == (DEBTS_MAX, 2)
    assert [owed.id for owed in owing.take(lambda _: True)][:2] == ["2", "3"]


def test_what_becomes_due_once_more_is_the_last_of_the_debts() -> None:
    owing = Debts()
    for id in ("1", "2", "1"):
        owing.add(request(id))
    assert [owed.id for owed in owing.take(lambda _: True)] == ["2", "1"]


@virtual
async def test_a_debt_beyond_the_ceiling_is_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debts, "DEBTS_MAX", 2)
    with Line(monkeypatch) as line:
        for n in range(3):
            line.upstream.give_back(request(str(n), 8080 + n))
        assert line.of(Released) == [Released("0", ResultCode.NETWORK_FAILURE)]
