# SPDX-License-Identifier: Apache-2.0
"""Random histories of LAN, router and carrier: what control points were told is so, and nothing is left behind."""

from __future__ import annotations

import asyncio
import tempfile
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from igdpcp.config import StaticMappingConfig
from igdpcp.errors import Refusal
from igdpcp.iwf import translate
from igdpcp.iwf.internal_tuples import Opened
from igdpcp.iwf.queries import SPARE_SLOTS
from igdpcp.model import Endpoint, Mapping, MappingRequest, MappingState, Mode, Owner, Protocol, Requester
from igdpcp.pcp.message import ResultCode
from tests.lab.simulated_carrier.profiles import Profile
from tests.support.hall import A, B
from tests.support.virtual_time import VirtualTimeLoop
from tests.support.whole_path import OTHER_OWN, OWN, WholePath, path_of

HOSTS = st.sampled_from([A, B])
PORTS = st.integers(8000, 8004)
CLIENT_PORTS = st.integers(8000, 8002)
REMOTE_HOSTS = st.sampled_from(["", "", "198.51.100.9", "198.51.100.10"])
LEASES = st.sampled_from([0, 1, 20, 200, 3600])
PAUSES = st.sampled_from([0.0, 0.001, 0.015, 0.03, 1.0, 6.0, 40.0])
LIFETIME = 600  # seconds that the carrier grants at most
SETTLED = 4000.0  # seconds without trouble in which everything is retried, recovered, expired or given back
PER_HOST, ALTOGETHER = 4, 6
QUEUED = 8  # changes that may be ahead of one in the kernel's queue
REFUSALS = {501, 718, 728, 729}
NONCES = st.sampled_from([b"", b"n" * 12, b"o" * 12])  # of NAT-PMP none
TOLD = {
    ResultCode.NOT_AUTHORIZED, ResultCode.NETWORK_FAILURE, ResultCode.NO_RESOURCES, ResultCode.USER_EX_QUOTA,
    ResultCode.CANNOT_PROVIDE_EXTERNAL,
}  # fmt: skip
STATIC = StaticMappingConfig("held", (Protocol.TCP,), 8004, Endpoint(IPv4Address(A), 9000))
PROFILE = Profile(shortest=20, longest=LIFETIME)


