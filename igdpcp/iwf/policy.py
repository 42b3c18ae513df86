# SPDX-License-Identifier: Apache-2.0
"""Who may open, see and close what: own address only, permission rules, how much one host may hold, and how fast.

What hosts may do is for the rules to say; external ports that are never mapped, and those that the configuration itself
has opened, are not theirs whatever the rules say.

A permission rule that names an IPv4 network is for mappings only, one that names an IPv6 network for pinholes only; to
these it applies when it has the pinhole's port among its external and its internal ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from igdpcp.config import ANY_ADDRESS, ANY_PORTS, DEFAULT_PERMISSIONS, MainConfig, PermissionConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf import translate
from igdpcp.iwf.fair_share import FairShare
from igdpcp.iwf.interfaces import Router, StateChanged, UpstreamEvent
from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.iwf.table import MappingTable
from igdpcp.log import RateLimit
from igdpcp.model import (
    PCP_CLIENT_PORT,
    PCP_SERVER_PORT,
    Activation,
    IPAddress,
    Mapping,
    MappingRequest,
    Owner,
    Pinhole,
    PinholeRequest,
    Protocol,
    Requester,
)

PCP_PORTS = (PCP_CLIENT_PORT, PCP_SERVER_PORT)  # of UDP, which no PCP server may map (RFC 6887 section 11.3)
BURST_SECONDS = 10  # a host may use what it gets in so long at once


class Policy:
    """Decides before anything else is touched; the operator at the control socket is only held to ``max_mappings``.

    ``static`` is what the configuration wants open. ``refusals`` counts those that are about how much and how fast.
    """

    def __init__(
        self,
        main: MainConfig,
        permissions: tuple[PermissionConfig, ...],
        router: Router,
        table: MappingTable,
        *,
        static: Iterable[MappingRequest] = (),
        clock: Callable[[], float],
    ) -> None:
        self._main = main
        self._permissions = permissions or DEFAULT_PERMISSIONS
        self.knows_lans = any(rule.lan for rule in self._permissions)  # and so permits other things when they change
        self._router = router
        self._table = table
        self._static = {(request.protocol, request.external_port): request for request in static}
        self._adds = RateLimit(BURST_SECONDS * main.adds_per_second, main.adds_per_second, clock)
        self._shares = FairShare(main.max_mappings, table, clock)
        self.refusals = Counter({_word(reason): 0 for reason in (Reason.QUOTA, Reason.UNFAIR, Reason.TOO_FAST)})

    def admit(self, request: MappingRequest) -> None:
        """Raises Refusal when this request may not be made, whatever the table holds."""
        if request.external_port == 0 and not request.any_port:
            raise Refusal(Reason.WILDCARD_EXTERNAL_PORT)
        if request.client.port == 0:
            raise Refusal(Reason.WILDCARD_INTERNAL_PORT)
        if not self.serves(request.client.address):
            raise Refusal(Reason.FOREIGN_CLIENT, f"{request.client.address} is on no LAN that is served")
        self._obey(request, request.external_port)
        if not request.any_port:
            self._spare_static(request, request.external_port)
        if not request.requester.owner.maps_tuple:  # who has taken it already
            self.take_turn(request.requester)

    def serves(self, client: IPAddress) -> bool:
        """Whether a host of this address is on a LAN that is served."""
        return self._router.on_lan(client)

    def permit(self, request: MappingRequest, external_port: int) -> None:
        """Raises Refusal when the configuration is against this request, or against this external port for it."""
        self._obey(request, external_port)
        self._spare_static(request, external_port)

    def permits(self, request: MappingRequest, external_port: int) -> bool:
        """As ``permit``, said without raising."""
        with suppress(Refusal):
            self.permit(request, external_port)
            return True
        return False

    def permitted(self, mapping: Mapping) -> Mapping:
        """What of it the configuration is not against; raises Refusal when that is nothing."""
        ports = {mapping.external_port, mapping.grant.external.port if mapping.grant else mapping.external_port}
        kept = mapping.keeping(lambda entry: all(self.permits(entry.request, port) for port in ports))
        if kept is None:
            for port in ports:
                self.permit(mapping.request, port)
        return kept or mapping

    def has_room(self, request: MappingRequest, *, joins: bool = False) -> None:
        """Raises Refusal when one more mapping would exceed a quota, or its host's fair share of the last ones.

        A query wants none yet, so it neither counts as refused nor waits for one. ``joins``: see FairShare.check.
        """
        try:
            self._must_have_room(request, joins)
        except Refusal as refusal:
            if request.requester.owner is not Owner.QUERY:
                self.refusals[_word(refusal.reason)] += 1
            raise

    def hear(self, event: UpstreamEvent) -> None:
        """Any event: a carrier's quota counts while that is asked and answers."""
        if isinstance(event, StateChanged) and event.state is not Activation.ACTIVE:
            self._shares.forget_quota()

    def refused_by_carrier(self, request: MappingRequest, result: int, coming: int) -> None:
        """Learn from this PCP result how much there is to share, and who waits for it; ``coming``: see FairShare."""
        if translate.quota_is_met(result):
            host = None if request.requester.owner.is_operators else request.client.address
            self._shares.quota_met(host, coming)

    def owns(self, requester: Requester, mapping: Mapping) -> bool:
        """Whether the entry leads to the control point itself; every entry is the operator's own."""
        return requester.owner.is_operators or mapping.request.client.address == requester.address

    def may_see(self, requester: Requester, mapping: Mapping) -> bool:
        """Whether this entry is shown to the control point."""
        return not self._main.private_list or self.owns(requester, mapping)

    def is_kept_from(self, requester: Requester, mapping: Mapping) -> bool:
        """Whether it is an entry of the operator, which nobody else may change, or one of the configuration."""
        owner = mapping.request.requester.owner
        if owner is Owner.STATIC:
            return requester.owner is not Owner.STATIC
        return owner is Owner.OPERATOR and not requester.owner.is_operators

    def may_delete(self, requester: Requester, mapping: Mapping) -> None:
        """Raises Refusal when the entry is not the requester's to delete."""
        if self.is_kept_from(requester, mapping):
            by = mapping.request.requester
            static = f"section '{by.agent}' of the configuration holds it: remove that, and reload"
            raise Refusal(Reason.FOREIGN_ENTRY, static if by.owner is Owner.STATIC else "the operator's")
        if self._main.secure_mode and not self.owns(requester, mapping):
            raise Refusal(Reason.FOREIGN_ENTRY, f"{mapping.request.client.address}'s")

    def admit_pinhole(self, request: PinholeRequest) -> None:
        """Raises Refusal when this pinhole may not be opened, whatever the table holds."""
        if not self.serves(request.client):
            raise Refusal(Reason.PINHOLE_NOT_PERMITTED, f"{request.client} is on no LAN that is served")
        self.permit_pinhole(request)

    def permit_pinhole(self, request: PinholeRequest) -> None:
        """Raises Refusal when the configuration is against this pinhole."""
        client = request.client
        if not client.is_global:
            raise Refusal(Reason.PINHOLE_NOT_PERMITTED, f"{client} is no public address")
        if self._main.secure_mode and client != request.requester.address:
            raise Refusal(Reason.PINHOLE_NOT_PERMITTED, f"{request.requester.address} asked for {client}")
        if self._is_never_mapped(request.client_port):
            raise Refusal(Reason.PINHOLE_NOT_PERMITTED, f"never_map has port {request.client_port}")
        for rule in self._permissions:
            ports = rule.external_ports, rule.internal_ports
            named = rule.internal_addresses == ANY_ADDRESS or client in rule.internal_addresses
            if named and self._is_of_lan(rule, client) and all(request.client_port in part for part in ports):
                if rule.action == "allow":
                    return
                raise Refusal(Reason.PINHOLE_NOT_PERMITTED, f"permission '{rule.name}' denies it")
        raise Refusal(Reason.PINHOLE_NOT_PERMITTED, f"port {request.client_port}")

    def has_room_for_pinhole(self, request: PinholeRequest, table: PinholeTable) -> None:
        """Raises Refusal when one more pinhole would exceed a quota."""
        if len(table) >= self._main.max_pinholes:
            raise Refusal(Reason.PINHOLE_SPACE, f"max_pinholes is {self._main.max_pinholes}")
        if table.held_by(request.client) >= self._main.max_pinholes_per_host:
            raise Refusal(Reason.PINHOLE_SPACE, f"max_pinholes_per_host is {self._main.max_pinholes_per_host}")

    def may_use_pinhole(self, requester: Requester, pinhole: Pinhole) -> None:
        """Raises Refusal when the pinhole is not the requester's to change or to look at."""
        if requester.owner.is_operators:
            return
        if self._main.secure_mode and pinhole.request.client != requester.address:
            raise Refusal(Reason.FOREIGN_PINHOLE, f"{pinhole.request.client}'s")

    def _obey(self, request: MappingRequest, external_port: int) -> None:
        if request.requester.owner.is_operators:
            return
        if self._main.secure_mode and request.client.address != request.requester.address:
            raise Refusal(Reason.FOREIGN_CLIENT, f"{request.requester.address} asked for {request.client.address}")
        if request.remote_host and self._main.remote_host == "reject":
            raise Refusal(Reason.REMOTE_HOST, "option 'remote_host' is 'reject'")
        if self._is_never_mapped(external_port):
            raise Refusal(Reason.NOT_PERMITTED, f"never_map has port {external_port}")
        if request.protocol is Protocol.UDP and external_port in PCP_PORTS:
            raise Refusal(Reason.NOT_PERMITTED, f"port {external_port} is for PCP itself")
        for rule in self._permissions:
            if (
                _is_about(rule, external_port)
                and request.client.address in rule.internal_addresses
                and request.client.port in rule.internal_ports
                and self._is_of_lan(rule, request.client.address)
            ):
                if rule.action == "allow":
                    return
                raise Refusal(Reason.NOT_PERMITTED, f"permission '{rule.name}' denies it")
        raise Refusal(Reason.NOT_PERMITTED, f"port {external_port} to {request.client}")

    def _spare_static(self, request: MappingRequest, external_port: int) -> None:
        """The port of a static mapping is for that only, also while it is not open.

        What a carrier gives it may be another one, with ``port_policy alias``.
        """
        wanted = None
        if request.requester.owner is Owner.STATIC:
            wanted = self._static.get((request.protocol, request.external_port))
            if wanted is None or (wanted.client, wanted.remote_host) != (request.client, request.remote_host):
                raise Refusal(Reason.NOT_PERMITTED, "the configuration has it no more")
        static = self._static.get((request.protocol, external_port))
        if static and static is not wanted:
            raise Refusal(Reason.OPERATORS_ENTRY, f"section '{static.requester.agent}' of the configuration has it")

    def take_turn(self, requester: Requester) -> None:
        """Raises Refusal when this host has asked for enough lately."""
        if requester.owner.is_operators or self._adds.take(requester.address) is not None:
            return
        self.refusals[_word(Reason.TOO_FAST)] += 1
        raise Refusal(Reason.TOO_FAST, f"adds_per_second is {self._main.adds_per_second}")

    def _must_have_room(self, request: MappingRequest, joins: bool) -> None:
        owner, client = request.requester.owner, request.client.address
        if owner is Owner.STATIC:
            return
        if owner is Owner.OPERATOR:
            if self._table.counted >= self._main.max_mappings:
                raise Refusal(Reason.QUOTA, f"max_mappings is {self._main.max_mappings}")
            return
        if self._table.held_by(client) >= self._main.max_mappings_per_host:
            raise Refusal(Reason.QUOTA, f"max_mappings_per_host is {self._main.max_mappings_per_host}")
        if owner is Owner.QUERY or joins:
            self._shares.check(client, joins=joins)
        else:
            self._shares.admit(client)

    def _is_never_mapped(self, port: int) -> bool:
        return any(port in ports for ports in self._main.never_map)

    def _is_of_lan(self, rule: PermissionConfig, client: IPAddress) -> bool:
        """Nobody knows which LAN a host was on that is on none now: what it has open does not end by that.

        LANs are away for moments, and at a start that is earlier than they are; what lasts ends by Departures.
        """
        if not rule.lan or self._router.in_lan(client, rule.lan):
            return True
        return rule.action == "allow" and not self._router.on_lan(client)


def _word(reason: Reason) -> str:
    return reason.name.lower()


def _is_about(rule: PermissionConfig, external_port: int) -> bool:
    """Port 0 is not chosen yet: it may become one that is allowed, and need not become one that is denied."""
    if external_port == 0:
        return rule.action == "allow" or rule.external_ports == ANY_PORTS
    return external_port in rule.external_ports
