# SPDX-License-Identifier: Apache-2.0
"""One life of the service, from a configuration to its stop: every part is made and connected here.

A reload is a stop and a start in the same process: what is open stays in the kernel and in the journal, and is
adopted by the same path that serves after a crash.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from igdpcp import __version__
from igdpcp.config import Config
from igdpcp.daemon import heap
from igdpcp.daemon.boot_id import BootId
from igdpcp.daemon.connection_service import ConnectionService
from igdpcp.daemon.control import ControlServer
from igdpcp.daemon.event_publisher import EventPublisher
from igdpcp.daemon.firewall_service import FirewallService
from igdpcp.daemon.flash_copy import FlashCopy
from igdpcp.daemon.host_names import HostNames
from igdpcp.daemon.http_server import HttpServer
from igdpcp.daemon.identity import device_identity
from igdpcp.daemon.igd_handler import IgdHandler
from igdpcp.daemon.lan_doors import LanDoors
from igdpcp.daemon.lan_hosts import LanHosts
from igdpcp.daemon.link_service import LinkService
from igdpcp.daemon.nat_mode import NatMode
from igdpcp.daemon.operator import Operator
from igdpcp.daemon.pcp_server import PcpServer
from igdpcp.daemon.pcp_servers import sections_in_use
from igdpcp.daemon.ports_in_use import PortsInUse
from igdpcp.daemon.ruleset_watch import RulesetWatch
from igdpcp.daemon.state_variables import StateVariables
from igdpcp.daemon.status import Status
from igdpcp.daemon.way_to_carrier import WayToCarrier
from igdpcp.errors import OurFault, RulesetError
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.established import Established
from igdpcp.iwf.interfaces import UpstreamEvent
from igdpcp.iwf.internal_tuples import InternalTuples
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.journal import Journal, load_secret
from igdpcp.iwf.lifecycle import Lifecycle
from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.iwf.pinholes import Pinholes
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.port_policy import PortPolicy
from igdpcp.iwf.restart import Restart
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.static_mappings import StaticMappings, static_requests
from igdpcp.iwf.table import MappingTable
from igdpcp.iwf.upstream_leg import UpstreamLeg
from igdpcp.log import RecentTroubles, line
from igdpcp.net.flow_cutter import FlowCutter
from igdpcp.net.leases import DhcpLeases
from igdpcp.net.links import LinkSnapshot, LinkWatcher
from igdpcp.net.resolver import SystemResolver
from igdpcp.net.router import RouterView
from igdpcp.net.ruleset_news import RulesetNews
from igdpcp.netfilter.base import GroupCommit
from igdpcp.netfilter.detect import choose_backend
from igdpcp.option_values import CONTROL_SOCKET, NONE
from igdpcp.upstreams.fallback import FallbackUpstream
from igdpcp.upstreams.local import LocalUpstream
from igdpcp.upstreams.pcp import PcpUpstream

LOG = logging.getLogger("igdpcp.daemon")


class Service:
    """Made with a configuration; ``start`` it, then ``stop`` or ``release`` it, once each."""

    def __init__(self, config: Config, troubles: RecentTroubles, restart: Callable[[], None]) -> None:
        """``restart`` is called when what was found at the start is no longer so."""
        self._config = config
        self._troubles = troubles
        self._wish_restart = restart
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._tasks = Tasks()
        self._closers: list[Callable[[], Any]] = []
        self._snapshot: LinkSnapshot | None = None
        self._watchers: list[Callable[[], None]] = []  # of what LAN hosts are shown
        self._serving = False
        self._ready = False
        self._moves = False  # the rules have to be elsewhere from now on
        self._successor: Config | None = None
        self.released = asyncio.Event()

    async def start(self, serve: bool = True) -> None:
        """Bring everything up, adopt what an earlier process left, and serve the LANs unless told not to.

        Raises OurFault with what to do; what was begun by then has to be ended with ``stop``.
        """
        main = self._config.main
        run_dir, state_dir = Path(main.run_dir), Path(main.state_dir)
        control = ControlServer(str(run_dir / CONTROL_SOCKET))
        await control.start()  # first of all: nothing may be touched that another daemon serves
        self._closers.append(control.close)
        secret = load_secret(state_dir)
        watcher = LinkWatcher(self._links_changed)
        self._closers.append(watcher.close)
        snapshot = await watcher.start()
        self._upstreams = sections_in_use(self._config.upstreams, snapshot)
        self._router = RouterView(self._config.lans, self._upstreams[0].device)
        self._router.update(snapshot)
        self._nat = NatMode(self._upstreams[0].nat, self._wan_in_use, run_dir, self._wish_restart)
        await self._nat.decide()
        await self._make_hall(secret, run_dir, state_dir)
        self._make_doors(secret, state_dir)
        ports_known = self._tasks.start(self._ports.look())
        if serve:
            self._doors.look_around(self._router.lans)
        await self._start_ruleset()
        self._way.network_changed()
        await self._way.tell_ruleset()
        await self._restart.restore(hold_static=serve)
        await ports_known
        if len(self._table):  # what was adopted may have lost its port meanwhile
            await self._ports.look()
        control.commands = Operator(
            self._interworking, self._table, self._status, self.release, self._router_leg, self._pinholes
        ).commands()  # fmt: skip
        self._serving = serve
        if serve:
            await self._doors.open(self._router.lans)
        for work in (
            self._flash_copy.save_now_and_then(), self._ruleset_watch.follow(), self._nat.watch(), self._way.follow(),
        ):  # fmt: skip
            self._tasks.start(work)
        if main.dhcp_leases != NONE:
            leases = DhcpLeases(Path(main.dhcp_leases), run_dir, self._loop.time)
            self._tasks.start(leases.follow(self._table.clients, self._lifecycle.departures.dhcp_leases_ended))
        self._ready = True
        if self._snapshot:  # links changed meanwhile
            self._links_changed(self._snapshot)
        LOG.info(line("ready", version=__version__, mode=self._fallback.mode.value, backend=self._ruleset.name,
                      wan=self._router.wan_device, seconds=f"{self._loop.time() - self._started:.3f}"))  # fmt: skip

    async def stop(self, *, successor: Config | None = None) -> None:
        """End everything but what is open: the kernel's rules, the carrier's grants and the journal stay.

        ``successor``: what a reload goes on with. Without one, iptables rules go, which do not expire; and all rules go
        when it has them elsewhere, for it will not find them.
        """
        self._successor = successor
        self._ready = False
        await self._tasks.stop()
        while self._closers:
            try:
                result = self._closers.pop()()
                if asyncio.iscoroutine(result):
                    await result
            except Exception as error:  # what comes after it has to be closed all the same
                LOG.error(line("not_closed", error=error), exc_info=not isinstance(error, OurFault))

    async def release(self) -> None:
        """Close every mapping; ``stop`` has to follow."""
        self._serving = False
        try:
            await self._doors.close()
            await self._restart.release()
            await self._ruleset.release()
        finally:
            self.released.set()

    # -- making --------------------------------------------------------------------------------------------------

    async def _make_hall(self, secret: bytes, run_dir: Path, state_dir: Path) -> None:
        main, events = self._config.main, asyncio.Queue[UpstreamEvent]()
        self._table, self._pinhole_table = MappingTable(self._shown_changed), PinholeTable()
        self._journal = Journal(
            run_dir, state_dir, self._loop.time, lambda: self._table.system_update_id, persists=main.persist == "all"
        )
        self._flash_copy = FlashCopy(self._journal, main.state_dir)
        self._closers.append(self._flash_copy.close)
        self._backend = await asyncio.to_thread(choose_backend, main.backend, main.nft_table)
        self._ruleset = GroupCommit(self._backend, clock=self._loop.time, at_work=heap.keep, at_rest=heap.rest)
        self._closers.append(self._close_ruleset)
        self._local = LocalUpstream(self._router, events.put_nowait)
        self._closers.append(self._local.close)
        self._fallback = FallbackUpstream(
            self._local, routed=self._nat.routed, fall_back=main.unreachable_policy == "local", emit=events.put_nowait
        )
        self._pcp = self._make_pcp(secret)
        self._ports = PortsInUse(self._router, self._table, self._pcp_port)
        flow_cutter = FlowCutter(self._router.is_lan_address)
        self._closers.append(flow_cutter.close)
        established = Established(flow_cutter, self._router, cut_ended=main.cut_flows)
        self._router_leg = RouterLeg(main, self._ruleset, self._router, self._table, self._pinhole_table, established)
        self._way = WayToCarrier(
            config=self._config, upstreams=self._upstreams, router=self._router, router_leg=self._router_leg,
            local=self._local, pcp=self._pcp,
        )  # fmt: skip
        self._port_policy = PortPolicy(main, self._table, self._fallback)
        self._upstream_leg = UpstreamLeg(main, self._fallback, self._journal, self._port_policy)
        wanted = static_requests(self._config.mappings)
        self._policy = policy = Policy(
            main, self._config.permissions, self._router, self._table, static=wanted, clock=self._loop.time
        )
        self._lifecycle = Lifecycle(
            main=main, table=self._table, policy=policy, upstream=self._fallback, router_leg=self._router_leg,
            upstream_leg=self._upstream_leg, journal=self._journal, port_policy=self._port_policy,
            changed=self._upstream_changed,
        )  # fmt: skip
        self._pinholes = Pinholes(
            main=main, table=self._pinhole_table, policy=policy, router_leg=self._router_leg, journal=self._journal
        )
        self._closers += [self._router_leg.stop, self._pinholes.stop, self._lifecycle.stop]
        self._interworking = Interworking(
            main=main, table=self._table, policy=policy, upstream=self._fallback, router=self._router,
            lifecycle=self._lifecycle, in_use=self._ports.holds, port_policy=self._port_policy,
        )  # fmt: skip
        self._internal_tuples = InternalTuples(
            table=self._table, policy=policy, upstream=self._fallback, interworking=self._interworking,
            lifecycle=self._lifecycle,
        )  # fmt: skip
        self._static = StaticMappings(wanted, self._interworking, self._table)
        self._closers.append(self._static.stop)
        self._restart = Restart(
            table=self._table, upstream=self._fallback, router_leg=self._router_leg, upstream_leg=self._upstream_leg,
            journal=self._journal, lifecycle=self._lifecycle, pinholes=self._pinholes,
            static=self._static,
        )  # fmt: skip
        self._tasks.start(self._lifecycle.run(events))

    async def _start_ruleset(self) -> None:
        try:
            await self._ruleset.start()
        except RulesetError as error:  # the firewall may be loaded after us
            self._router_leg.failed(error)
        news = RulesetNews(self._ruleset.thread_id)
        self._closers.append(news.close)
        self._ruleset_watch = RulesetWatch(
            news, self._router_leg, self._ports, self._backend, self._config.main.nft_table, self._move_rules
        )

    def _make_pcp(self, secret: bytes) -> PcpUpstream | None:
        if self._upstreams[0].type == "none":
            return None
        pcp = PcpUpstream(
            self._config.main, self._upstreams[0], secret=secret, rng=random.SystemRandom(),
            emit=self._fallback.receive, is_local=self._router.is_lan_address,
            peer_changed=self._peer_changed,
        )  # fmt: skip
        self._fallback.attach(pcp)
        self._closers.append(pcp.close)
        return pcp

    def _make_doors(self, secret: bytes, state_dir: Path) -> None:
        main = self._config.main
        boot_id, hosts = BootId(state_dir), LanHosts()
        identity = device_identity(main, secret, boot_id.value)
        variables = StateVariables(
            identity=identity, interworking=self._interworking, upstream=self._fallback, router=self._router,
            pinholes=self._pinholes,
        )  # fmt: skip
        events = EventPublisher(
            read=variables.evented, http_port=main.http_port, max_subscriptions=main.max_subscriptions,
            max_subscriptions_per_host=main.max_subscriptions_per_host, rng=random.SystemRandom(),
            host_of=hosts.host_of,
        )  # fmt: skip
        self._closers.append(events.close)
        igd_handler = IgdHandler(
            identity=identity, igd_version=main.igd_version, variables=variables, subscriptions=events.handle,
            services=(
                ConnectionService(self._interworking, HostNames(SystemResolver().look_up, main.soap_deadline)),
                LinkService(variables), FirewallService(self._pinholes),
            ),
        )  # fmt: skip
        http = HttpServer(
            igd_handler.handle, self._router.on_lan_device, identity.server,
            max_connections=main.max_connections, max_connections_per_host=main.max_connections_per_host,
            host_of=hosts.host_of,
        )  # fmt: skip
        pcp_server = PcpServer(
            main=main, tuples=self._internal_tuples, outside=self._interworking.outside, mappings=self._table,
            admit=self._router.on_lan_device, host_of=hosts.host_or_stranger,
        )  # fmt: skip
        self._status = Status(
            config=self._config, upstreams=self._upstreams, router=self._router, table=self._table,
            interworking=self._interworking, upstream_leg=self._upstream_leg, router_leg=self._router_leg,
            ruleset=self._ruleset, fallback=self._fallback, pcp=self._pcp, igd_handler=igd_handler, http=http,
            events=events, troubles=self._troubles, started=self._started,
            pinholes=self._pinhole_table, ports=self._ports, policy=self._policy, static=self._static,
            port_policy=self._port_policy, pcp_server=pcp_server,
        )  # fmt: skip
        self._doors = LanDoors(main=main, identity=identity, boot_id=boot_id, http=http, pcp_server=pcp_server,
                               router=self._router, status=self._status, host_of=hosts.host_or_stranger)  # fmt: skip
        self._closers.append(self._doors.close)
        self._watchers += [events.poke, pcp_server.outside_changed]

    # -- the network ---------------------------------------------------------------------------------------------

    def _wan_in_use(self) -> str:
        return self._router.wan_device if self._router.wan_address else ""

    def _links_changed(self, snapshot: LinkSnapshot) -> None:
        self._snapshot = snapshot
        if not self._ready:
            return
        if (upstreams := sections_in_use(self._config.upstreams, snapshot)) != self._upstreams:
            LOG.warning(line("another_wan", device=upstreams[0].device, upstream=upstreams[0].name))
            self._wish_restart()
            return
        wan, lans = self._router.wan, self._router.lans
        self._router.update(snapshot)
        if self._router.wan == wan:  # the way to a server may be another one all the same, over IPv6 above all
            self._way.network_changed()
            self._tasks.start(self._way.tell_ruleset())
        else:
            LOG.info(line("wan_changed", device=self._router.wan_device, address=self._router.wan_address or "none"))
            self._tasks.start(self._wan_changed())
        if self._router.lans != lans:
            LOG.info(line("lan_changed", lans=", ".join(f"{lan.device} {lan.interface}" for lan in self._router.lans)))
            self._tasks.start(self._lans_changed())
        self._lifecycle.departures.lans_changed()  # in any case: addresses not named any more keep hosts on a LAN, too
        self._pinholes.lans_changed()
        self._static.look_again()

    def _shown_changed(self) -> None:
        """Something that control points are shown may be another."""
        for changed in self._watchers:
            changed()

    def _upstream_changed(self) -> None:
        """What the upstream gives may be another."""
        self._shown_changed()
        self._static.look_again()

    async def _wan_changed(self) -> None:
        self._shown_changed()
        self._nat.look_again()
        self._way.network_changed()
        await self._way.tell_ruleset()
        if self._router.wan_address is not None:
            self._lifecycle.wan_changed()
        await self._ports.look()

    async def _lans_changed(self) -> None:
        await self._way.tell_ruleset()
        if self._serving:
            await self._doors.open(self._router.lans)

    def _peer_changed(self) -> None:
        self._tasks.start(self._way.tell_ruleset())

    def _pcp_port(self) -> int | None:
        peer = self._pcp.peer if self._pcp else None
        return peer.port if peer else None

    # -- small things --------------------------------------------------------------------------------------------

    def _move_rules(self) -> None:
        self._moves = True
        self._wish_restart()

    async def _close_ruleset(self) -> None:
        old, new = self._config.main, self._successor and self._successor.main
        moves = self._moves or (new and (new.backend, new.nft_table) != (old.backend, old.nft_table))
        try:
            if moves or old.persist == "none":
                await self._ruleset.release()
        finally:
            await self._ruleset.close(keep_rules=new is not None)