class History(RuleBasedStateMachine):
    """``path`` is what it happens to; ``asking`` the requests that are not answered yet."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.directory = tempfile.TemporaryDirectory()
        self.asking: set[asyncio.Task[None]] = set()
        self.closing = 0  # deletions and other ends on their way: an answer may be overtaken by them

    @initialize(
        routed=st.booleans(), policy=st.sampled_from(["local", "error"]), seed=st.integers(0, 3),
        port_policy=st.sampled_from(["strict", "alias", "learn-block"]), static=st.booleans(),
        others_ports=st.sampled_from(["error", "relay"]), checks=st.booleans(),
    )  # fmt: skip
    def begins(
        self, routed: bool, policy: str, seed: int, port_policy: str, static: bool, others_ports: str, checks: bool
    ) -> None:
        async def begin() -> None:
            self.path = WholePath(
                Path(self.directory.name), PROFILE, self.patch, seed=seed, routed=routed, unreachable_policy=policy,
                external_ip_probe="off", max_mappings_per_host=PER_HOST, max_mappings=ALTOGETHER,
                port_policy=port_policy, static=[STATIC] if static else [], specific_other_cp=others_ports,
                local_conflict_check=checks,
            )  # fmt: skip
            await self.path.start()

        self.runner.run(begin())

    # -- what control points do ----------------------------------------------------------------------------------

    @rule(
        host=HOSTS, port=PORTS, client_port=CLIENT_PORTS, remote=REMOTE_HOSTS, lease=LEASES,
        version=st.sampled_from([1, 2]), pause=PAUSES,
    )  # fmt: skip
    def adds(self, host: str, port: int, client_port: int, remote: str, lease: int, version: int, pause: float) -> None:
        self._ask(self._add(host, port, client_port, remote, lease, version, any_port=False), pause)

    @rule(
        host=HOSTS, port=st.one_of(st.just(0), PORTS), client_port=CLIENT_PORTS, remote=REMOTE_HOSTS, lease=LEASES,
        pause=PAUSES,
    )  # fmt: skip
    def adds_any(self, host: str, port: int, client_port: int, remote: str, lease: int, pause: float) -> None:
        self._ask(self._add(host, port, client_port, remote, lease, 2, any_port=True), pause)

    @rule(
        host=HOSTS, port=st.one_of(st.just(0), PORTS), client_port=CLIENT_PORTS, lease=LEASES.filter(bool),
        nonce=NONCES, exact=st.booleans(), pause=PAUSES,
    )  # fmt: skip
    def maps(self, host: str, port: int, client_port: int, lease: int, nonce: bytes, exact: bool, pause: float) -> None:
        """In PCP or NAT-PMP."""
        self._ask(self._map(host, port, client_port, lease, nonce, exact and port > 0), pause)

    @rule(host=HOSTS, client_port=CLIENT_PORTS, nonce=NONCES, pause=PAUSES)
    def unmaps(self, host: str, client_port: int, nonce: bytes, pause: float) -> None:
        self._ask(self._unmap(host, client_port, nonce), pause)

    @rule(host=HOSTS, port=PORTS, remote=REMOTE_HOSTS, pause=PAUSES)
    def deletes(self, host: str, port: int, remote: str, pause: float) -> None:
        self._ask(self._delete(host, port, remote), pause)

    @rule(host=HOSTS, first=PORTS, last=PORTS, pause=PAUSES)
    def deletes_a_range(self, host: str, first: int, last: int, pause: float) -> None:
        self._ask(self._delete_range(host, min(first, last), max(first, last)), pause)

    @rule(host=HOSTS, port=PORTS, pause=PAUSES)
    def queries(self, host: str, port: int, pause: float) -> None:
        self._ask(self._query(host, port), pause)

    @rule(host=HOSTS, pause=PAUSES)
    def leaves(self, host: str, pause: float) -> None:
        """Its DHCP lease ends."""
        self._ask(self._leave(host), pause)

    @rule(seconds=st.floats(0, 700))
    def time_passes(self, seconds: float) -> None:
        self._run(seconds)

    # -- what happens to the carrier, to the line and to the router ----------------------------------------------

    @rule(
        loss=st.sampled_from([0.0, 0.4, 1.0]), duplicate=st.sampled_from([0.0, 0.5]),
        delay=st.sampled_from([0.0, 900.0, 5000.0]),
    )  # fmt: skip
    def link_changes(self, loss: float, duplicate: float, delay: float) -> None:
        self.path.link.switches.set(loss=loss, duplicate=duplicate, reorder=duplicate, delay=delay)

    @rule(announce=st.booleans(), pause=PAUSES)
    def carrier_restarts(self, announce: bool, pause: float) -> None:
        self._soon(lambda: self.path.carrier_restarts(announce), pause)

    @rule(pause=PAUSES)
    def carrier_loses_its_state(self, pause: float) -> None:
        self._soon(self.path.carrier_loses_state, pause)

    @rule(quota=st.integers(0, 3), low=st.sampled_from([1024, 8002]))
    def carrier_becomes_mean(self, quota: int, low: int) -> None:
        self.path.server.use_profile(Profile(shortest=20, longest=LIFETIME, quota=quota, ports=(low, 65535)))

    @rule(port=PORTS, pause=PAUSES)
    def stranger_takes_a_port(self, port: int, pause: float) -> None:
        self._soon(lambda: self.path.stranger_takes(port), pause)

    @rule(own=st.sampled_from([OWN, OTHER_OWN, None]), pause=PAUSES)
    def wan_address_changes(self, own: Any, pause: float) -> None:
        self._soon(lambda: self.path.use_address(own), pause)

    @rule(fails=st.integers(0, 2), slow=st.sampled_from([0.0, 0.002, 0.02, 0.3]))
    def kernel_refuses_or_is_slow(self, fails: int, slow: float) -> None:
        self.path.ruleset.fails, self.path.ruleset.slow = fails, slow

    @rule(pause=PAUSES)
    def firewall_is_flushed(self, pause: float) -> None:
        self._ask(self.path.flush_rules(), pause)

    @rule(killed=st.booleans(), pause=PAUSES)
    def daemon_restarts(self, killed: bool, pause: float) -> None:
        async def restart() -> None:
            await (self.path.kill() if killed else self.path.stop())
            for task in self.asking:
                task.cancel()
            await asyncio.gather(*self.asking, return_exceptions=True)
            self.asking.clear()
            assert others() == []
            await self.path.start()
            await asyncio.sleep(pause)

        self.runner.run(restart())

    # -- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def quotas_are_kept(self) -> None:
        if hasattr(self, "path"):
            table = self.path.hall.table
            assert table.counted - len(self._static()) <= ALTOGETHER
            assert len(table.shadows) <= SPARE_SLOTS
            shown = [entry for each in table if each.visible for entry in each.entries]
            assert table.listed == len(list(table.listing())) == len(shown)
            assert all(table.held_by(each.request.client.address) <= PER_HOST for each in table)
            owners = [each.request.client for each in table if each.tuple_owner]
            assert len(owners) == len(set(owners))
            assert all(each.sharer.request.client == each.request.client for each in table if each.sharer)

    @invariant()
    def what_is_shown_is_in_the_kernel_and_runs(self) -> None:
        if not hasattr(self, "path"):
            return
        now, ruleset, hall = self.path.loop.time(), self.path.ruleset, self.path.hall
        shown = {mapping.id: mapping for mapping in hall.table if mapping.visible}
        for mapping in shown.values():
            assert mapping.first_end is None or mapping.first_end > now - 1
            assert mapping.state is MappingState.ENDING or (mapping.grant and mapping.grant.ends > now - 1)
        if self._in_flight() or hall.leg.problem or not ruleset.whole or self.path.own is None:
            return
        assert ruleset.live.keys() == shown.keys()
        for id, rule_of in ruleset.live.items():
            mapping = shown[id]
            assert mapping.grant is not None
            assert {rule_of.client} == {entry.request.client for entry in mapping.entries}
            assert rule_of.remote_hosts == mapping.remote_hosts
            assert rule_of.external == mapping.grant.external
            assert rule_of.wan_port == mapping.wan_port
            assert rule_of.wan_address == self.path.own
            if id not in hall.leg._extensions:  # that waits for others to share a change with
                assert ruleset.ends[id] <= mapping.grant.ends + 1 + QUEUED * ruleset.slow

    def teardown(self) -> None:
        try:
            if hasattr(self, "path"):
                self._end()
        finally:
            if hasattr(self, "path"):
                self.path.close()
            loop = self.runner.get_loop()
            self.runner.close()
            self.patch.undo()
            self.directory.cleanup()
        assert isinstance(loop, VirtualTimeLoop)
        assert loop.troubles == []

    def _end(self) -> None:
        path = self.path
        path.link.switches.set(loss=0.0, duplicate=0.0, reorder=0.0, delay=0.0)
        path.ruleset.fails, path.ruleset.slow = 0, 0.0
        path.server.use_profile(PROFILE)
        self._soon(lambda: path.use_address(path.own or OWN), 0.0)
        self._run(SETTLED)
        self.everything_agrees()
        self._ask(self._delete_all(), 0.0)
        self._run(SETTLED)
        self.nothing_is_left()

    def everything_agrees(self) -> None:
        """Nothing is in flight, and nothing has disturbed us for an hour."""
        path = self.path
        assert self._in_flight() == []
        assert path.hall.leg.problem is None
        taken = path.strangers_ports()
        assert path.carrier_holds() == path.promised()
        filters = path.carrier_filters()
        for mapping in path.hall.table:
            if mapping.visible and mapping.grant and mapping.grant.upstream != Mode.LOCAL:
                assert filters[path_of(mapping)] == set(mapping.remote_hosts)
            assert mapping.state in (MappingState.ACTIVE, MappingState.RETRYING)
            local = mapping.grant is not None and mapping.grant.upstream == Mode.LOCAL
            if local or mapping.state is MappingState.RETRYING:
                assert mapping.external_port in taken, mapping
        assert {each.id for each in path.journalled()} == {each.id for each in path.hall.table} | self._owed()
        assert path.hall.table.shadows == []
        if path.hall.static.wanted and STATIC.external_port not in taken:
            assert path.hall.static.open, path.hall.static.problems

    def nothing_is_left(self) -> None:
        path, hall = self.path, self.path.hall
        assert list(hall.table) == []
        assert path.ruleset.rules == {}
        assert path.carrier_holds() == set()
        assert {each.id for each in path.journalled()} == self._owed()
        assert hall.upstream_leg.leaving == set()
        assert hall.lifecycle._waiters._outcomes == {}
        assert hall.local.granted() == []
        self.runner.run(path.stop())
        path.close()
        self._run(0.0)
        assert self.runner.run(others_later()) == []
        assert pending_timers(self.runner.get_loop()) == []

    # -- how it is done ------------------------------------------------------------------------------------------

    async def _add(
        self, host: str, port: int, client_port: int, remote: str, lease: int, version: int, any_port: bool
    ) -> None:
        began = self.path.loop.time()
        reply = await self.path.hall.add(
            port, host, version=version, any_port=any_port, InternalPort=client_port, LeaseDuration=lease,
            RemoteHost=remote,
        )  # fmt: skip
        if reply.code:
            assert reply.code in REFUSALS, reply.code
            return
        if any_port:
            port = int(reply["ReservedPort"])
        if not lease or self.path.loop.time() < began + lease:  # else it has ended before it was answered
            self._is_open(host, port, client_port, remote)

    def _is_open(self, host: str, port: int, client_port: int, remote: str) -> None:
        """What a 200 promises, at the moment at which it leaves."""
        path = self.path
        mapping = path.hall.table.find(Protocol.TCP, port)
        if self.closing:
            return
        assert path.own is not None
        assert mapping is not None
        assert mapping.visible
        assert mapping.grant
        assert str(mapping.request.client.address) == host
        assert mapping.entry(IPv4Address(remote) if remote else None)
        if not path.hall.leg.problem and path.ruleset.whole:
            rule_of = path.ruleset.live[mapping.id]
            assert str(rule_of.client) == f"{host}:{client_port}"
            assert rule_of.external == mapping.grant.external
            assert not rule_of.remote_hosts or IPv4Address(remote) in rule_of.remote_hosts
        if mapping.grant.upstream == Mode.LOCAL:
            assert mapping.wan_port == port
        else:
            assert mapping.mode is Mode.ROUTED or mapping.grant.internal == path.own
            assert path.disturbed or path_of(mapping) in path.carrier_holds()

    async def _map(self, host: str, port: int, client_port: int, lease: int, nonce: bytes, exact: bool) -> None:
        address, owner = IPv4Address(host), Owner.PCP if nonce else Owner.NATPMP
        request = MappingRequest(
            Requester(address, owner), Protocol.TCP, port, Endpoint(address, client_port), lease=lease,
            any_port=not exact, nonce=nonce,
        )  # fmt: skip
        began = self.path.loop.time()
        try:
            opened = await self.path.hall.tuples.map(request)
        except Refusal as refusal:
            self._is_told(refusal)
            return
        if self.path.loop.time() < began + lease:
            self._is_reachable(request.client, opened)

    def _is_told(self, refusal: Refusal) -> None:
        assert translate.pcp_refusal(refusal)[0] in TOLD, refusal

    def _is_reachable(self, client: Endpoint, opened: Opened) -> None:
        """What a success promises, at the moment at which it is sent."""
        path = self.path
        if self.closing:
            return
        held = [each for each in path.hall.table.leading_to(Protocol.TCP, client.address, client.port) if each.visible]
        mapping = next(each for each in held if each.grant and each.grant.external == opened.external)
        assert mapping.tuple_owner or mapping.request.requester.owner is Owner.STATIC
        assert path.own is not None
        if not path.hall.leg.problem and path.ruleset.whole:
            rule_of = path.ruleset.live[mapping.id]
            assert (rule_of.client, rule_of.external) == (client, opened.external)
            assert rule_of.remote_hosts == ()
        assert mapping.grant
        if mapping.grant.upstream != Mode.LOCAL:
            assert path.disturbed or path_of(mapping) in path.carrier_holds()

    async def _unmap(self, host: str, client_port: int, nonce: bytes) -> None:
        requester = Requester(IPv4Address(host), Owner.PCP if nonce else Owner.NATPMP)
        self.closing += 1
        try:
            await self.path.hall.tuples.unmap(requester, Protocol.TCP, client_port, nonce)
        except Refusal as refusal:
            self._is_told(refusal)
        finally:
            self.closing -= 1

    async def _query(self, host: str, port: int) -> None:
        reply = await self.path.hall.specific(port, host)
        assert reply.code in {0, 501, 714, 718}, reply.code
        if not reply.code:
            assert reply["InternalClient"] == host

    async def _leave(self, host: str) -> None:
        table, client = self.path.hall.table, IPv4Address(host)
        self.path.hall.lifecycle.departures.dhcp_leases_ended([client])
        assert all(each.request.client.address != client or self._is_static(each) for each in table)
        self.closing += 1  # who was told by now that it is open
        await asyncio.sleep(0)
        self.closing -= 1

    async def _delete(self, host: str, port: int, remote: str) -> None:
        self.closing += 1
        try:
            reply = await self.path.hall.soap(
                "DeletePortMapping", host, 1, RemoteHost=remote, ExternalPort=port, Protocol="TCP"
            )
        finally:
            self.closing -= 1
        assert reply.code in {0, 501, 606, 714}, reply.code

    async def _delete_range(self, host: str, first: int, last: int) -> None:
        self.closing += 1
        try:
            reply = await self.path.hall.soap(
                "DeletePortMappingRange", host, 2, StartPort=first, EndPort=last, Protocol="TCP", Manage=0
            )
        finally:
            self.closing -= 1
        assert reply.code in {0, 501, 730, 606}, reply.code

    async def _delete_all(self) -> None:
        await self.path.hall.static.stop()
        for mapping in list(self.path.hall.table):
            await self.path.hall.lifecycle.close([mapping])

    def _ask(self, work: Any, pause: float) -> None:
        async def ask() -> None:
            self.asking.add(asyncio.get_running_loop().create_task(work))
            await asyncio.sleep(pause)

        self.runner.run(ask())
        self._look_at_answers()

    def _soon(self, happens: Any, pause: float) -> None:
        async def happen() -> None:
            happens()
            await asyncio.sleep(pause)

        self.runner.run(happen())
        self._look_at_answers()

    def _run(self, seconds: float) -> None:
        self.runner.run(asyncio.sleep(seconds))
        self._look_at_answers()

    def _look_at_answers(self) -> None:
        for task in [task for task in self.asking if task.done()]:
            self.asking.discard(task)
            task.result()

    def _owed(self) -> set[str]:
        """Deletions of which every copy was lost: told when the carrier has been away, or at a start."""
        return set(self.path.pcp._debts._owed)

    def _in_flight(self) -> list[Any]:
        hall = self.path.hall
        lasting = {hall._consumer, *hall.static._tasks._tasks}
        tasks = asyncio.all_tasks(self.runner.get_loop()) - lasting
        return [task for task in tasks if not task.done() and not _waits_for_news(task)]

    def _static(self) -> list[Mapping]:
        return [each for each in self.path.hall.table if self._is_static(each)]

    def _is_static(self, mapping: Mapping) -> bool:
        return mapping.request.requester.owner is Owner.STATIC


def _waits_for_news(task: asyncio.Task[Any]) -> bool:
    """Whether it is the part of a static mapping's task that does."""
    return getattr(task.get_coro(), "__qualname__", "") == "Event.wait"


def others() -> list[Any]:
    """All tasks but this one."""
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def others_later() -> list[Any]:
    await asyncio.sleep(0)
    return others()


def pending_timers(loop: Any) -> list[Any]:
    return [handle for handle in loop._scheduled if not handle.cancelled()]


TestHistories = History.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, report_multiple_bugs=False)
