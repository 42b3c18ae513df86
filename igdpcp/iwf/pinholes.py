# SPDX-License-Identifier: Apache-2.0
"""IPv6 pinholes (WANIPv6FirewallControl:1): openings of the router's own firewall, never asked of the upstream.

A pinhole is in the table from the moment that its request is admitted. It is promised when the kernel has its rules;
one whose first rules the kernel refuses is forgotten, and one that only gets a new lease keeps the old one then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace

from igdpcp.config import MainConfig
from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf.absences import Absences
from igdpcp.iwf.background import Tasks, Timers
from igdpcp.iwf.journal import Journal
from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.log import SparingLog
from igdpcp.model import IPAddress, Pinhole, PinholeRequest, Requester


class Pinholes:
    """Answers control points; methods are called on the event loop and raise Refusal."""

    firewall_enabled = True  # whatever else filters: a pinhole can do no harm where nothing does

    def __init__(
        self,
        *,
        main: MainConfig,
        table: PinholeTable,
        policy: Policy,
        router_leg: RouterLeg,
        journal: Journal,
    ) -> None:
        self._main = main
        self._table = table
        self._policy = policy
        self._router_leg = router_leg
        self._journal = journal
        self._now: Callable[[], float] = asyncio.get_running_loop().time
        self._opening: set[int] = set()  # never yet in the kernel
        self._log = SparingLog(logging.getLogger("igdpcp.iwf"))
        self._timers = Timers[int](self._lease_ended)
        self._tasks = Tasks()
        self._absences = Absences(policy.serves, self._client_gone)

    @property
    def inbound_allowed(self) -> bool:
        """InboundPinholeAllowed: whether this router is to have pinholes at all."""
        return self._main.max_pinholes > 0

    def must_be_allowed(self) -> None:
        """Raises Refusal where ``inbound_allowed`` is False, which comes before all that a request may have wrong."""
        if not self.inbound_allowed:
            raise Refusal(Reason.INBOUND_NOT_ALLOWED)

    def named(self, name: str) -> Pinhole | None:
        return next((pinhole for pinhole in self._table if pinhole.name == name), None)

    async def add(self, request: PinholeRequest) -> Pinhole:
        """Open a pinhole, or begin the lease of the same one anew."""
        self.must_be_allowed()
        self._policy.admit_pinhole(request)
        lease_ends = self._now() + request.lease
        if held := self._table.find(request):
            return await self._renew(held, replace(held, request=request, lease_ends=lease_ends))
        self._policy.has_room_for_pinhole(request, self._table)
        pinhole = self._table.add(request, lease_ends)
        try:
            self._journal.record(pinhole)
        except Exception:
            self._table.forget(pinhole.id)
            raise
        self._opening.add(pinhole.id)
        await self._settle(pinhole, pinhole)
        self._tell("pinhole_open", pinhole)
        return pinhole

    async def update(self, requester: Requester, unique_id: int, lease: int) -> None:
        """Begin the lease anew, with another length."""
        held = self._own(requester, unique_id)
        request = replace(held.request, lease=lease)
        await self._renew(held, replace(held, request=request, lease_ends=self._now() + lease))

    async def delete(self, requester: Requester, unique_id: int) -> None:
        """Close a pinhole; connections that came in by it go on."""
        pinhole = self._own(requester, unique_id)
        self._forget(pinhole)
        await self._router_leg.remove_pinhole(pinhole)

    async def packets(self, requester: Requester, unique_id: int) -> int:
        """How many packets it has let in. Only the first of a connection comes by it: the others are known by then."""
        pinhole = self._own(requester, unique_id)
        try:
            return await self._router_leg.pinhole_packets(pinhole)
        except RulesetError as error:
            raise Refusal(Reason.RULESET, str(error)) from error

    async def working(self, requester: Requester, unique_id: int) -> bool:
        """True once something has come in; Refusal before that (WANIPv6FirewallControl:1, CheckPinholeWorking)."""
        if not await self.packets(requester, unique_id):
            raise Refusal(Reason.NO_TRAFFIC, f"id {unique_id}")
        return True

    # -- what happens by itself ----------------------------------------------------------------------------------

    def restore(self, left: Iterable[Pinhole]) -> None:
        """Take over what an earlier process left and what may still be; the next sync brings the rules."""
        for pinhole in left:
            try:
                self._adopt(pinhole)
            except Refusal as refusal:
                self._tell("pinhole_not_adopted", pinhole, reason=refusal)
                self._journal.gone(pinhole.name)

    def _adopt(self, pinhole: Pinhole) -> None:
        self.must_be_allowed()
        if pinhole.lease_ends <= self._now():
            raise Refusal(Reason.NO_SUCH_PINHOLE, "its lease has ended")
        if self._table.get(pinhole.id) or self._table.find(pinhole.request):
            raise Refusal(Reason.PINHOLE_SPACE, "another one has its place")
        self._policy.permit_pinhole(pinhole.request)
        self._table.restore(pinhole)
        self._watch(pinhole)

    def lans_changed(self) -> None:
        """The LANs are others, or were just found: what leads to an address that has left them ends when that lasts."""
        self._absences.look(pinhole.request.client for pinhole in self._table)
        for pinhole in self._table if self._policy.knows_lans else ():
            try:
                self._policy.permit_pinhole(pinhole.request)
            except Refusal:
                self._end(pinhole, "pinhole_not_permitted")

    def _client_gone(self, address: IPAddress) -> None:
        for pinhole in self._table:
            if pinhole.request.client == address:
                self._end(pinhole, "pinhole_led_astray")

    def close_all(self) -> None:
        """Forget every pinhole; whoever calls takes the rules away."""
        for pinhole in self._table:
            self._forget(pinhole)

    async def stop(self) -> None:
        """End the work in flight; rules and journal stay as they are."""
        self._timers.stop_all()
        self._absences.stop()
        await self._tasks.stop()

    def _lease_ended(self, id: int) -> None:
        if pinhole := self._table.get(id):
            self._end(pinhole, "pinhole_lease_ended")

    def _end(self, pinhole: Pinhole, event: str) -> None:
        self._tell(event, pinhole)
        self._forget(pinhole)
        self._tasks.start(self._router_leg.remove_pinhole(pinhole))

    # -- small things --------------------------------------------------------------------------------------------

    def _own(self, requester: Requester, unique_id: int) -> Pinhole:
        self.must_be_allowed()
        pinhole = self._table.get(unique_id)
        if pinhole is None:
            raise Refusal(Reason.NO_SUCH_PINHOLE, f"id {unique_id}")
        self._policy.may_use_pinhole(requester, pinhole)
        return pinhole

    async def _renew(self, held: Pinhole, renewed: Pinhole) -> Pinhole:
        self._table.update(renewed)
        self._journal.note(renewed)
        await self._settle(renewed, held)
        return renewed

    async def _settle(self, pinhole: Pinhole, before: Pinhole) -> None:
        """Bring this version into the kernel, also when the caller is cancelled; raises Refusal."""
        self._watch(pinhole)
        await asyncio.shield(self._tasks.start(self._put(pinhole, before)))

    async def _put(self, pinhole: Pinhole, before: Pinhole) -> None:
        """What a refusal of the kernel leaves is up to the latest version that was asked for."""
        if self._table.get(pinhole.id) is None:
            raise Refusal(Reason.CANCELLED)
        try:
            await self._router_leg.put_pinhole(pinhole)
        except RulesetError as error:
            if self._table.get(pinhole.id) is pinhole:
                self._not_in_force(pinhole, before)
            raise Refusal(Reason.RULESET, str(error)) from error
        if self._table.get(pinhole.id) is None:
            raise Refusal(Reason.CANCELLED)  # whoever forgot it has queued the removal behind our change
        self._opening.discard(pinhole.id)

    def _not_in_force(self, pinhole: Pinhole, before: Pinhole) -> None:
        if pinhole.id in self._opening:
            self._forget(pinhole)
            self._tasks.start(self._router_leg.remove_pinhole(pinhole))
        else:
            self._table.update(before)
            self._journal.note(before)
            self._watch(before)

    def _forget(self, pinhole: Pinhole) -> None:
        self._timers.stop(pinhole.id)
        self._opening.discard(pinhole.id)
        self._table.forget(pinhole.id)
        self._journal.gone(pinhole.name)

    def _tell(self, event: str, pinhole: Pinhole, reason: Refusal | None = None) -> None:
        request = pinhole.request
        self._log.write(
            logging.INFO, event, request.client, id=pinhole.id, protocol=request.protocol.name,
            port=request.client_port, remote_host=request.remote_host, remote_port=request.remote_port or None,
            reason=reason,
        )  # fmt: skip

    def _watch(self, pinhole: Pinhole) -> None:
        self._timers.set(pinhole.id, pinhole.lease_ends)
