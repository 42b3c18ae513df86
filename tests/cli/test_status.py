# SPDX-License-Identifier: Apache-2.0
"""What the daemon itself says at the control socket of its LANs and pinholes, and how a pinhole is closed there."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from igdpcp.config import Config, MainConfig
from igdpcp.daemon.operator import Operator
from igdpcp.daemon.status import Status
from igdpcp.errors import Reason, Refusal
from igdpcp.net.router import Lan
from tests.support.hall import A6, B6, A, Hall
from tests.support.pcp_host import map_request
from tests.support.pcp_lan import PcpLan, lan, server_of, serving
from tests.support.virtual_time import virtual

__all__ = ["lan"]  # a fixture

LANS = (
    Lan("lan", "br-lan", ip_interface("fe80::1/64")),
    Lan("lan", "br-lan", ip_interface("2600:1::1/64")),
    Lan("guest", "br-guest", ip_interface("fe80::1/64")),
    Lan("lan", "br-lan", ip_interface("192.168.1.1/24")),
)
ONLY_LINK_LOCAL = LANS[2:3]


def status_of(hall: Hall, lans: tuple[Lan, ...] = LANS, **main: Any) -> Status:
    """Of that hall; the parts that are not looked at here are left out."""
    parts = dict.fromkeys(
        (
            "upstreams", "table", "interworking", "upstream_leg", "router_leg", "ruleset", "fallback", "pcp",
            "igd_handler", "http", "events", "troubles", "ports", "pcp_server",
        ),
        cast(Any, SimpleNamespace()),
    )  # fmt: skip
    parts["table"] = hall.table
    router = cast(Any, SimpleNamespace(lans=lans))
    parts["pcp_server"] = server_of(hall)
    config = Config(main=MainConfig(**main))
    return Status(config=config, router=router, started=0.0, pinholes=hall.pinhole_table, static=hall.static,
                  policy=hall.policy, port_policy=hall.port_policy, **parts)  # fmt: skip


def operator_of(hall: Hall) -> Operator:
    return Operator(hall.interworking, hall.table, status_of(hall), hall.restart.release, hall.leg, hall.pinholes)


async def opened(hall: Hall, client: str = A6, **changes: object) -> str:
    """The UniqueID of a pinhole of that host."""
    wish = {"RemoteHost": "", "RemotePort": 0, "InternalClient": client, "InternalPort": 7000, "Protocol": 6,
            "LeaseTime": 600}  # fmt: skip
    return (await hall.firewall("AddPinhole", client, **(wish | changes)))["UniqueID"]


@virtual
async def test_lans_are_told_by_device_with_ipv4_first(tmp_path: Path) -> None:
    assert status_of(Hall(tmp_path))._lans() == [
        {"device": "br-lan", "addresses": ["192.168.1.1/24", "fe80::1/64", "2600:1::1/64"]},
        {"device": "br-guest", "addresses": ["fe80::1/64"]},
    ]


@pytest.mark.parametrize(
    ("lans", "igd_version", "location"),
    [
        (LANS, "auto", "http://192.168.1.1:5000/rootDesc.xml"),
        (LANS, "2", "http://192.168.1.1:5000/v2/rootDesc.xml"),
        (LANS[:2], "1", "http://[2600:1::1]:5000/rootDesc.xml"),
        (ONLY_LINK_LOCAL, "1", "http://[fe80::1]:5000/rootDesc.xml"),
        ((), "1", None),
    ],
)
def test_the_location_is_a_url(tmp_path: Path, lans: tuple[Lan, ...], igd_version: str, location: str | None) -> None:
    @virtual
    async def run() -> None:
        assert status_of(Hall(tmp_path), lans, igd_version=igd_version)._igd()["location"] == location

    run()


@virtual
async def test_a_pinhole_has_a_row_among_the_mappings(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    id = await opened(hall, RemoteHost="2600:9::9", RemotePort=53)
    await asyncio.sleep(100)
    mapping, pinhole = await status_of(hall).mappings()
    assert (mapping["kind"], mapping["external_port"]) == ("mapping", 8080)
    assert mapping.keys() < pinhole.keys()
    assert pinhole | {"agent": ""} == {
        "kind": "pinhole", "id": f"pinhole-{id}", "protocol": "tcp", "external_address": A6, "external_port": 7000,
        "public_port": 7000, "client": A6, "client_port": 7000, "wan_port": None, "remote_host": "2600:9::9",
            "remote_port": 53,
        "description": "", "requester": A6, "owner": pinhole["owner"], "shared_with": "", "agent": "",
        "state": "active", "local_only": False, "lease_left": 500, "grant_left": None, "upstream": None,
    }  # fmt: skip


@virtual
async def test_the_operator_closes_a_pinhole_and_no_other_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    ids = [await opened(hall), await opened(hall, B6)]
    row = await operator_of(hall).commands()["delete"]({"command": "delete", "id": f"pinhole-{ids[0]}"})
    assert isinstance(row, dict)
    assert row["client"] == A6
    assert [str(pinhole.id) for pinhole in hall.pinhole_table] == [ids[1]]
    assert list(hall.ruleset.pinhole_rules) == [f"pinhole-{ids[1]}"]


@virtual
async def test_a_pinhole_that_nobody_has_cannot_be_closed(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await opened(hall)
    with pytest.raises(Refusal) as refused:
        await operator_of(hall).commands()["delete"]({"command": "delete", "id": "pinhole-x"})
    assert refused.value.reason is Reason.NO_SUCH_ENTRY
    assert len(hall.pinhole_table) == 1


@virtual
async def test_where_lan_hosts_can_ask_in_pcp_is_told_and_what_became_of_it(tmp_path: Path, lan: PcpLan) -> None:
    hall, host = Hall(tmp_path), lan.host(A)
    status = status_of(hall)
    async with serving(hall) as server:
        status._pcp_server = server
        await asyncio.sleep(100)
        assert status._lan_pcp() == {
            "languages": ["pcp", "nat-pmp"], "addresses": ["192.168.1.1"], "epoch": 100, "waiting": 0,
        }  # fmt: skip
        await host.ask(map_request(A, 8000, suggested=8080))
        (row,) = await status.mappings()
        assert (row["owner"], row["requester"], row["shared_with"]) == ("pcp", A, "")
        assert (await hall.add(8080)).code == 0
        (row,) = await status.mappings()
        assert (row["owner"], row["requester"], row["shared_with"]) == ("upnp1", A, "pcp")
