# SPDX-License-Identifier: Apache-2.0
"""What the state variables show: in actions that only read, to QueryStateVariable, and to subscribers."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from xml.etree import ElementTree

import pytest

from igdpcp.daemon.http_server import Peer
from igdpcp.model import Activation
from igdpcp.net import counters
from igdpcp.upnp.actions import Level
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.services import SERVICES, service_by_type, services_in
from tests.support.hall import IDENTITY, A, Hall
from tests.support.soap_client import envelope
from tests.support.virtual_time import virtual

CONTROL = "urn:schemas-upnp-org:control-1-0"
PEER = Peer(IPv4Address(A), IPv4Address("192.168.1.1"), "br-lan")
CONNECTION_SERVICE = "urn:upnp-org:serviceId:WANIPConn1"


async def post(hall: Hall, path: str, urn: str, action: str, arguments: dict[str, object]) -> dict[str, str]:
    """The answer's leaf elements by name."""
    request = HttpRequest("POST", path, {"content-type": "text/xml"}, envelope(urn, action, arguments), "1.1")
    response = await hall.igd_handler.handle(request, PEER)
    return {e.tag.rpartition("}")[2]: e.text or "" for e in ElementTree.fromstring(response.body).iter() if not len(e)}


async def query(hall: Hall, name: str, path: str = "/ctl/IPConn") -> str:
    """The value of a state variable, or the fault's code."""
    leaves = await post(hall, path, CONTROL, "QueryStateVariable", {"varName": name})
    return leaves["return"] if "return" in leaves else leaves["errorCode"]


async def call(hall: Hall, action: str, arguments: dict[str, object] | None = None, tree: int = 1) -> dict[str, str]:
    service = next(s for s in SERVICES if any(a.name == action for a in s.actions))
    path = ("/v2" if tree == 2 else "") + service.control_path
    return await post(hall, path, service.urn(service.version_in(tree)), action, arguments or {})


def connection_device(tree: int) -> str:
    return f"{IDENTITY.udn(Level.CONNECTION_DEVICE, tree)}:WANConnectionDevice:{tree}"


@virtual
async def test_queries_show_what_actions_show(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.up_since = hall.loop.time() - 60
    assert await query(hall, "ConnectionStatus") == "Connected"
    assert await query(hall, "Uptime") == "60"
    assert await query(hall, "ExternalIPAddress") == "62.0.0.1"
    assert await query(hall, "NATEnabled") == "1"
    assert await query(hall, "PossibleConnectionTypes") == "IP_Routed"
    status = await call(hall, "GetStatusInfo")
    assert status == {
        "NewConnectionStatus": "Connected", "NewLastConnectionError": "ERROR_NONE", "NewUptime": "60",
    }  # fmt: skip


@virtual
async def test_the_number_of_entries_grows_with_each_of_them_as_amule_expects(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for number in range(4):
        assert await query(hall, "PortMappingNumberOfEntries") == str(number)
        await hall.add(8000 + number)
    assert await call(hall, "GetPortMappingNumberOfEntries") == {"NewPortMappingNumberOfEntries": "4"}
    assert await query(hall, "SystemUpdateID", "/v2/ctl/IPConn") == "4"


@virtual
async def test_without_an_address_to_show_the_connection_is_down(tmp_path: Path) -> None:
    hall = Hall(tmp_path, unreachable_policy="error")
    hall.carrier.external_address = None
    hall.carrier.up_since = None
    hall.carrier.state = Activation.LOST
    assert await call(hall, "GetStatusInfo") == {
        "NewConnectionStatus": "Disconnected", "NewLastConnectionError": "ERROR_UNKNOWN", "NewUptime": "0",
    }  # fmt: skip
    assert await call(hall, "GetExternalIPAddress") == {"NewExternalIPAddress": ""}
    assert (await call(hall, "GetActiveConnection", {"NewActiveConnectionIndex": 0}))["errorCode"] == "713"


@pytest.mark.parametrize("tree", [1, 2])
@virtual
async def test_every_variable_that_is_no_type_of_an_argument_has_a_value(tmp_path: Path, tree: int) -> None:
    hall = Hall(tmp_path)
    for service in services_in(tree):
        path = ("/v2" if tree == 2 else "") + service.control_path
        for variable in (v for v in service.variables if service.version_in(tree) in v.versions):
            value = await query(hall, variable.name, path)
            assert (value == "404") is variable.name.startswith("A_ARG_TYPE_")
            assert not variable.allowed or value in variable.allowed


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("RemoteHost", "/ctl/IPConn", ""),
        ("PortMappingLeaseDuration", "/v2/ctl/IPConn", "3600"),
        ("SystemUpdateID", "/v2/ctl/IPConn", "0"),
        ("SystemUpdateID", "/ctl/IPConn", "404"),
        ("WANAccessType", "/ctl/CmnIfCfg", "Ethernet"),
        ("WANAccessType", "/evt/CmnIfCfg", "Ethernet"),
        ("WANAccessType", "/ctl/IPConn", "404"),
        ("ConnectionStatus", "/rootDesc.xml", "Connected"),
        ("FirewallEnabled", "/v2/ctl/IP6FCtl", "1"),
        ("NoSuchVariable", "/ctl/IPConn", "404"),
        ("", "/ctl/IPConn", "404"),
    ],
)
@virtual
async def test_the_path_says_whose_variable_is_meant(tmp_path: Path, name: str, path: str, value: str) -> None:
    assert await query(Hall(tmp_path), name, path) == value


