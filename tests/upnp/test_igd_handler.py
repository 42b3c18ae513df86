# SPDX-License-Identifier: Apache-2.0
"""Who is refused before the interworking function is asked, and what of it reaches the log."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.daemon.http_server import Peer
from igdpcp.log import LINES_BURST
from igdpcp.upnp.http import HttpRequest, HttpResponse
from tests.support.hall import URN, A, B, Hall
from tests.support.soap_client import envelope
from tests.support.virtual_time import virtual

ADD = envelope(
    URN.format(1),
    "AddPortMapping",
    {"NewExternalPort": 8080, "NewProtocol": "TCP", "NewInternalPort": 8000, "NewInternalClient": ""},
)
XML = {"content-type": "text/xml"}
ACTION = {"soapaction": f'"{URN.format(1)}#AddPortMapping"'}


async def ask(hall: Hall, method: str, headers: dict[str, str], body: bytes = ADD, host: str = A) -> HttpResponse:
    request = HttpRequest(method, "/ctl/IPConn", {"host": "192.168.1.1:5000", **headers}, body, "1.1")
    return await hall.igd_handler.handle(request, Peer(IPv4Address(host), IPv4Address("192.168.1.1"), "br-lan"))


@pytest.mark.parametrize("method", ["POST", "M-POST"])
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain;charset=UTF-8", "origin": "https://evil.example"},
        {"content-type": "text/plain"},
        {},
        {**XML, **ACTION, "origin": "null"},
    ],
)
def test_a_web_page_cannot_open_a_port_of_its_visitor(
    tmp_path: Path, method: str, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="igdpcp.upnp")

    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert (await ask(hall, method, headers)).status == 403
        assert (hall.carrier.asked, len(hall.table)) == ([], 0)
        assert hall.igd_handler.outcomes == {"forbidden": 1}

    run()
    assert f"event=refused client={A}" in caplog.text


@pytest.mark.parametrize("headers", [XML, ACTION, {"01-soapaction": ACTION["soapaction"]}])
def test_what_no_page_can_send_unasked_is_served(tmp_path: Path, headers: dict[str, str]) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert (await ask(hall, "POST", headers)).status == 200
        assert len(hall.table) == 1

    run()


@virtual
async def test_a_browser_that_asks_for_permission_gets_none(tmp_path: Path) -> None:
    asking = {"origin": "https://evil.example", "access-control-request-headers": "soapaction"}
    response = await ask(Hall(tmp_path), "OPTIONS", asking, b"")
    assert (response.status, response.headers) == (501, ())


@virtual
async def test_of_a_user_agent_only_what_is_printable_is_kept(tmp_path: Path) -> None:
    hall = Hall(tmp_path, agent="one\x85\x1b\xadtwo")
    await hall.add(8080)
    assert hall.only.request.requester.agent == "onetwo"


def test_a_flood_of_refusals_writes_few_lines_and_is_counted_exactly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="igdpcp.upnp")

    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for _ in range(500):
            assert (await hall.delete(8080)).code == 714
        assert (await hall.delete(8080, B)).code == 714
        await asyncio.sleep(0)
        assert hall.igd_handler.outcomes == {"714": 501}

    run()
    lines = [record.message for record in caplog.records if "event=refused" in record.message]
    assert LINES_BURST <= sum(f"client={A} " in text for text in lines) <= LINES_BURST + 5
    assert sum(f"client={B} " in text for text in lines) == 1
