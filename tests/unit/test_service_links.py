# SPDX-License-Identifier: Apache-2.0
"""What the service makes of links that change: which hosts have left the LANs."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

from igdpcp.config import Config, LanConfig
from igdpcp.daemon.service import Service
from igdpcp.daemon.way_to_carrier import WayToCarrier
from igdpcp.iwf.absences import LAN_GRACE_SECONDS
from igdpcp.log import RecentTroubles
from igdpcp.net.links import IPInterface, LinkSnapshot
from igdpcp.net.router import RouterView
from tests.support.hall import A6, Hall
from tests.support.virtual_time import virtual

OLD, NEW = IPv6Interface("2600:1::1/64"), IPv6Interface("2600:2::1/64")
LAN = IPv4Interface("192.168.1.1/24")


def links(*named: IPInterface, fading: tuple[IPInterface, ...] = ()) -> LinkSnapshot:
    return LinkSnapshot(
        devices={"br-lan": 3},
        addresses=tuple(("br-lan", interface) for interface in (LAN, *named)),
        default_routes=(),
        unnamed=tuple(("br-lan", interface) for interface in fading),
    )


def serving(hall: Hall, found: LinkSnapshot) -> Service:
    """A service over this hall that has found these links at its start."""
    service = Service(Config(), RecentTroubles(), lambda: None)
    service._upstreams = service._config.upstreams
    service._router = RouterView((LanConfig("lan", "br-lan"),), "wan0")
    service._router.update(found)
    hall.router.on_lan = service._router.on_lan  # type: ignore[method-assign]
    service._way = WayToCarrier(
        config=service._config, upstreams=service._upstreams, router=service._router, router_leg=hall.leg,
        local=hall.local, pcp=None,
    )  # fmt: skip
    service._lifecycle, service._pinholes, service._static = hall.lifecycle, hall.pinholes, hall.static
    service._ready = True
    return service


@virtual
async def test_a_pinhole_to_a_prefix_that_was_replaced_ends_once_the_old_prefix_is_gone(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    service = serving(hall, links(OLD))
    opened = await hall.firewall(
        "AddPinhole", RemoteHost="", RemotePort=0, InternalClient=A6, InternalPort=4000, Protocol=6, LeaseTime=86400
    )
    assert opened.code == 0
    service._links_changed(links(NEW, fading=(OLD,)))
    await asyncio.sleep(2 * LAN_GRACE_SECONDS)
    assert len(hall.ruleset.pinhole_rules) == 1, "the host may use its old address until it is gone"
    service._links_changed(links(NEW))
    await asyncio.sleep(LAN_GRACE_SECONDS + 1)
    assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)
    await service.stop()
