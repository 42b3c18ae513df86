# SPDX-License-Identifier: Apache-2.0
"""What the services add to the interworking function's word: listings, pinholes, and what certain agents are shown."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path
from xml.etree import ElementTree

import pytest

from igdpcp.daemon.http_server import Peer
from igdpcp.upnp.actions import UI4_MAX
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.port_listing import ENTRIES_PER_ANSWER
from tests.support.hall import A6, B6, URN, A, B, Hall
from tests.support.soap_client import envelope
from tests.support.virtual_time import virtual

ENTRY = "{urn:schemas-upnp-org:gw:WANIPConnection}"
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
WINDOWS = "Microsoft-Windows/10.0 UPnP/1.0"
PINHOLE = {
    "RemoteHost": "", "RemotePort": 0, "InternalClient": A6, "InternalPort": 5000, "Protocol": 17, "LeaseTime": 60,
}  # fmt: skip


async def firewall(hall: Hall, action: str, host: str = A6, **arguments: object) -> dict[str, str]:
    """The answer's leaf elements by name."""
    peer = Peer(ip_address(host), ip_address("2600:1::1"), "br-lan")
    body = envelope(FIREWALL, action, arguments)
    request = HttpRequest("POST", "/v2/ctl/IP6FCtl", {"content-type": "text/xml"}, body, "1.1")
    response = await hall.igd_handler.handle(request, peer)
    return {e.tag.rpartition("}")[2]: e.text or "" for e in ElementTree.fromstring(response.body).iter() if not len(e)}


async def listed(hall: Hall, host: str = A, first: int = 1, last: int = 65535, count: int = 0, manage: int = 0):
    """The entries of a GetListOfPortMappings, or the fault's code."""
    reply = await hall.soap(
        "GetListOfPortMappings", host, 2,
        StartPort=first, EndPort=last, Protocol="TCP", Manage=manage, NumberOfPorts=count,
    )  # fmt: skip
    if reply.code:
        return reply.code
    document = ElementTree.fromstring(reply["PortListing"])
    return [{e.tag.removeprefix(ENTRY): e.text or "" for e in row} for row in document]


@virtual
async def test_a_listing_shows_each_entry_as_it_is_now(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(9000, version=2, PortMappingDescription="R&amp;D &lt;1&gt; ]]&gt;", RemoteHost="198.51.100.9")
    await hall.add(8000, B)
    await hall.add(7000, LeaseDuration=0)
    assert await listed(hall) == [
        {
            "NewRemoteHost": "", "NewExternalPort": "7000", "NewProtocol": "TCP", "NewInternalPort": "8000",
            "NewInternalClient": A, "NewEnabled": "1", "NewDescription": "test", "NewLeaseTime": "0",
        },
        {
            "NewRemoteHost": "198.51.100.9", "NewExternalPort": "9000", "NewProtocol": "TCP", "NewInternalPort": "8000",
            "NewInternalClient": A, "NewEnabled": "1", "NewDescription": "R&D <1> ]]>", "NewLeaseTime": "3600",
        },
    ]  # fmt: skip
    assert [row["NewExternalPort"] for row in await listed(hall, manage=1)] == ["7000", "8000", "9000"]
    assert [row["NewExternalPort"] for row in await listed(hall, manage=1, count=2)] == ["7000", "8000"]
    assert await listed(hall, first=9001) == 730


@virtual
async def test_no_listing_is_longer_than_its_ceiling(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_mappings_per_host=ENTRIES_PER_ANSWER + 1, adds_per_second=10000)
    for number in range(ENTRIES_PER_ANSWER + 1):
        assert not (await hall.add(2000 + number, InternalPort=2000 + number)).code
    for count in (0, ENTRIES_PER_ANSWER + 1, 65535):
        assert len(await listed(hall, count=count)) == ENTRIES_PER_ANSWER


@pytest.mark.parametrize(("manage", "code"), [(0, 730), (1, 606)])
@virtual
async def test_a_range_of_anothers_entries_stays_and_only_who_means_them_is_told(
    tmp_path: Path, manage: int, code: int
) -> None:
    hall = Hall(tmp_path)
    await hall.add(8000, B)
    reply = await hall.soap("DeletePortMappingRange", A, 2, StartPort=1, EndPort=65535, Protocol="TCP", Manage=manage)
    assert (reply.code, len(hall.table)) == (code, 1)


def test_what_is_deleted_is_logged_with_who_did_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="igdpcp.upnp")

    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, agent="upnpc")
        for port in (8000, 8001, 8002):
            await hall.add(port)
        await hall.delete(8000)
        reply = await hall.soap("DeletePortMappingRange", A, 2, StartPort=8001, EndPort=8005, Protocol="TCP", Manage=0)
        assert (reply.code, len(hall.table)) == (0, 0)

    run()
    one, several = [record.message for record in caplog.records if "event=deleted" in record.message]
    assert f"client={A} agent=upnpc protocol=TCP external_port=8000 mapping=00000001" in one
    assert 'external_port=8001-8005 mapping="00000002 00000003"' in several