@virtual
async def test_an_unknown_variable_is_named_invalid(tmp_path: Path) -> None:
    leaves = await post(Hall(tmp_path), "/ctl/L3F", CONTROL, "QueryStateVariable", {"varName": "x"})
    assert (leaves["errorCode"], leaves["errorDescription"]) == ("404", "Invalid Var")


@virtual
async def test_the_default_connection_is_that_of_the_tree_that_is_asked(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    for tree in (1, 2):
        value = f"{connection_device(tree)},{CONNECTION_SERVICE}"
        assert await call(hall, "GetDefaultConnectionService", tree=tree) == {"NewDefaultConnectionService": value}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (f"{connection_device(1)},{CONNECTION_SERVICE}", None),
        (f"{connection_device(2)},{CONNECTION_SERVICE}", None),
        (f" {IDENTITY.udns[2].upper()}:WANConnectionDevice:2 , {CONNECTION_SERVICE}", None),
        (f"{IDENTITY.udns[0]}:WANConnectionDevice:1,{CONNECTION_SERVICE}", "720"),
        (f"{connection_device(1)},urn:upnp-org:serviceId:WANPPPConn1", "721"),
        ("", "720"),
    ],
)
@virtual
async def test_the_default_connection_can_only_be_set_to_what_it_is(
    tmp_path: Path, value: str, code: str | None
) -> None:
    answer = await call(Hall(tmp_path), "SetDefaultConnectionService", {"NewDefaultConnectionService": value})
    assert answer.get("errorCode") == code


@virtual
async def test_the_active_connection_is_the_only_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert await call(hall, "GetMaximumActiveConnections") == {"NewMaximumActiveConnections": "1"}
    assert await call(hall, "GetActiveConnection", {"NewActiveConnectionIndex": 0}, tree=2) == {
        "NewActiveConnDeviceContainer": connection_device(2),
        "NewActiveConnectionServiceID": CONNECTION_SERVICE,
    }
    past = await call(hall, "GetActiveConnection", {"NewActiveConnectionIndex": 1})
    assert (past["errorCode"], past["errorDescription"]) == ("713", "SpecifiedArrayIndexInvalid")


@virtual
async def test_counters_wrap_and_rates_end_at_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = tmp_path / "wan0/statistics"
    statistics.mkdir(parents=True)
    for name, value in {"tx_bytes": 2**32 + 7, "rx_bytes": 2**40 - 1, "tx_packets": 3, "rx_packets": 0}.items():
        (statistics / name).write_text(f"{value}\n")
    speed = tmp_path / "wan0/speed"
    monkeypatch.setattr(counters, "_CLASS_NET", tmp_path)
    hall = Hall(tmp_path)
    totals = {}
    for name in ("BytesSent", "BytesReceived", "PacketsSent", "PacketsReceived"):
        totals |= await call(hall, f"GetTotal{name}")
    assert totals == {
        "NewTotalBytesSent": "7", "NewTotalBytesReceived": "4294967295",
        "NewTotalPacketsSent": "3", "NewTotalPacketsReceived": "0",
    }  # fmt: skip
    for megabits, rate in (("1000", "1000000000"), ("10000", "4294967295"), ("-1", "0")):
        speed.write_text(megabits)
        link = await call(hall, "GetCommonLinkProperties")
        assert (link["NewLayer1UpstreamMaxBitRate"], link["NewLayer1DownstreamMaxBitRate"]) == (rate, rate)
    assert (link["NewPhysicalLinkStatus"], link["NewWANAccessType"]) == ("Up", "Ethernet")
    hall.router.wan_address = None
    assert (await call(hall, "GetCommonLinkProperties"))["NewPhysicalLinkStatus"] == "Down"


@virtual
async def test_subscribers_are_told_the_evented_variables_of_their_tree(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add()
    asker = IPv4Address(A)
    connection = service_by_type("WANIPConnection")
    first = {
        "PossibleConnectionTypes": "IP_Routed",
        "ConnectionStatus": "Connected",
        "ExternalIPAddress": "62.0.0.1",
        "PortMappingNumberOfEntries": 1,
    }
    assert hall.variables.evented(connection, 1, asker) == first
    assert hall.variables.evented(connection, 2, asker) == first | {"SystemUpdateID": 1}
    assert hall.variables.evented(service_by_type("WANCommonInterfaceConfig"), 2, asker) == {
        "PhysicalLinkStatus": "Up", "EnabledForInternet": True,
    }  # fmt: skip
    assert hall.variables.evented(service_by_type("Layer3Forwarding"), 2, asker) == {
        "DefaultConnectionService": f"{connection_device(2)},{CONNECTION_SERVICE}"
    }
    assert set(hall.variables.evented(service_by_type("WANIPv6FirewallControl"), 2, asker)) == {
        "FirewallEnabled", "InboundPinholeAllowed",
    }  # fmt: skip
