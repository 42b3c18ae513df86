# SPDX-License-Identifier: Apache-2.0
"""What control points may ask without making a mapping: state variables, queries, and what is refused at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.model import Activation, Mapping
from igdpcp.upnp.services import WAN_IP_CONNECTION
from tests.support.hall import CARRIER, A, B, Hall, settle
from tests.support.virtual_time import virtual


@pytest.mark.parametrize(
    ("changes", "version", "code"),
    [
        pytest.param({"Enabled": 0}, 1, 501, id="iwf_028_not_enabled"),
        pytest.param({"Protocol": "SCTP"}, 1, 402, id="iwf_029_protocol_v1"),
        pytest.param({"Protocol": "SCTP"}, 2, 601, id="iwf_029_protocol_v2"),
        pytest.param({"InternalClient": "no.such.name"}, 1, 402, id="iwf_030_name"),
        pytest.param({"RemoteHost": "no.such.name"}, 2, 402, id="iwf_031_name"),
        pytest.param({"InternalPort": 0}, 1, 402, id="iwf_038_internal_port_v1"),
        pytest.param({"InternalPort": 0}, 2, 732, id="iwf_038_internal_port_v2"),
        pytest.param({"ExternalPort": 0}, 1, 716, id="iwf_089_external_port_v1"),
        pytest.param({"ExternalPort": 0}, 2, 716, id="iwf_089_external_port_v2"),
        pytest.param({"InternalClient": "192.168.1.1"}, 1, 718, id="the_router_itself"),
        pytest.param({"InternalClient": "10.9.9.9"}, 2, 606, id="not_on_the_lan"),
        pytest.param({"InternalClient": ""}, 2, 715, id="no_client_v2"),
    ],
)
def test_iwf_028_029_038_089_requests_that_are_refused_ask_nobody(
    tmp_path: Path, changes: dict[str, object], version: int, code: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert (await hall.add(8080, version=version, **changes)).code == code
        assert (hall.carrier.asked, len(hall.table)) == ([], 0)

    run()


@pytest.mark.parametrize("enabled", ["1", "true", "yes", "TRUE"])
def test_iwf_028_every_spelling_of_true_is_enabled(tmp_path: Path, enabled: str) -> None:
    @virtual
    async def run() -> None:
        assert (await Hall(tmp_path).add(8080, Enabled=enabled)).code == 0

    run()


@virtual
async def test_version_1_takes_an_empty_client_for_the_asking_host(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.add(8080, InternalClient="")).code == 0
    assert (await hall.specific(8080))["InternalClient"] == A


@virtual
async def test_iwf_020_022_010_the_constant_variables_are_the_same_with_and_without_nat(tmp_path: Path) -> None:
    for routed in (False, True):
        hall = Hall(tmp_path, routed=routed)
        assert (await hall.soap("GetConnectionTypeInfo")).outputs == {
            "NewConnectionType": "IP_Routed",
            "NewPossibleConnectionTypes": "IP_Routed",
        }
        assert (await hall.soap("GetNATRSIPStatus")).outputs == {"NewRSIPAvailable": "0", "NewNATEnabled": "1"}


@virtual
async def test_iwf_021_022_uptime_counts_from_the_first_contact(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.up_since = hall.loop.time()
    await asyncio.sleep(100)
    status = await hall.soap("GetStatusInfo")
    assert status.outputs == {
        "NewConnectionStatus": "Connected",
        "NewLastConnectionError": "ERROR_NONE",
        "NewUptime": "100",
    }


@pytest.mark.parametrize("options", [{"unreachable_policy": "error"}, {"routed": True}])
def test_iwf_016_035_not_connected_until_the_server_answers(tmp_path: Path, options: dict[str, object]) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, **options)  # type: ignore[arg-type]
        hall.carrier.state, hall.carrier.external_address, hall.carrier.up_since = Activation.PROBING, None, None
        before = hall.loop.time()
        status = await hall.soap("GetStatusInfo")
        assert (status["ConnectionStatus"], status["Uptime"]) == ("Disconnected", "0")
        for action in ("GetNATRSIPStatus", "GetConnectionTypeInfo"):
            assert (await hall.soap(action)).code == 0
        assert (hall.loop.time(), hall.carrier.asked) == (before, [])
        hall.carrier.become(Activation.ACTIVE)
        hall.carrier.move(IPv4Address("62.0.0.1"))
        await settle()
        assert (await hall.soap("GetStatusInfo"))["ConnectionStatus"] == "Connected"

    run()


@virtual
async def test_iwf_024_each_control_point_is_shown_the_address_of_its_own_mappings(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    other = IPv4Address("62.0.0.2")
    await hall.add(8080, A)
    hall.carrier.answer = lambda request: hall.carrier.grant(request.id, address=other)
    await hall.add(9090, B)
    hall.carrier.move(other)
    await settle()
    hosts = (A, B, "192.168.1.70")
    shown = [(await hall.soap("GetExternalIPAddress", host))["ExternalIPAddress"] for host in hosts]
    assert shown == [str(CARRIER), str(other), str(other)]
    evented = [hall.variables.evented(WAN_IP_CONNECTION, 1, IPv4Address(host))["ExternalIPAddress"] for host in (A, B)]
    assert evented == [str(CARRIER), str(other)]
    before = hall.changes
    hall.carrier.answer = None
    first = next(mapping for mapping in hall.table if mapping.external_port == 8080)
    hall.carrier.grant(first.id, address=other)
    await settle()
    assert hall.changes > before
    assert (await hall.soap("GetExternalIPAddress", A))["ExternalIPAddress"] == str(other)
    await hall.delete(8080, A)
    assert (await hall.soap("GetExternalIPAddress", A))["ExternalIPAddress"] == str(other)


@virtual
async def test_iwf_024_the_address_that_is_shown_is_that_of_the_youngest_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall = Hall(tmp_path)
    other = IPv4Address("62.0.0.2")
    for port, address in ((8080, CARRIER), (8081, other), (8082, CARRIER)):
        await hall.add(port, A)
        hall.carrier.grant(max(hall.carrier.wanted), address=address)
        await settle()
    walks, listing = 0, hall.table.listing

    def counted() -> Iterator[Mapping]:
        nonlocal walks
        walks += 1
        return listing()

    monkeypatch.setattr(hall.table, "listing", counted)
    for host, shown in [(A, CARRIER), *((f"192.168.1.{n}", other) for n in range(100, 200))]:
        assert hall.table.external_address_of(IPv4Address(host), other) == shown
    assert walks == 1, "one for all who ask until something changes"
    await hall.add(9090, B)
    assert hall.table.external_address_of(IPv4Address(B), other) == CARRIER
    await hall.delete(8082)
    assert hall.table.external_address_of(IPv4Address(A), CARRIER) == other


@virtual
async def test_what_the_router_alone_granted_is_no_external_address_of_the_carrier(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.state = Activation.NO_SERVER
    await hall.add(8080, A)
    hall.carrier.state = Activation.ACTIVE
    assert (await hall.soap("GetExternalIPAddress", A))["ExternalIPAddress"] == str(CARRIER)


@virtual
async def test_iwf_023_the_external_address_is_the_carriers_last_one_or_empty(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.carrier.external_address = None
    assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == ""
    hall.carrier.move(IPv4Address("62.0.0.7"))
    assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == "62.0.0.7"


@pytest.mark.parametrize(("allowed", "shown"), [(False, ""), (True, "100.64.12.34")])
def test_a_private_wan_address_is_not_shown_as_if_it_were_public(tmp_path: Path, allowed: bool, shown: str) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, carrier=False, allow_private_external=allowed)
        assert (await hall.soap("GetExternalIPAddress"))["ExternalIPAddress"] == shown
        connected = (await hall.soap("GetStatusInfo"))["ConnectionStatus"]
        assert connected == ("Connected" if allowed else "Disconnected")

    run()


@virtual
async def test_iwf_027_entries_that_are_not_shown_are_not_counted(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.silent = True
    await hall.add(8081)
    hall.carrier.grant([mapping.id for mapping in hall.table][1])
    await settle()
    assert len(hall.table) == 2
    assert hall.table.listed == len(await hall.listed()) == 1


@virtual
async def test_iwf_032_the_update_id_grows_by_one_with_each_change_that_is_shown(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    seen = [hall.table.system_update_id]
    for step in (hall.add(8080), hall.add(8081), hall.add(8080, PortMappingDescription="new"), hall.delete(8081)):
        assert (await step).code == 0
        seen.append(hall.table.system_update_id)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("action", "arguments", "codes"),
    [
        pytest.param("SetConnectionType", {"ConnectionType": "IP_Routed"}, (501, 731), id="iwf_033"),
        pytest.param("RequestConnection", {}, (501, 606), id="iwf_034_request"),
        pytest.param("ForceTermination", {}, (501, 606), id="iwf_034_force"),
    ],
)
def test_iwf_033_034_what_the_carrier_decides_is_refused(
    tmp_path: Path, action: str, arguments: dict[str, object], codes: tuple[int, int]
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert tuple([(await hall.soap(action, version=v, **arguments)).code for v in (1, 2)]) == codes

    run()


@pytest.mark.parametrize(("option", "relayed"), [(True, "abc"), (False, "")])
def test_iwf_036_the_description_is_relayed_unless_switched_off(tmp_path: Path, option: bool, relayed: str) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, description_option=option)
        await hall.add(8080, PortMappingDescription="abc")
        assert hall.carrier.asked[0].description == relayed
        assert (await hall.specific(8080))["PortMappingDescription"] == "abc"

    run()


@virtual
async def test_iwf_095_a_remote_host_is_asked_upstream_and_enforced_by_the_router(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, RemoteHost="198.51.100.9")
    assert hall.carrier.asked[0].remote_hosts == (IPv4Address("198.51.100.9"),)
    assert hall.only_rule.remote_hosts == (IPv4Address("198.51.100.9"),)


@virtual
async def test_iwf_110_the_listing_is_answered_at_once_without_the_carrier(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    hall.carrier.state, hall.carrier.silent = Activation.LOST, True
    before = hall.loop.time()
    assert await hall.ports() == [8080]
    assert (hall.loop.time(), len(hall.carrier.asked)) == (before, 1)


@virtual
async def test_iwf_111_112_the_owner_is_shown_its_entry_and_others_a_conflict(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080, A)
    assert (await hall.specific(8080, A)).outputs == {
        "NewInternalPort": "8000", "NewInternalClient": A, "NewEnabled": "1", "NewPortMappingDescription": "test",
        "NewLeaseDuration": "3600",
    }  # fmt: skip
    assert (await hall.specific(8080, B)).code == 718
    assert len(hall.carrier.asked) == 1