@pytest.mark.parametrize(("agent", "lease"), [(WINDOWS, "0"), ("FDSSDP", "0"), ("upnpc", "3600")])
@virtual
async def test_windows_is_shown_entries_without_an_end(tmp_path: Path, agent: str, lease: str) -> None:
    hall = Hall(tmp_path, agent=agent)
    await hall.add(8080)
    assert (await hall.specific(8080))["LeaseDuration"] == lease
    (row,) = await hall.listed()
    assert row["LeaseDuration"] == lease
    assert hall.only.lease_ends == hall.loop.time() + 3600


@virtual
async def test_windows_gets_the_codes_of_the_version_that_it_asks_for(tmp_path: Path) -> None:
    hall = Hall(tmp_path, agent=WINDOWS)
    assert [(await hall.add(80, version=version)).code for version in (1, 2)] == [718, 606]


@virtual
async def test_a_pinhole_is_opened_renewed_counted_and_closed(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    opened = await firewall(hall, "AddPinhole", **PINHOLE)
    assert await firewall(hall, "AddPinhole", **PINHOLE) == opened
    one = {"UniqueID": opened["UniqueID"]}
    (rule,) = hall.ruleset.pinhole_rules.values()
    assert (str(rule.client), rule.client_port, int(rule.protocol)) == (A6, 5000, 17)
    assert (await firewall(hall, "CheckPinholeWorking", **one))["errorCode"] == "709"
    hall.ruleset.packets[rule.id] = UI4_MAX + 3
    assert await firewall(hall, "GetPinholePackets", **one) == {"PinholePackets": "2"}
    assert await firewall(hall, "CheckPinholeWorking", **one) == {"IsWorking": "1"}
    assert "errorCode" not in await firewall(hall, "UpdatePinhole", **one, NewLeaseTime=86400)
    for action in ("UpdatePinhole", "DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"):
        lease = {"NewLeaseTime": 60} if action == "UpdatePinhole" else {}
        assert (await firewall(hall, action, B6, **one, **lease))["errorCode"] == "606"
    assert "errorCode" not in await firewall(hall, "DeletePinhole", **one)
    gone = await firewall(hall, "DeletePinhole", **one)
    assert (gone["errorCode"], gone["errorDescription"]) == ("704", "NoSuchEntry")


def test_a_refused_pinhole_is_logged_with_what_was_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="igdpcp.upnp")

    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await firewall(hall, "AddPinhole", **(PINHOLE | {"InternalPort": 80}))
        await firewall(hall, "DeletePinhole", UniqueID=7)

    run()
    add, delete = [record.message for record in caplog.records if "event=refused" in record.message]
    assert f"client={A6} code=606" in add
    assert "action=AddPinhole:1" in add
    assert "protocol=17 internal_port=80" in add
    assert "code=704" in delete
    assert "pinhole=7" in delete


