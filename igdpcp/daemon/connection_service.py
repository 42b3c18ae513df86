# SPDX-License-Identifier: Apache-2.0
"""WANIPConnection: calls to the interworking function, and its word back in the standard's arguments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from igdpcp.daemon.control_request import Answer, ControlRequest, Outputs
from igdpcp.daemon.host_names import HostNames
from igdpcp.errors import UpnpFault
from igdpcp.iwf import translate
from igdpcp.iwf.interworking import Interworking
from igdpcp.log import SparingLog
from igdpcp.model import LEASE_INFINITE, Protocol
from igdpcp.upnp.actions import Value
from igdpcp.upnp.description import wants_version_1
from igdpcp.upnp.port_listing import ENTRIES_PER_ANSWER, port_listing


class ConnectionService:
    """The table of port mappings, as control points see and change it."""

    def __init__(self, interworking: Interworking, names: HostNames) -> None:
        self._interworking = interworking
        self._now = asyncio.get_running_loop().time
        self._log = SparingLog(logging.getLogger("igdpcp.upnp"))
        self.answers: dict[str, Answer] = {
            "GetListOfPortMappings": self._list,
            **dict.fromkeys(translate.REFUSED_METHODS, self._refuse),
            "AddPortMapping": names.resolving(self._add),
            "AddAnyPortMapping": names.resolving(self._add_any),
            "DeletePortMapping": names.resolving(self._delete),
            "DeletePortMappingRange": self._delete_range,
            "GetSpecificPortMappingEntry": names.resolving(self._specific),
            "GetGenericPortMappingEntry": self._generic,
            "GetExternalIPAddress": self._external_address,
        }

    async def _add(self, asked: ControlRequest) -> Outputs:
        request = translate.mapping_request(asked.arguments, asked.requester, asked.call.version, any_port=False)
        await self._interworking.add_port_mapping(request)
        return {}

    async def _add_any(self, asked: ControlRequest) -> Outputs:
        request = translate.mapping_request(asked.arguments, asked.requester, asked.call.version, any_port=True)
        mapping = await self._interworking.add_any_port_mapping(request)
        return {"NewReservedPort": mapping.external_port}

    async def _delete(self, asked: ControlRequest) -> Outputs:
        key = translate.mapping_key(asked.arguments)
        mapping = await self._interworking.delete_port_mapping(asked.requester, *key)
        self._deleted(asked, mappings=mapping.id, ports=str(mapping.external_port))
        return {}

    async def _delete_range(self, asked: ControlRequest) -> Outputs:
        ports = translate.port_range(asked.arguments)
        mappings = await self._interworking.delete_port_mapping_range(
            asked.requester, _protocol(asked), ports, manage=bool(asked.arguments["NewManage"])
        )
        ids = " ".join(mapping.id for mapping in mappings)
        self._deleted(asked, mappings=ids, ports=f"{ports.start}-{ports.stop - 1}")
        return {}

    async def _specific(self, asked: ControlRequest) -> Outputs:
        key = translate.mapping_key(asked.arguments)
        mapping = await self._interworking.get_specific(asked.requester, *key)
        return _shown_to(asked, translate.specific_entry(mapping, self._now()))

    async def _generic(self, asked: ControlRequest) -> Outputs:
        index = int(asked.arguments["NewPortMappingIndex"])
        mapping = await self._interworking.get_generic(asked.requester, index)
        return _shown_to(asked, translate.generic_entry(mapping, self._now()))

    def _external_address(self, asked: ControlRequest) -> Outputs | Awaitable[Outputs]:
        """Answered at once where it can be: some control points ask every few seconds."""
        return self._known_address(asked) if self._interworking.outside.known else self._learned_address(asked)

    async def _learned_address(self, asked: ControlRequest) -> Outputs:
        await self._interworking.outside.learn()
        return self._known_address(asked)

    def _known_address(self, asked: ControlRequest) -> Outputs:
        address, _ = self._interworking.outside.address(asked.requester.address)
        return {"NewExternalIPAddress": str(address or "")}

    def _list(self, asked: ControlRequest) -> Outputs:
        arguments = asked.arguments
        wanted = int(arguments["NewNumberOfPorts"]) or ENTRIES_PER_ANSWER
        mappings = self._interworking.list_port_mappings(
            asked.requester,
            _protocol(asked),
            translate.port_range(arguments),
            manage=bool(arguments["NewManage"]),
            limit=min(wanted, ENTRIES_PER_ANSWER),
        )
        now = self._now()
        return {"NewPortListing": port_listing(translate.generic_entry(mapping, now) for mapping in mappings)}

    def _refuse(self, asked: ControlRequest) -> Outputs:
        codes = translate.REFUSED_METHODS[asked.call.action.name]
        raise UpnpFault(codes.v1 if asked.call.version == 1 else codes.v2, "the carrier decides about the connection")

    def _deleted(self, asked: ControlRequest, *, mappings: str, ports: str) -> None:
        requester, protocol = asked.requester, asked.arguments["NewProtocol"]
        self._log.write(
            logging.INFO, "deleted", requester.address,
            agent=requester.agent, protocol=protocol, external_port=ports, mapping=mappings,
        )  # fmt: skip


def _protocol(asked: ControlRequest) -> Protocol:
    return Protocol[str(asked.arguments["NewProtocol"])]


def _shown_to(asked: ControlRequest, entry: dict[str, Value]) -> Outputs:
    """The entry as this control point understands it: Windows lists only what has no end."""
    if wants_version_1(asked.requester.agent):
        entry["NewLeaseDuration"] = LEASE_INFINITE
    return entry
