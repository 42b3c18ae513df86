# SPDX-License-Identifier: Apache-2.0
"""What an operator may ask at the control socket; mappings made here may lead to any LAN host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from igdpcp.daemon.control import Command
from igdpcp.daemon.status import Status, discrepancy
from igdpcp.errors import OurFault, Reason, Refusal
from igdpcp.iwf.interworking import Interworking
from igdpcp.iwf.pinholes import Pinholes
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Endpoint, MappingRequest, Owner, Protocol, Requester
from igdpcp.upnp.actions import UI4_MAX
from igdpcp.upnp.soap import DESCRIPTION_LIMIT, printable

_OPERATOR = Requester(None, Owner.OPERATOR, "igdpcp-cli")


class Operator:
    """The commands of the control socket."""

    def __init__(
        self,
        interworking: Interworking,
        table: MappingTable,
        status: Status,
        release: Callable[[], Awaitable[None]],
        router_leg: RouterLeg,
        pinholes: Pinholes,
    ) -> None:
        self._interworking = interworking
        self._table = table
        self._status = status
        self._release = release
        self._router_leg = router_leg
        self._pinholes = pinholes

    def commands(self) -> dict[str, Command]:
        """By the name in the request's ``command``."""
        return {
            "status": lambda _: self._status.status(),
            "mappings": lambda _: self._status.mappings(),
            "add": self._add,
            "delete": self._delete,
            "audit": self._audit,
            "repair": self._repair,
            "release": self._release_all,
        }

    async def _add(self, asked: dict[str, Any]) -> dict[str, Any]:
        any_port = bool(asked.get("any", False))
        request = MappingRequest(
            requester=_OPERATOR,
            protocol=_protocol(asked),
            external_port=_number(asked, "external_port", 65535, 0 if any_port else None),
            client=Endpoint(_address(asked, "client"), _number(asked, "client_port", 65535)),
            remote_host=_address(asked, "remote_host") if asked.get("remote_host") else None,
            lease=_number(asked, "lease", UI4_MAX, 0),
            description=printable(str(asked.get("description", "")))[:DESCRIPTION_LIMIT],
            any_port=any_port,
        )
        add = self._interworking.add_any_port_mapping if any_port else self._interworking.add_port_mapping
        return self._status.row(await add(request))

    async def _delete(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "id" in asked:
            return await self._delete_by_id(str(asked["id"]))
        protocol, port = _protocol(asked), _number(asked, "external_port", 65535)
        remote_host = _address(asked, "remote_host") if asked.get("remote_host") else None
        gone = await self._interworking.delete_port_mapping(_OPERATOR, protocol, port, remote_host)
        return self._status.row(gone)

    async def _delete_by_id(self, id: str) -> dict[str, Any]:
        if mapping := self._table.get(id):
            await self._interworking.delete(_OPERATOR, mapping)
            return self._status.row(mapping)
        if pinhole := self._pinholes.named(id):
            await self._pinholes.delete(_OPERATOR, pinhole.id)
            return self._status.pinhole_row(pinhole)
        raise Refusal(Reason.NO_SUCH_ENTRY, f"id {id}")

    async def _audit(self, _: dict[str, Any]) -> dict[str, Any]:
        return discrepancy(await self._router_leg.compare())

    async def _repair(self, _: dict[str, Any]) -> dict[str, Any]:
        found, left = await self._router_leg.repair()
        return {"found": discrepancy(found) if found else None, "left": discrepancy(left)}

    async def _release_all(self, _: dict[str, Any]) -> dict[str, Any]:
        await self._release()
        return {}


def _protocol(asked: dict[str, Any]) -> Protocol:
    try:
        return Protocol[str(asked["protocol"]).upper()]
    except KeyError:
        raise OurFault("'protocol' has to be tcp or udp") from None


def _address(asked: dict[str, Any], name: str) -> IPv4Address:
    try:
        return IPv4Address(str(asked.get(name, "")))
    except AddressValueError:
        raise OurFault(f"'{name}' has to be an IPv4 address") from None


def _number(asked: dict[str, Any], name: str, largest: int, default: int | None = None) -> int:
    value = asked.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise OurFault(f"'{name}' has to be a number from 0 to {largest}")
    return value
