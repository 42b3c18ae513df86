# SPDX-License-Identifier: Apache-2.0
"""Who may map what: own address only, permission rules, and how many mappings one host may hold."""

from __future__ import annotations

from igdpcp.config import DEFAULT_PERMISSIONS, MainConfig, PermissionConfig
from igdpcp.errors import Reason, Refusal
from igdpcp.iwf.interfaces import Router
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Mapping, MappingRequest, Owner, Requester


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
        if not self._router.on_lan(request.client.address):
            raise Refusal(Reason.FOREIGN_CLIENT, f"{request.client.address} is on no LAN that is served")
        if request.requester.owner is Owner.OPERATOR:
            return
        if request.client.address != request.requester.address:
            raise Refusal(Reason.FOREIGN_CLIENT, f"{request.requester.address} asked for {request.client.address}")
        self._permit(request)

    def has_room(self, request: MappingRequest, table: MappingTable) -> None:
        """Raises Refusal when one more mapping would exceed a quota."""
        if len(table) >= self._main.max_mappings:
            raise Refusal(Reason.QUOTA, f"max_mappings is {self._main.max_mappings}")
        if table.held_by(request.client.address) >= self._main.max_mappings_per_host:
            raise Refusal(Reason.QUOTA, f"max_mappings_per_host is {self._main.max_mappings_per_host}")

    def may_delete(self, requester: Requester, mapping: Mapping) -> None:
        """Raises Refusal when the entry is not the requester's."""
        if requester.owner is not Owner.OPERATOR and mapping.request.client.address != requester.address:
            raise Refusal(Reason.FOREIGN_ENTRY, f"{mapping.request.client.address}'s")

    def _permit(self, request: MappingRequest) -> None:
        for rule in self._permissions:
            if (
                (request.external_port in rule.external_ports or request.external_port == 0)
                and request.client.address in rule.internal_addresses
                and request.client.port in rule.internal_ports
            ):
                if rule.action == "allow":
                    return
                raise Refusal(Reason.NOT_PERMITTED, f"permission '{rule.name}' denies it")
        raise Refusal(Reason.NOT_PERMITTED, f"port {request.external_port} to {request.client}")
