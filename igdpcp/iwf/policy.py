# SPDX-License-Identifier: Apache-2.0
"""Who may open, see and close what: own address only, permission rules, and how much one host may hold.

A permission rule that names an IPv4 network is for mappings only, one that names an IPv6 network for pinholes only; to
these it applies when it has the pinhole's port among its external and its internal ports.
"""

from __future__ import annotations

from contextlib import suppress

from igdpcp.config import ANY_ADDRESS, ANY_PORTS, DEFAULT_PERMISSIONS, MainConfig, PermissionConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.interfaces import Router
from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.iwf.table import MappingTable
from igdpcp.model import IPAddress, Mapping, MappingRequest, Owner, Pinhole, PinholeRequest, Requester


class Policy:
    """Decides before anything else is touched; the operator at the control socket is only held to the quotas."""

    def __init__(self, main: MainConfig, permissions: tuple[PermissionConfig, ...], router: Router) -> None:
        self._main = main
        self._permissions = permissions or DEFAULT_PERMISSIONS
        self._router = router

    def admit(self, request: MappingRequest) -> None:
        """Raises Refusal when this request may not be made, whatever the table holds."""
        if request.external_port == 0 and not request.any_port:
            raise Refusal(Reason.WILDCARD_EXTERNAL_PORT)
        if request.client.port == 0:
            raise Refusal(Reason.WILDCARD_INTERNAL_PORT)
        if not self.serves(request.client.address):
            raise Refusal(Reason.FOREIGN_CLIENT, f"{request.client.address} is on no LAN that is served")
        self.permit(request, request.external_port)

    def serves(self, client: IPAddress) -> bool:
        """Whether a host of this address is on a LAN that is served."""
        return self._router.on_lan(client)

    def permit(self, request: MappingRequest, external_port: int) -> None:
        """Raises Refusal when the configuration is against this request, or against this external port for it."""
        if request.requester.owner is Owner.OPERATOR:
            return
        if self._main.secure_mode and request.client.address != request.requester.address:
            raise Refusal(Reason.FOREIGN_CLIENT, f"{request.requester.address} asked for {request.client.address}")
        self._obey_rules(request, external_port)

    def permits(self, request: MappingRequest, external_port: int) -> bool:
        """As ``permit``, said without raising."""
        with suppress(Refusal):
            self.permit(request, external_port)
            return True
        return False

    def has_room(self, request: MappingRequest, table: MappingTable) -> None:
        """Raises Refusal when one more mapping would exceed a quota."""
        if table.counted >= self._main.max_mappings:
            raise Refusal(Reason.QUOTA, f"max_mappings is {self._main.max_mappings}")
        if table.held_by(request.client.address) >= self._main.max_mappings_per_host:
            raise Refusal(Reason.QUOTA, f"max_mappings_per_host is {self._main.max_mappings_per_host}")

    def owns(self, requester: Requester, mapping: Mapping) -> bool:
        """Whether the entry leads to the control point itself; every entry is the operator's own."""
        return requester.owner is Owner.OPERATOR or mapping.request.client.address == requester.address

    def may_see(self, requester: Requester, mapping: Mapping) -> bool:
        """Whether this entry is shown to the control point."""
        return not self._main.private_list or self.owns(requester, mapping)

    def is_kept_from(self, requester: Requester, mapping: Mapping) -> bool:
        """Whether it is an entry of the operator, which nobody else may change."""
        return mapping.request.requester.owner is Owner.OPERATOR and requester.owner is not Owner.OPERATOR

    def may_delete(self, requester: Requester, mapping: Mapping) -> None:
        """Raises Refusal when the entry is not the requester's to delete."""
        if requester.owner is Owner.OPERATOR:
            return
        if self.is_kept_from(requester, mapping):
            raise Refusal(Reason.FOREIGN_ENTRY, "the operator's")
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
        for rule in self._permissions:
            ports = rule.external_ports, rule.internal_ports
            named = rule.internal_addresses == ANY_ADDRESS or client in rule.internal_addresses
            if named and all(request.client_port in part for part in ports):
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
        if requester.owner is Owner.OPERATOR:
            return
        if self._main.secure_mode and pinhole.request.client != requester.address:
            raise Refusal(Reason.FOREIGN_PINHOLE, f"{pinhole.request.client}'s")

    def _obey_rules(self, request: MappingRequest, external_port: int) -> None:
        for rule in self._permissions:
            if (
                _is_about(rule, external_port)
                and request.client.address in rule.internal_addresses
                and request.client.port in rule.internal_ports
            ):
                if rule.action == "allow":
                    return
                raise Refusal(Reason.NOT_PERMITTED, f"permission '{rule.name}' denies it")
        raise Refusal(Reason.NOT_PERMITTED, f"port {external_port} to {request.client}")


def _is_about(rule: PermissionConfig, external_port: int) -> bool:
    """Port 0 is not chosen yet: it may become one that is allowed, and need not become one that is denied."""
    if external_port == 0:
        return rule.action == "allow" or rule.external_ports == ANY_PORTS
    return external_port in rule.external_ports
