# SPDX-License-Identifier: Apache-2.0
"""What becomes of a request before any service is asked: paths, methods, hosts, agents; what of it reaches the log."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import pytest

from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.igd_handler import IgdHandler
from igdpcp.log import LINES_BURST
from igdpcp.upnp.description import documents
from igdpcp.upnp.http import HttpRequest, HttpResponse
from tests.support.hall import IDENTITY, URN, A, B, Hall
from tests.support.soap_client import envelope
from tests.support.virtual_time import virtual

ADD = envelope(
    URN.format(1),
    "AddPortMapping",
    {"NewExternalPort": 8080, "NewProtocol": "TCP", "NewInternalPort": 8000, "NewInternalClient": ""},
)
XML = {"content-type": "text/xml"}
ACTION = {"soapaction": f'"{URN.format(1)}#AddPortMapping"'}
WINDOWS = {"user-agent": "Microsoft-Windows/10.0 UPnP/1.0"}


async def ask(
    hall: Hall, method: str, headers: dict[str, str], body: bytes = ADD, host: str = A, path: str = "/ctl/IPConn"
) -> HttpResponse:
    request = HttpRequest(method, path, {"host": "192.168.1.1:5000", **headers}, body, "1.1")
    return await hall.igd_handler.handle(request, Peer(IPv4Address(host), IPv4Address("192.168.1.1"), "br-lan"))


async def get(hall: Hall, path: str, headers: dict[str, str] | None = None) -> HttpResponse:
    return await ask(hall, "GET", headers or {}, b"", path=path)


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


@pytest.mark.parametrize("path", ["/ctl/IPConn", "/evt/IPConn", "/v2/ctl/IPConn", "/rootDesc.xml", "/upnp/control"])
@virtual
async def test_soapaction_is_served_whatever_the_path(tmp_path: Path, path: str) -> None:
    hall = Hall(tmp_path)
    assert (await ask(hall, "POST", XML | ACTION, path=path)).status == 200
    assert len(hall.table) == 1


@pytest.mark.parametrize("path", ["/ctl/IPConn", "/evt/L3F", "/WANIPCn.xml"])
@virtual
async def test_without_soapaction_the_body_decides_on_every_path_of_ours(tmp_path: Path, path: str) -> None:
    hall = Hall(tmp_path)
    assert (await ask(hall, "POST", XML, path=path)).status == 200
    assert len(hall.table) == 1


@pytest.mark.parametrize("soapaction", [None, "", '"urn:schemas-upnp-org:service:ContentDirectory:1#Browse"'])
@virtual
async def test_what_is_posted_elsewhere_and_not_meant_for_a_gateway_is_404(
    tmp_path: Path, soapaction: str | None
) -> None:
    hall = Hall(tmp_path)
    headers = XML if soapaction is None else XML | {"soapaction": soapaction}
    assert (await ask(hall, "POST", headers, path="/upnp/control")).status == 404
    assert len(hall.table) == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "headers"),
    [
        ("GET", "/nothing", 404, ()),
        ("GET", "/ctl/IPConn", 405, (("Allow", "POST"),)),
        ("GET", "/v2/ctl/IP6FCtl", 405, (("Allow", "POST"),)),
        ("HEAD", "/ctl/L3F", 405, (("Allow", "POST"),)),
        ("GET", "/evt/CmnIfCfg", 405, (("Allow", "SUBSCRIBE, UNSUBSCRIBE"),)),
        ("GET", "/ctl/IP6FCtl", 404, ()),
        ("SUBSCRIBE", "/ctl/IPConn", 404, ()),
        ("UNSUBSCRIBE", "/rootDesc.xml", 404, ()),
        ("PUT", "/ctl/IPConn", 501, ()),
        ("NOTIFY", "/evt/IPConn", 501, ()),
        ("OPTIONS", "/ctl/IPConn", 501, ()),
    ],
)
@virtual
async def test_every_path_tells_what_it_is_for(
    tmp_path: Path, method: str, path: str, status: int, headers: tuple[tuple[str, str], ...]
) -> None:
    response = await ask(Hall(tmp_path), method, {}, b"", path=path)
    assert (response.status, response.headers) == (status, headers)


@pytest.mark.parametrize("method", ["SUBSCRIBE", "UNSUBSCRIBE"])
@pytest.mark.parametrize(
    ("path", "igd_version", "place"),
    [
        ("/evt/IPConn", "auto", ("WANIPConnection", 1)),
        ("/v2/evt/IPConn", "auto", ("WANIPConnection", 2)),
        ("/v2/evt/IP6FCtl", "auto", ("WANIPv6FirewallControl", 2)),
        ("/evt/L3F", "2", ("Layer3Forwarding", 2)),
    ],
)
@virtual
async def test_a_subscription_is_handed_on_with_the_service_and_tree_of_its_path(
    tmp_path: Path, method: str, path: str, igd_version: str, place: tuple[str, int]
) -> None:
    handed: list[tuple[Any, ...]] = []

    def subscriptions(request: HttpRequest, peer: Peer, service: Any, tree: int) -> HttpResponse:
        handed.append((request.method, service.type, tree))
        return HttpResponse(299)

    hall = Hall(tmp_path)
    hall.igd_handler = IgdHandler(
        identity=IDENTITY,
        igd_version=igd_version,
        services=(),
        variables=hall.variables,
        subscriptions=subscriptions,
    )
    assert (await ask(hall, method, {}, b"", path=path)).status == 299
    assert handed == [(method, *place)]


@pytest.mark.parametrize(
    ("local", "host", "status"),
    [
        ("192.168.1.1", "192.168.1.1:5000", 200),
        ("192.168.1.1", " 192.168.1.1 ", 200),
        ("192.168.1.1", None, 200),
        ("192.168.1.1", "evil.example:5000", 404),
        ("192.168.1.1", "192.168.1.2:5000", 404),
        ("192.168.1.1", "", 404),
        ("192.168.1.1", "[::ffff:192.168.1.1]", 404),
        ("fd00::1", "[fd00::1]:5000", 200),
        ("fd00::1", "[FD00:0::1]", 200),
        ("fe80::1", "[fe80::1%25br-lan]:5000", 200),
        ("fd00::1", "[fd00::2]:5000", 404),
        ("fd00::1", "fd00::1", 404),
        ("fd00::1", "[", 404),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/rootDesc.xml"), ("POST", "/ctl/IPConn")])
@virtual
async def test_a_host_header_has_to_name_the_address_that_was_reached(
    tmp_path: Path, method: str, path: str, local: str, host: str | None, status: int
) -> None:
    hall = Hall(tmp_path)
    body = envelope(URN.format(1), "GetStatusInfo", {})
    request = HttpRequest(method, path, XML if host is None else XML | {"host": host}, body, "1.1")
    peer = Peer(ip_address(A if "." in local else "fd00::50"), ip_address(local), "br-lan")
    assert (await hall.igd_handler.handle(request, peer)).status == status


@virtual
async def test_content_language_comes_to_those_who_name_theirs(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    wish = {"accept-language": "de-DE"}
    for response in (
        await get(hall, "/rootDesc.xml", wish),
        await ask(hall, "POST", XML | wish),
        await ask(hall, "POST", XML | wish, host=B),
    ):
        assert ("Content-Language", "en") in response.headers
    assert "Content-Language" not in dict((await get(hall, "/rootDesc.xml")).headers)


@pytest.mark.parametrize("igd_version", ["auto", "1", "2"])
@virtual
async def test_documents_follow_the_option_and_the_agent(tmp_path: Path, igd_version: str) -> None:
    hall = Hall(tmp_path, igd_version=igd_version)
    shown = documents(IDENTITY, igd_version)
    downgraded = documents(IDENTITY, igd_version, shown=1)
    for path in documents(IDENTITY, "2"):
        plain, windows = await get(hall, path), await get(hall, path, WINDOWS)
        assert (plain.status, plain.body) == ((200, shown[path]) if path in shown else (404, b""))
        assert (windows.status, windows.body) == ((200, downgraded[path]) if path in downgraded else (404, b""))
    assert set(downgraded) == {path for path in shown if "IP6FC" not in path}


@pytest.mark.parametrize(("igd_version", "status"), [("auto", 200), ("1", 500), ("2", 200)])
@virtual
async def test_what_the_option_does_not_show_is_no_action_here(tmp_path: Path, igd_version: str, status: int) -> None:
    hall = Hall(tmp_path, igd_version=igd_version)
    for service, action in (("WANIPConnection:2", "GetStatusInfo"), ("WANIPv6FirewallControl:1", "GetFirewallStatus")):
        body = envelope(f"urn:schemas-upnp-org:service:{service}", action, {})
        response = await ask(hall, "POST", XML, body)
        assert response.status == status
        assert (b"<errorCode>401</errorCode>" in response.body) is (status == 500)
    assert (await ask(hall, "POST", XML, envelope(URN.format(1), "GetStatusInfo", {}))).status == 200
