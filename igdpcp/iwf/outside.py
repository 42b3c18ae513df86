# SPDX-License-Identifier: Apache-2.0
"""How the router is seen from outside: ExternalIPAddress and ConnectionStatus (RFC 6970 section 4.1)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from ipaddress import IPv4Address

from igdpcp.config import MainConfig
from igdpcp.iwf.interfaces import Fallback, Router
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Activation, IPAddress


class Outside:
    """What is known of it from the carrier, else from the router itself."""

    def __init__(self, main: MainConfig, table: MappingTable, upstream: Fallback, router: Router) -> None:
        self._main = main
        self._table = table
        self._upstream = upstream
        self._router = router

    @property
    def known(self) -> bool:
        """Whether ``learn`` has nothing to do."""
        return self._upstream.external_address is not None

    async def learn(self) -> None:
        """Have ``address`` known where that can be, within the SOAP deadline (RFC 6970 section 5.7)."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._main.soap_deadline):
                await self._upstream.learn_address()

    def address(self, asker: IPAddress | None = None) -> tuple[IPv4Address | None, str]:
        """ExternalIPAddress and why it is this one; never a private address passed off as public.

        A carrier may have several: an asker is told that of its own mappings (RFC 6970 section 4.1).
        """
        if address := self._upstream.external_address:
            if asker is not None:
                address = self._table.external_address_of(asker, address)
            if self._showable(address):
                return address, "given by the carrier"
            return None, f"the carrier gives {address}, which is not public"
        if not self._upstream.may_fall_back:
            return None, "the carrier's PCP server has not told one"
        wan = self._router.wan_address
        if wan is None:
            return None, "the WAN has no IPv4 address"
        if self._showable(wan):
            return wan, "the router's own WAN address"
        return None, f"the router's own WAN address {wan} is not public, and no PCP server has told one"

    def connected(self) -> bool:
        """ConnectionStatus is Connected (RFC 6970 section 4.1; an IGD without an address to show is not)."""
        if self._upstream.state is not Activation.ACTIVE and not self._upstream.may_fall_back:
            return False
        return self.address()[0] is not None

    def _showable(self, address: IPv4Address) -> bool:
        return address.is_global or self._main.allow_private_external
