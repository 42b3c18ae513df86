# SPDX-License-Identifier: Apache-2.0
"""What the WAN and DHCP say of the way to the carrier, handed on to who asks there and to the ruleset."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from igdpcp.config import Config, UpstreamConfig
from igdpcp.daemon.pcp_servers import servers_behind
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.net.dhcp import DhcpAnswer, DhcpAnswers
from igdpcp.net.router import RouterView
from igdpcp.openings import Surroundings
from igdpcp.upstreams.local import LocalUpstream
from igdpcp.upstreams.pcp import PcpUpstream

NO_WAY_SECONDS = 30.0  # between attempts to reach a server to which there was no route
DHCP_SECONDS = 2.0  # between looks for what DHCP says of PCP servers


class WayToCarrier:
    """Has no state of its own but what DHCP said last."""

    def __init__(
        self,
        *,
        config: Config,
        upstreams: Sequence[UpstreamConfig],
        router: RouterView,
        router_leg: RouterLeg,
        local: LocalUpstream,
        pcp: PcpUpstream | None,
    ) -> None:
        """``upstreams``: the sections in use. ``pcp`` None: no PCP server is asked for."""
        self._blocks_lan_pcp = config.main.block_lan_pcp
        self._upstreams = upstreams
        self._router = router
        self._router_leg = router_leg
        self._local = local
        self._pcp = pcp
        self._dhcp = DhcpAnswers(Path(config.main.run_dir))
        self._dhcp_answers: tuple[DhcpAnswer, ...] = ()

    def network_changed(self) -> None:
        """Tell the upstreams from which address they are asked now, and which servers there are."""
        wan = self._router.wan
        self._local.network_changed()
        if self._pcp:
            self._dhcp_answers = self._dhcp.read()
            servers = servers_behind(self._upstreams, wan, self._router.wan6_devices, self._dhcp_answers)
            self._pcp.network_changed(wan.device, wan.address, servers)

    async def tell_ruleset(self) -> None:
        """Which devices it is for, and whose packets to which port the router has to let in."""
        peer = self._pcp.peer if self._pcp else None
        await self._router_leg.surround(
            Surroundings(
                wan_devices=frozenset(filter(None, [self._router.wan_device])),
                lan_devices=frozenset(lan.device for lan in self._router.lans),
                pcp_peers=frozenset([peer] if peer else []),
                wan6_devices=self._router.wan6_devices,
                blocks_lan_pcp=self._blocks_lan_pcp,
            )
        )

    async def follow(self) -> None:
        """Notice what DHCP says of PCP servers, and try again while there was no way to one."""
        if self._pcp is None:
            return
        loop = asyncio.get_running_loop()
        tried = loop.time()
        while True:
            await asyncio.sleep(DHCP_SECONDS)
            now = loop.time()
            if self._dhcp.read() != self._dhcp_answers or (self._pcp.peer is None and now >= tried + NO_WAY_SECONDS):
                tried = now
                self.network_changed()
                await self.tell_ruleset()
