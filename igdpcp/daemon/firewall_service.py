# SPDX-License-Identifier: Apache-2.0
"""WANIPv6FirewallControl: pinholes in the router's own IPv6 firewall."""

from __future__ import annotations

from collections.abc import Callable

from igdpcp.daemon.control_request import Answer, ControlRequest, Outputs
from igdpcp.errors import UpnpFault
from igdpcp.iwf import translate
from igdpcp.iwf.pinholes import Pinholes
from igdpcp.model import PINHOLE_LEASES, Protocol
from igdpcp.net.conntrack import established_timeout
from igdpcp.upnp.actions import UI4_MAX
from igdpcp.upnp.soap import INVALID_ARGS


class FirewallService:
    """Whether pinholes are possible at all is told before anything that is wrong with an argument's value."""

    def __init__(self, pinholes: Pinholes, flow_timeout: Callable[[Protocol], int] = established_timeout) -> None:
        """``flow_timeout``: for how many seconds the firewall remembers a silent flow."""
        self._pinholes = pinholes
        self._flow_timeout = flow_timeout
        self.answers: dict[str, Answer] = {
            "GetOutboundPinholeTimeout": self._outbound_timeout,
            "AddPinhole": self._add,
            "UpdatePinhole": self._update,
            "DeletePinhole": self._delete,
            "GetPinholePackets": self._packets,
            "CheckPinholeWorking": self._working,
        }

    def _outbound_timeout(self, asked: ControlRequest) -> Outputs:
        number = int(asked.arguments["Protocol"])
        if number == translate.ANY_PROTOCOL:
            raise UpnpFault(translate.PINHOLE_PROTOCOL_WILDCARD, "each protocol has a timeout of its own")
        if number not in tuple(Protocol):
            raise UpnpFault(translate.PINHOLE_PROTOCOL_UNKNOWN, f"protocol {number}")
        return {"OutboundPinholeTimeout": self._flow_timeout(Protocol(number))}

    async def _add(self, asked: ControlRequest) -> Outputs:
        self._pinholes.must_be_allowed()
        pinhole = await self._pinholes.add(translate.pinhole_request(asked.arguments, asked.requester))
        return {"UniqueID": pinhole.id}

    async def _update(self, asked: ControlRequest) -> Outputs:
        self._pinholes.must_be_allowed()
        lease = int(asked.arguments["NewLeaseTime"])
        if lease not in PINHOLE_LEASES:
            raise UpnpFault(INVALID_ARGS, f"a lease of {lease} s is not allowed")
        await self._pinholes.update(asked.requester, _unique_id(asked), lease)
        return {}

    async def _delete(self, asked: ControlRequest) -> Outputs:
        await self._pinholes.delete(asked.requester, _unique_id(asked))
        return {}

    async def _packets(self, asked: ControlRequest) -> Outputs:
        packets = await self._pinholes.packets(asked.requester, _unique_id(asked))
        return {"PinholePackets": packets % (UI4_MAX + 1)}

    async def _working(self, asked: ControlRequest) -> Outputs:
        return {"IsWorking": await self._pinholes.working(asked.requester, _unique_id(asked))}


def _unique_id(asked: ControlRequest) -> int:
    return int(asked.arguments["UniqueID"])