@virtual
async def test_iwf_008_no_pinhole_is_asked_of_the_carrier(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await firewall(hall, "AddPinhole", **PINHOLE)
    assert (hall.carrier.asked, hall.carrier.given_back) == ([], [])


@virtual
async def test_where_no_pinholes_are_possible_that_comes_before_all_that_is_wrong(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_pinholes=0)
    wrong = PINHOLE | {"InternalPort": 0, "Protocol": 65535, "LeaseTime": 0, "InternalClient": ""}
    assert (await firewall(hall, "AddPinhole", **wrong))["errorCode"] == "703"
    assert (await firewall(hall, "UpdatePinhole", UniqueID=1, NewLeaseTime=0))["errorCode"] == "703"
    for action in ("DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"):
        assert (await firewall(hall, action, UniqueID=1))["errorCode"] == "703"
    assert await firewall(hall, "GetFirewallStatus") == {"FirewallEnabled": "1", "InboundPinholeAllowed": "0"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"InternalPort": 0, "InternalClient": "", "Protocol": 65535, "LeaseTime": 0}, "706"),
        ({"InternalClient": "", "Protocol": 65535, "LeaseTime": 0}, "708"),
        ({"Protocol": 65535, "LeaseTime": 0}, "707"),
        ({"Protocol": 132, "LeaseTime": 0}, "705"),
        ({"LeaseTime": 0, "InternalClient": B6}, "402"),
        ({"InternalClient": B6}, "606"),
    ],
)
@virtual
async def test_of_several_wrong_arguments_the_first_in_the_order_of_the_field_is_told(
    tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    assert (await firewall(Hall(tmp_path), "AddPinhole", **(PINHOLE | changes)))["errorCode"] == code


@virtual
async def test_the_timeout_of_outbound_flows_is_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("igdpcp.net.conntrack._SETTINGS", tmp_path)
    hall = Hall(tmp_path)
    flow = {name: value for name, value in PINHOLE.items() if name != "LeaseTime"}
    assert (await firewall(hall, "GetOutboundPinholeTimeout", **flow))["errorCode"] == "501"
    (tmp_path / "nf_conntrack_tcp_timeout_established").write_text("7440\n")
    (tmp_path / "nf_conntrack_udp_timeout_stream").write_text("120\n")
    for protocol, seconds in ((6, "7440"), (17, "120"), ("udp", "120")):
        answer = await firewall(hall, "GetOutboundPinholeTimeout", **(flow | {"Protocol": protocol}))
        assert answer == {"OutboundPinholeTimeout": seconds}
    unknown = await firewall(hall, "GetOutboundPinholeTimeout", **(flow | {"Protocol": 132}))
    assert (unknown["errorCode"], unknown["errorDescription"]) == ("705", "ProtocolNotSupported")


@virtual
async def test_a_control_point_on_ipv6_reads_everything_and_maps_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    headers, peer = {"content-type": "text/xml"}, Peer(ip_address(A6), ip_address("2600:1::1"), "br-lan")

    async def code(version: int, action: str, **arguments: object) -> int:
        body = envelope(URN.format(version), action, arguments)
        response = await hall.igd_handler.handle(HttpRequest("POST", "/ctl/IPConn", headers, body, "1.1"), peer)
        fault = ElementTree.fromstring(response.body).find(".//{*}errorCode")
        return 0 if fault is None else int(fault.text or "")

    new = {"NewExternalPort": 9000, "NewProtocol": "TCP", "NewInternalPort": 9000}
    for version, foreign in ((1, 718), (2, 606)):
        assert await code(version, "GetExternalIPAddress") == 0
        assert await code(version, "GetGenericPortMappingEntry", NewPortMappingIndex=0) == 0
        assert await code(version, "GetSpecificPortMappingEntry", NewExternalPort=8080, NewProtocol="TCP") == 0
        assert await code(version, "AddPortMapping", **new, NewInternalClient=A) == foreign
        assert await code(version, "AddPortMapping", **new, NewInternalClient="") == 715
    assert len(hall.table) == 1
