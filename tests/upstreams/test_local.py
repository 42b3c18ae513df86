# SPDX-License-Identifier: Apache-2.0
"""The router alone: what it grants is for the WAN address that it has, and for as long as it has it."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from igdpcp.iwf.interfaces import Granted, UpstreamEvent
from igdpcp.upstreams.local import LocalUpstream
from tests.support.hall import WAN, FakeRouter
from tests.support.virtual_time import START, virtual
from tests.upstreams.line import request

OTHER = IPv4Address("100.64.99.1")


@virtual
async def test_only_another_wan_address_begins_anew_and_is_granted_for() -> None:
    router, events = FakeRouter(), list[UpstreamEvent]()
    local = LocalUpstream(router, events.append)
    local.network_changed()
    local.map(request())
    await asyncio.sleep(10)
    local.network_changed()
    assert ([_granted_for(event) for event in events], local.up_since) == ([WAN], START)
    for address in (None, OTHER):
        router.wan_address = address
        local.network_changed()
    assert ([_granted_for(event) for event in events], local.up_since) == ([WAN, OTHER], START + 10)
    local.close()


@virtual
async def test_without_an_address_there_is_no_session() -> None:
    router = FakeRouter()
    local = LocalUpstream(router, lambda event: None)
    local.network_changed()
    router.wan_address = None
    local.network_changed()
    assert local.up_since is None


def _granted_for(event: UpstreamEvent) -> IPv4Address:
    assert isinstance(event, Granted)
    return event.grant.external.address
