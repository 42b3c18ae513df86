# SPDX-License-Identifier: Apache-2.0
"""LAN hosts that are gone: no LAN has their address any more, or their DHCP lease has ended. So their mappings end.

So do those that are not permitted on the LAN that their host turns out to be on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

from igdpcp.errors import Refusal
from igdpcp.iwf.absences import Absences
from igdpcp.iwf.mapping_log import MappingLog
from igdpcp.iwf.policy import Policy
from igdpcp.iwf.table import MappingTable
from igdpcp.model import IPAddress, Mapping, Owner


class Departures:
    """``end`` is called with each mapping that has to end, and what is left where only some of its entries have to."""

    def __init__(self, table: MappingTable, policy: Policy, end: Callable[[Mapping, Mapping | None], None]) -> None:
        self._table = table
        self._policy = policy
        self._end = end
        self._absences = Absences(policy.serves, self._absence_lasted)
        self._log = MappingLog()

    def lans_changed(self) -> None:
        """The LANs are others, or were just found: what leads to a host that has left them ends when that lasts."""
        self._absences.look(mapping.request.client.address for mapping in self._table)
        if self._policy.knows_lans:
            self._end_what_is_not_permitted()

    def dhcp_leases_ended(self, clients: Collection[IPAddress]) -> None:
        """Of these hosts (RFC 6970 section 5.10). What the operator made stays: it was not the host that asked."""
        self._end_all(clients, "dhcp_lease_ended", spared=(Owner.OPERATOR, Owner.STATIC))

    def stop(self) -> None:
        """End nothing any more."""
        self._absences.stop()

    def _absence_lasted(self, address: IPAddress) -> None:
        self._end_all({address}, "mapping_led_astray", spared=(Owner.STATIC,))

    def _end_what_is_not_permitted(self) -> None:
        """While a host is on no LAN nobody knows which rules are for it, so what it has open was let be."""
        for mapping in self._table:
            if not mapping.visible or not self._policy.serves(mapping.request.client.address):
                continue
            left: Mapping | None = None
            with suppress(Refusal):
                left = self._policy.permitted(mapping)
            if left is not mapping:
                self._log.tell("mapping_not_permitted", mapping)
                self._end(mapping, left)

    def _end_all(self, clients: Collection[IPAddress], event: str, spared: tuple[Owner, ...]) -> None:
        for mapping in self._table:
            if mapping.request.client.address not in clients:
                continue
            left = mapping.keeping(lambda entry: entry.request.requester.owner in spared)
            if left is not mapping:
                self._log.tell(event, mapping)  # also of what is being deleted: a silent carrier would keep it open
                self._end(mapping, left)
